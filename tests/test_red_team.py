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
from rbalign.scorers.registry import SCORERS, check_reward, guarded, warning

ROOT = Path(__file__).parent.parent
COMMITTED = json.loads((ROOT / "results" / "benchmarks" / "red_team.json").read_text())
BENCH = runpy.run_path(str(ROOT / "benchmarks" / "red_team.py"))
ROWS = {row["scorer"]: row for row in COMMITTED["rows"]}
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


@pytest.mark.parametrize("name", ["length", "repetition", "novelty", "polarity", "chrf", "qa", "constraints"])
def test_the_committed_table_is_what_the_scorers_do(name):
    cases = BENCH["cases_of"](name)
    assert len(cases) == ROWS[name]["cases"] == 100
    scorer = scorers.build(name)
    found = survival(scorer, cases, BENCH["columns_of"](scorer))
    assert found == pytest.approx({attack: ROWS[name][attack] for attack in ATTACKS}, abs=0.011)


@pytest.mark.parametrize("label", ["aliases", "constraints"])
def test_of_a_request_with_a_label_most_honest_samples_are_right_and_the_first_is(label):
    """Else a scorer of right and wrong has nothing to rank, and a negation has nothing right to deny."""
    scorer = scorers.build({"aliases": "qa"}.get(label, label))
    for case in BENCH["load_cases"](label):
        count = len(case.honest)
        scores = scorer([case.prompt] * count, case.honest, [[]] * count, **{label: [case.labels[label]] * count})
        assert scores[0] == 1.0
        assert sum(scores) * 2 > count == 5


def test_a_collapsed_policy_is_perfectly_consistent_and_honest_samples_are_not():
    collapsed = BENCH["Collapsed"](scorers.build("consistency", embedder=Letters()))
    assert collapsed(["p", "q"], ["same", ""], [[]] * 2) == pytest.approx([1.0, 0.0])
    assert collapsed(["p", "p"], ["abc", "xyz"], [[]] * 2) == pytest.approx([0.0, 0.0])


def test_the_page_shows_the_committed_table():
    page = (ROOT / "docs" / "objectives.md").read_text()
    shown = page.split("<!-- red team -->")[1].split("<!-- /red team -->")[0].strip().splitlines()
    assert shown[0].strip("| ").split(" | ") == ["scorer", *ATTACKS]
    wanted = [[row["scorer"], *(f"{100 * row[attack]:.0f}" for attack in ATTACKS)] for row in COMMITTED["rows"]]
    assert [line.strip("| ").split(" | ") for line in shown[2:]] == wanted


# ---- what may be a reward ----------------------------------------------------------------------------------------

ALONE = sorted(ROWS.keys() & SCORERS.keys())


@pytest.mark.parametrize("name", ALONE)
def test_a_scorer_falls_for_what_the_red_team_found(name):
    assert SCORERS[name].falls_for == tuple(attack for attack in ATTACKS if ROWS[name][attack] < SAFE)
    assert SCORERS[name].unsafe_alone == (not ROWS[name]["safe"])


def test_what_was_not_measured_is_unsafe_alone():
    assert {name for name, one in SCORERS.items() if not one.measured} == SCORERS.keys() - set(ALONE)
    assert all(one.unsafe_alone for one in SCORERS.values() if not one.measured)


def guarded_row(name, whole=False):
    return ROWS[",".join(f"{part}={weight:g}" for part, weight in guarded({name: 1.0}, whole).items())]


READERS = [name for name, one in SCORERS.items() if one.reads and one.measured]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", READERS)
def test_with_its_guard_a_scorer_falls_for_nothing_but_what_the_table_says(name, attack):
    assert (guarded_row(name)[attack] < SAFE) == (attack in SCORERS[name].left)
    assert guarded_row(name, whole=True)[attack] >= SAFE


@pytest.mark.parametrize("name", READERS)
def test_a_guard_makes_no_attack_unsafe_that_was_safe(name):
    assert set(SCORERS[name].left) <= set(SCORERS[name].falls_for)


@pytest.mark.parametrize(
    "row", [row for row in COMMITTED["rows"] if "=" in row["scorer"]], ids=lambda row: row["scorer"]
)
def test_a_mixture_that_was_measured_unsafe_is_refused_or_warned_of(row):
    parts = BENCH["parsed"](row["scorer"])
    if row["safe"]:
        check_reward(parts)
        assert warning(parts) is None
    elif guarded(parts) == parts:
        left = [attack for attack in ATTACKS if row[attack] < SAFE]
        assert f"still falls for {', '.join(left)};" in warning(parts)
    else:
        with pytest.raises(UsageError, match="falls for"):
            check_reward(parts)


def test_the_committed_row_of_a_mixture_is_what_it_does():
    weights = {"constraints": 1.0, "repetition": 0.25, "polarity": 0.25}
    mixed, cases = scorers.build(weights), BENCH["cases_of"]("constraints=1")
    alone, found = ROWS["constraints"], survival(mixed, cases, BENCH["columns_of"](mixed))
    assert all(found[attack] > alone[attack] for attack in ("repetition", "negation"))


FORMS = "novelty = 0.5, repetition = 0.5"


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("similarity", f"{{ similarity = 1, {FORMS} }}"),
        ({"similarity": 1.0, "novelty": 0.75}, "{ similarity = 1, novelty = 0.75, repetition = 0.5 }"),
        ({"similarity": 1.0, "novelty": 0.4, "repetition": 1.0}, "{ similarity = 1, novelty = 0.5, repetition = 1 }"),
        ({"similarity": 1.0, "novelty": -1.0}, f"{{ similarity = 1, {FORMS} }}"),
        ({"chrf": 2.0}, "{ chrf = 2, novelty = 1.5, repetition = 1, relevance = 1, polarity = 1 }"),
        (
            {"similarity": 1.0, "bleu": 1.0, "novelty": 0.5},
            "{ similarity = 1, bleu = 1, novelty = 1.25, repetition = 1, relevance = 0.5, polarity = 0.25 }",
        ),
        ("novelty", f"{{ novelty = 1, similarity = 1, {FORMS[FORMS.index('rep') :]} }}"),
        ("consistency", f"{{ consistency = 1, similarity = 1, {FORMS} }}"),
        (
            {"hidden-similarity": 2.0, "novelty": 1.0},
            "{ hidden-similarity = 2, novelty = 1, similarity = 2, repetition = 1 }",
        ),
        ({"similarity": 0.0, "novelty": 1.0}, "{ similarity = 1, novelty = 1, repetition = 0.5 }"),
        ({}, f"{{ similarity = 1, {FORMS} }}"),
        (
            "teacher-likelihood",
            "{ teacher-likelihood = 1, novelty = 4, repetition = 2, relevance = 2, polarity = 1.5 }",
        ),
        ("qa", "{ qa = 1, repetition = 0.5, relevance = 0.25, polarity = 0.25 }"),
        ("constraints", "{ constraints = 1, novelty = 0.5, repetition = 0.25, relevance = 0.25, polarity = 0.25 }"),
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
        {"judge": 1.0, "novelty": 0.5, "repetition": 0.5, "length": -0.2},
        {"reward-model": 2.0, "novelty": 1.0, "repetition": 1.0},
        {"similarity": 1.0, "novelty": 1.0, "repetition": 0.5, "relevance": 0.5, "polarity": 0.5},
        {"qa": 1.0, "repetition": 0.5, "relevance": 0.25, "polarity": 0.5},
    ],
)  # fmt: skip
def test_a_guarded_reward_passes_without_a_word(given, capsys):
    check_reward(given)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"similarity": 1.0, "novelty": 0.75, "repetition": 0.5},
            "similarity so guarded still falls for flattery, constant, negation; safer: "
            "scorer = { similarity = 1, novelty = 1, repetition = 0.5, relevance = 0.5, polarity = 0.5 }",
        ),
        (
            "judge",
            "what judge falls for was not measured: ask benchmarks/red_team.py; safer: "
            "scorer = { judge = 1, novelty = 0.5, repetition = 0.5 }",
        ),
        ({"reward-model": 1.0, "novelty": 0.5}, "what reward-model falls for was not measured"),
    ],
)
def test_what_is_left_open_is_said_in_one_line_with_what_mends_it(given, said, capsys):
    check_reward(given)
    err = capsys.readouterr().err
    assert err.startswith(f"warning: [align] scorer: {said}")
    assert err.count("\n") == 1


weights = st.dictionaries(st.sampled_from(sorted(SCORERS)), st.floats(-2, 2).map(lambda w: round(w, 2)), max_size=4)


@settings(derandomize=True, deadline=None)
@given(weights)
def test_what_is_proposed_passes_and_takes_nothing_away(given_weights):
    wanted = guarded(given_weights)
    assert guarded(wanted) == wanted
    assert all(wanted[name] >= weight for name, weight in given_weights.items())
    whole = guarded(given_weights, whole=True)
    assert guarded(whole) == whole
    assert warning(whole) is None


def test_the_message_says_what_it_falls_for():
    with pytest.raises(
        UsageError, match=r"similarity without novelty at 0.5 or more and repetition at 0.5 or more falls for echo, rep"
    ):
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


class Letters:
    """Unit vectors: one for each first letter."""

    name = "letters"

    def embed(self, texts):
        return np.array([[float(text[0] == chr(97 + letter)) for letter in range(26)] for text in texts], np.float32)


def test_relevance_is_the_cosine_to_the_request():
    found = scorers.build("relevance", embedder=Letters())(["abc", "abc", "", "abc"], ["and", "bad", "c", ""], [[]] * 4)
    assert found == [1.0, 0.0, None, 0.0]


def test_polarity_sees_a_denial_that_the_teacher_did_not_make():
    said = ["No, it is.", "It isn't so.", "I know it.", "One two three four five, not six.", "", "No."]
    asked = [["?"] * 6, said, [[]] * 6]
    assert scorers.build("polarity")(*asked, answer=["Yes."] * 5 + ["It is not."]) == [0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    assert scorers.build("polarity")(*asked)[5] == 0.0


def test_the_page_has_a_row_for_every_scorer():
    page = (ROOT / "docs" / "objectives.md").read_text()
    shown = page.split("<!-- scorers -->")[1].split("<!-- /scorers -->")[0].strip().splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in shown]
    assert [row[0].strip("`") for row in cells] == list(SCORERS)
    for name, *_, alone in cells:
        assert alone.startswith("unsafe") == SCORERS[name.strip("`")].unsafe_alone, name
