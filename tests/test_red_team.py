"""Degenerate answers: how often a scorer is fooled, by hand and on the committed cases."""

import json
import runpy
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbalign import scorers
from rbalign.config.load import load_recipe, packaged_recipes
from rbalign.config.sections import AlignConfig
from rbalign.errors import UsageError
from rbalign.scorers.red_team import ATTACKS, SAFE, Case, survival
from rbalign.scorers.registry import SCORERS, check_reward, guarded

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


# ---- what may be a reward ----------------------------------------------------------------------------------------

ROWS = {row["scorer"]: row for row in COMMITTED["rows"]}
ALONE = sorted(ROWS.keys() & SCORERS.keys())


@pytest.mark.parametrize("name", ALONE)
def test_a_scorer_falls_for_what_the_red_team_found(name):
    assert SCORERS[name].falls_for == tuple(attack for attack in ATTACKS if ROWS[name][attack] < SAFE)
    assert SCORERS[name].unsafe_alone == (not ROWS[name]["safe"])


@pytest.mark.parametrize("name", [name for name, one in SCORERS.items() if one.guard])
def test_a_guard_mends_what_it_is_named_for(name):
    """What the scorer falls for most is safe in the committed row with the guard at its least weight."""
    row = ROWS[",".join(f"{part}={weight:g}" for part, weight in guarded({name: 1.0}).items())]
    worst = min(SCORERS[name].falls_for, key=ROWS[name].__getitem__)
    assert row[worst] >= SAFE > ROWS[name][worst]


def test_the_committed_row_of_a_mixture_is_what_it_does():
    bench = runpy.run_path(str(ROOT / "benchmarks" / "red_team.py"))
    cases, mixed = bench["load_cases"](), scorers.build({"chrf": 1.0, "novelty": 0.5})
    found = survival(mixed, cases, bench["columns_of"](mixed))
    assert found == pytest.approx({attack: ROWS["chrf=1,novelty=0.5"][attack] for attack in ATTACKS}, abs=0.011)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("similarity", "{ similarity = 1, novelty = 0.5 }"),
        ({"chrf": 2.0}, "{ chrf = 2, novelty = 1 }"),
        ({"similarity": 1.0, "novelty": 0.4}, "{ similarity = 1, novelty = 0.5 }"),
        ({"similarity": 1.0, "bleu": 1.0, "novelty": 0.5}, "{ similarity = 1, bleu = 1, novelty = 1 }"),
        ({"similarity": 1.0, "novelty": -1.0}, "{ similarity = 1, novelty = 0.5 }"),
        ("novelty", "{ novelty = 1, similarity = 1 }"),
        ("consistency", "{ consistency = 1, similarity = 1, novelty = 0.5 }"),
        ({"hidden-similarity": 2.0, "novelty": 1.0}, "{ hidden-similarity = 2, novelty = 1, similarity = 2 }"),
        ({"similarity": 0.0, "novelty": 1.0}, "{ similarity = 1, novelty = 1 }"),
        ({}, "{ similarity = 1, novelty = 0.5 }"),
        ("teacher-likelihood", "{ teacher-likelihood = 1, similarity = 4, novelty = 4, repetition = 4 }"),
    ],
)
def test_a_reward_that_is_unsafe_alone_is_refused_with_the_line_to_write(given, written):
    with pytest.raises(UsageError) as error:
        check_reward(given)
    assert f"write scorer = {written}" in str(error.value)
    assert "\n" not in str(error.value)
    check_reward(tomllib.loads(f"scorer = {written}")["scorer"])


@pytest.mark.parametrize(
    "given",
    [
        "judge", "reward-model", "qa", "constraints", {"judge": 1.0, "length": -0.2},
        {"similarity": 1.0, "novelty": 0.75},
        {"chrf": 1.0, "novelty": 0.5, "repetition": 0.5}, {"consistency": 1.0, "similarity": 1.0, "novelty": 0.5},
    ],
)  # fmt: skip
def test_a_guarded_reward_passes(given):
    check_reward(given)


weights = st.dictionaries(st.sampled_from(sorted(SCORERS)), st.floats(-2, 2).map(lambda w: round(w, 2)), max_size=4)


@settings(derandomize=True, deadline=None)
@given(weights)
def test_what_is_proposed_passes_and_takes_nothing_away(given_weights):
    wanted = guarded(given_weights)
    assert guarded(wanted) == wanted
    assert all(wanted[name] >= weight for name, weight in given_weights.items())


def test_the_message_says_what_it_falls_for():
    with pytest.raises(UsageError, match=r"similarity without novelty at 0.5 or more falls for echo, repetition"):
        check_reward("similarity")
    with pytest.raises(UsageError, match=r"novelty and length alone cannot tell a good answer from a bad one"):
        check_reward({"novelty": 1.0, "length": 1.0})
    with pytest.raises(UsageError, match="did you mean 'chrf'"):
        check_reward({"chrff": 1.0})


def test_recipes_that_ship_obey_and_so_does_the_default():
    check_reward(AlignConfig().scorer)
    for path in packaged_recipes().values():
        align = load_recipe(path).align
        if align is not None:
            check_reward(align.scorer)


def test_a_constant_answer_is_perfectly_consistent():
    """Why consistency reads no answer: the worst policy has its best score."""
    columns = {"group": ["e"] * 3, "view": [0, 1, 2]}
    same = scorers.build("consistency", embedder=Same())(["?"] * 3, ["I'm sorry."] * 3, [[]] * 3, **columns)
    assert same == pytest.approx([1.0] * 3)
    assert SCORERS["consistency"].unsafe_alone


class Same:
    name = "same"

    def embed(self, texts):
        return np.ones((len(texts), 1), np.float32)


def test_the_page_has_a_row_for_every_scorer():
    page = (ROOT / "docs" / "objectives.md").read_text()
    shown = page.split("<!-- scorers -->")[1].split("<!-- /scorers -->")[0].strip().splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in shown]
    assert [row[0].strip("`") for row in cells] == list(SCORERS)
    for name, *_, alone in cells:
        assert alone.startswith("unsafe") == SCORERS[name.strip("`")].unsafe_alone, name
