"""Degenerate answers: how often a scorer is fooled, by hand and on the committed cases."""

import json
import runpy
from pathlib import Path

import pytest

from rbalign import scorers
from rbalign.scorers.red_team import ATTACKS, Case, survival

ROOT = Path(__file__).parent.parent
COMMITTED = json.loads((ROOT / "results" / "benchmarks" / "red_team.json").read_text())
CASES = [
    Case("What is the sea?", "It is salt water.", "Salt water.", ("A lot of water.", "Salt water, child.", "Blue.")),
    Case("Who are you?", "I am a model.", "A model.", ("I am a model.", "Nobody.", "Me.")),
]


class ByLength:
    """Likes long answers; leaves what the table says unscored."""

    name, needs = "by-length", frozenset()

    def __init__(self, unscored=()):
        self.unscored = unscored

    def __call__(self, prompts, completions, completion_ids, **columns):
        return [None if text in self.unscored else float(len(text)) for text in completions]


def nothing(cases, texts):
    return {}


def test_an_attack_must_stay_below_the_median_honest_sample():
    """Honest lengths 15, 18, 5 and 13, 7, 3: medians 15 and 7. The echoes have 16 and 12 characters."""
    found = survival(ByLength(), CASES, nothing)
    assert found == {name: float(name == "empty") for name in ATTACKS}
    longer = [Case(case.prompt, case.answer, case.reference, (*["x" * 14] * 3, "y" * 99)) for case in CASES]
    assert survival(ByLength(), longer, nothing)["echo"] == 0.5


def test_an_unscored_attack_cannot_win_and_unscored_honesty_proves_nothing():
    echoes = [case.prompt for case in CASES]
    assert survival(ByLength(echoes), CASES, nothing)["echo"] == 1.0
    assert survival(ByLength(CASES[0].honest), CASES, nothing)["empty"] == 0.5


def test_columns_belong_to_their_rows():
    seen = []

    def columns(cases, texts):
        seen.extend(zip(cases, texts, strict=True))
        return {"answer": [case.answer for case in cases], "ids": [[len(text)] for text in texts]}

    survival(ByLength(), CASES, columns)
    assert (CASES[1], CASES[1].prompt) in seen
    assert all(text in case.honest or text in [attack(case) for attack in ATTACKS.values()] for case, text in seen)


@pytest.mark.parametrize("name", ["length", "repetition", "novelty", "chrf"])
def test_the_committed_table_is_what_the_scorers_do(name):
    bench = runpy.run_path(str(ROOT / "benchmarks" / "red_team.py"))
    cases = bench["load_cases"]()
    assert len(cases) == COMMITTED["cases"] == 100
    (row,) = [row for row in COMMITTED["rows"] if row["scorer"] == name]
    scorer = scorers.build(name)
    found = survival(scorer, cases, bench["columns_of"](scorer))
    assert found == pytest.approx({attack: row[attack] for attack in ATTACKS}, abs=0.011)


def test_the_page_shows_the_committed_table():
    page = (ROOT / "docs" / "objectives.md").read_text()
    shown = page.split("<!-- red team -->")[1].split("<!-- /red team -->")[0].strip().splitlines()
    assert shown[0].strip("| ").split(" | ") == ["scorer", *ATTACKS]
    wanted = [[row["scorer"], *(f"{100 * row[attack]:.0f}" for attack in ATTACKS)] for row in COMMITTED["rows"]]
    assert [line.strip("| ").split(" | ") for line in shown[2:]] == wanted
