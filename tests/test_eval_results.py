"""results.json from made-up answers with known effects: the gap comes out, order does not matter, nobody cheats."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from rbalign.eval.metrics import optimised_by
from rbalign.eval.results import Evidence, Subject, build
from rbalign.eval.table import Table

N = 60
EXAMPLES = [f"e{i:03d}" for i in range(N)]
VOICES = ["bella", "emma", "george", "lewis"]


def rows(mean, *, spread=0.1, voice_shift=(0, 0, 0, 0), metric="chrf", key=0, views=4, item=True):
    """Score rows: a shared item effect, a voice effect, noise. Item noise is common to all subjects: paired."""
    common = np.random.default_rng(7).normal(0, 0.1 if item else 0.0, N)
    noise = np.random.default_rng(key).normal(0, spread, (N, views))
    return [
        {
            "id": f"{example}/{v}/0",
            "example": example,
            "view": v,
            "sample": 0,
            "voice": VOICES[v],
            "scores": {metric: float(mean + common[i] + voice_shift[v] + noise[i, v]), "tokens": 20.0},
            "wer": [v, 10],
        }
        for i, example in enumerate(EXAMPLES)
        for v in range(views)
    ]


def evidence(**changes):
    subjects = [
        Subject("base"),
        Subject("sft", (0,), optimised_by(["ce"])),
        Subject("rba-single", (0, 1), optimised_by(["single", "ce"])),
        Subject("text"),
        Subject("self-cascade"),
    ]
    scores = {
        ("base", None, "open"): rows(0.30, key=1),
        ("sft", 0, "open"): rows(0.35, key=2),
        ("rba-single", 0, "open"): rows(0.40, key=3, voice_shift=(0, 0, 0, -0.2)),
        ("rba-single", 1, "open"): rows(0.42, key=4, voice_shift=(0, 0, 0, -0.2)),
        ("text", None, "open"): rows(0.50, key=5),
        ("self-cascade", None, "open"): rows(0.45, key=6),
        ("sft", 0, "open-text"): rows(0.48, key=8, views=1),
        ("rba-single", 0, "open-wrong-audio"): rows(0.1, key=9, views=1),
        ("rba-single", 1, "open-wrong-audio"): rows(0.1, key=10, views=1),
    }
    tasks = ["open", "open-text", "open-wrong-audio"]
    return Evidence(subjects, dict.fromkeys(tasks, EXAMPLES), scores | changes.pop("scores", {}), **changes)


def find(results, arm, metric, task="open", seed=None):
    own = [r for r in results["rows"] if (r["arm"], r["metric"], r["task"]) == (arm, metric, task)]
    return next(r for r in own if seed is None or r["seed"] == seed)


def comparison(results, a, b, metric="chrf"):
    return next(r for r in results["comparisons"] if (r["a"], r["b"], r["metric"]) == (a, b, metric))


@pytest.fixture(scope="module")
def results():
    return build(evidence(), resamples=600, seed=0)


def test_known_gap_comes_out(results):
    sft, single = find(results, "sft", "gap-closed@chrf"), find(results, "rba-single", "gap-closed@chrf")
    assert sft["value"] == pytest.approx(0.25, abs=0.08)
    assert sft["ci_low"] < 0.25 < sft["ci_high"]
    assert single["value"] == pytest.approx((0.41 - 0.05 - 0.30) / 0.2, abs=0.08)
    assert find(results, "sft", "chrf", "open-text")["value"] == pytest.approx(0.48, abs=0.06)


def test_row_contract(results):
    keys = {"arm", "task", "metric", "value", "ci_low", "ci_high", "n", "reference", "protocol", "optimised", "seed"}
    assert all(keys <= row.keys() for row in results["rows"])
    assert {row["n"] for row in results["rows"] if row["metric"] == "chrf"} == {N}
    json.dumps(results, allow_nan=False)


def test_seeds_are_shown_and_pooled(results):
    pooled = [r for r in results["rows"] if (r["arm"], r["metric"], r["task"]) == ("rba-single", "chrf", "open")]
    assert [r["seed"] for r in pooled] == [None, 0, 1]
    assert pooled[0]["value"] == pytest.approx((pooled[1]["value"] + pooled[2]["value"]) / 2, abs=1e-5)
    assert pooled[0]["n"] == N
    assert find(results, "sft", "chrf")["seed"] == 0


def test_worst_voice_is_the_shifted_one(results):
    worst = find(results, "rba-single", "chrf/worst-voice")
    assert worst["voice"] == "lewis"
    assert worst["value"] == pytest.approx(find(results, "rba-single", "chrf")["value"] - 0.15, abs=0.03)
    wer = find(results, "base", "wer")
    assert wer["value"] == pytest.approx(6 / 40)
    assert find(results, "base", "wer/worst-voice")["value"] == pytest.approx(0.3)


def test_accuracy_where_the_text_llm_is_right():
    def marks(values):
        return [
            {"example": e, "view": 0, "sample": 0, "voice": "x", "scores": {"qa": float(v)}, "wer": None}
            for e, v in zip(EXAMPLES, values, strict=True)
        ]

    right = [1] * 40 + [0] * 20
    heard = [1] * 30 + [0] * 10 + [1] * 10 + [0] * 10
    scores = {("base", None, "qa"): marks(heard), ("text", None, "qa"): marks(right)}
    found = build(Evidence([Subject("base"), Subject("text")], {"qa": EXAMPLES}, scores), resamples=200, seed=0)
    row = find(found, "base", "qa/where-text-right", "qa")
    assert (row["value"], row["n"]) == (0.75, 40)
    assert find(found, "base", "qa", "qa")["value"] == pytest.approx(40 / 60, abs=1e-6)


def test_order_of_rows_changes_nothing(results):
    shuffled = evidence().scores
    for own in shuffled.values():
        random.Random(3).shuffle(own)
    assert build(evidence(scores=shuffled), resamples=600, seed=0) == results


def test_comparisons_are_paired_adjusted_and_flagged(results):
    row = comparison(results, "sft", "base")
    assert row["difference"] == pytest.approx(0.05, abs=0.02)
    assert row["wins"] + row["losses"] + row["ties"] == N
    assert row["headline"]
    assert row["p_holm"] >= row["p"]
    assert not comparison(results, "text", "base")["headline"]
    hearing = comparison(results, "rba-single", "rba-single-wrong-audio")
    assert hearing["difference"] > 0.2
    assert hearing["p_holm"] is None
    assert comparison(results, "sft-text", "text")["difference"] == pytest.approx(-0.02, abs=0.05)
    assert comparison(results, "text", "self-cascade")["difference"] == pytest.approx(0.05, abs=0.02)


def test_optimised_metrics_are_never_headlines():
    scores = {
        (name, seed, "open"): [{**row, "scores": {"similarity": row["scores"]["chrf"], "nll": 1.0}} for row in own]
        for (name, seed, task), own in evidence().scores.items()
        if task == "open"
    }
    subjects = [Subject("base"), Subject("rba-group", (0,), optimised_by(["group", "ce"])), Subject("text")]
    scores[("rba-group", 0, "open")] = scores[("sft", 0, "open")]
    found = build(Evidence(subjects, {"open": EXAMPLES}, scores), resamples=100, seed=0)
    assert find(found, "rba-group", "similarity")["optimised"]
    assert find(found, "rba-group", "gap-closed@similarity")["optimised"]
    assert find(found, "rba-group", "nll")["optimised"]
    assert not find(found, "base", "similarity")["optimised"]
    assert not any(row["headline"] for row in found["comparisons"])


@pytest.mark.parametrize(
    ("terms", "settings", "optimised", "free"),
    [
        (["ce"], {}, {"nll", "teacher-likelihood"}, {"chrf", "qa", "similarity"}),
        (["kd"], {}, {"nll", "teacher-likelihood"}, {"chrf", "qa"}),
        (["group"], {}, {"similarity", "consistency:minilm"}, {"nll", "chrf", "wordllama"}),
        (["group", "ce"], {}, {"similarity", "nll"}, {"chrf", "wordllama"}),
        (["grpo"], {"scorer": "chrf"}, {"chrf"}, {"similarity", "wordllama"}),
        ([], {}, set(), {"nll"}),
        (["opd"], {}, {"nll", "teacher-likelihood"}, {"chrf", "qa", "similarity"}),
    ],
)
def test_who_optimises_what(terms, settings, optimised, free):
    names = optimised_by(terms, **settings)
    assert optimised <= names
    assert not free & names


def test_no_gap_is_not_printed():
    found = build(evidence(scores={("text", None, "open"): rows(0.30, key=77)}), resamples=400, seed=0)
    row = find(found, "sft", "gap-closed@chrf")
    assert row["value"] is None
    assert "no gap" in row["note"]


def test_failed_items_stay_in_the_denominator():
    broken = rows(0.4, key=3)
    for row in broken[: 4 * 30]:
        row["scores"]["chrf"] = 0.0
        row["scores"]["failed"] = 1.0
    for row in broken[4 * 30 :]:
        row["scores"]["failed"] = 0.0
    found = build(evidence(scores={("sft", 0, "open"): broken}), resamples=100, seed=0)
    assert find(found, "sft", "chrf")["n"] == N
    assert find(found, "sft", "chrf")["value"] == pytest.approx(0.2, abs=0.04)
    assert find(found, "sft", "failed")["value"] == pytest.approx(0.5)


def test_unscored_is_counted_and_is_not_zero():
    table_rows = rows(0.4)
    for row in table_rows[:4]:
        row["scores"]["chrf"] = None
    table = Table(EXAMPLES, table_rows)
    assert table.unscored("chrf") == 4
    assert np.isnan(table.values("chrf")[0])
    assert np.nanmean(table.values("chrf")) > 0.35


def test_further_samples_serve_consistency_alone():
    plain = rows(0.4)
    more = [{**row, "sample": 1, "scores": {"chrf": 9.0}} for row in plain[::4]]
    assert np.array_equal(Table(EXAMPLES, plain + more).values("chrf"), Table(EXAMPLES, plain).values("chrf"))


def test_a_rewarded_headline_metric_judges_nobody():
    rewarded = Subject("rba-group", (0,), optimised_by(["group"], "chrf"))
    subjects = [Subject("base"), Subject("sft", (0,), optimised_by(["ce"])), rewarded]
    own = {("base", None, "open"): rows(0.3, key=1), ("sft", 0, "open"): rows(0.3, key=2)}
    own["rba-group", 0, "open"] = rows(0.5, key=3)
    found = build(Evidence(subjects, {"open": EXAMPLES}, own), resamples=100, seed=0)
    assert comparison(found, "sft", "base")["headline"]
    for rival in ("base", "sft"):
        row = comparison(found, "rba-group", rival)
        assert row["optimised"]
        assert not row["headline"]
        assert row["p_holm"] is None


def test_flip_rate():
    marks = {0: [1, 1], 1: [1, 0], 2: [0, 0]}
    table_rows = [
        {"example": EXAMPLES[i], "view": v, "sample": 0, "voice": VOICES[v], "scores": {"qa": float(m)}, "wer": None}
        for i, own in marks.items()
        for v, m in enumerate(own)
    ]
    flips = Table(EXAMPLES[:4], table_rows).flips()
    assert flips[:3].tolist() == [0.0, 1.0, 0.0]
    assert np.isnan(flips[3])


def answer_rows(write):
    """Four voices and one more sample on the first clip."""
    places = [(example, v, 0) for example in EXAMPLES for v in range(4)] + [(example, 0, 1) for example in EXAMPLES]
    return [
        {"id": f"{e}/{v}/{s}", "example": e, "view": v, "sample": s, "voice": VOICES[v], "answer": write(e, v, s)}
        for e, v, s in places
    ]


def word_vectors(texts):
    """Each word a random direction; a text is their mean."""
    out = np.zeros((len(texts), 64))
    for i, text in enumerate(texts):
        for word in text.split():
            out[i] += np.random.default_rng(sum(map(ord, word)) * 7919 + len(word)).normal(size=64)
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def test_constant_answerer_has_raw_consistency_one_and_no_headline():
    def honest(example, view, sample):
        return f"topic{example} about {example} voice{view % 2} draw{sample}{view}"

    answers = {
        ("base", None, "open"): answer_rows(honest),
        ("sft", 0, "open"): answer_rows(lambda *_: "I am happy to help you"),
        ("text", None, "open"): answer_rows(lambda e, v, s: f"topic{e} about {e} draw{s}{v}"),
    }
    subjects = [Subject("base"), Subject("sft", (0,)), Subject("text")]
    scores = {
        ("base", None, "open"): rows(0.3, key=1),
        ("sft", 0, "open"): rows(0.05, key=2),
        ("text", None, "open"): rows(0.5, key=5),
    }
    setup = Evidence(subjects, {"open": EXAMPLES}, scores, answers, {"words": word_vectors})
    found = build(setup, resamples=200, seed=0)
    constant = find(found, "sft", "consistency:words/headline")
    assert find(found, "sft", "consistency:words/raw")["value"] == pytest.approx(1.0)
    assert constant["value"] is None
    assert "not defined" in constant["note"]
    assert find(found, "text", "consistency:words/headline")["value"] == pytest.approx(1.0, abs=0.1)
    assert find(found, "base", "consistency:words/headline")["value"] < 1.0
    assert find(found, "sft", "gap-closed@chrf")["value"] < 0
    assert not [row for row in found["comparisons"] if row["metric"] == "consistency:words"]


def test_a_steadier_arm_is_found_and_claims_no_headline():
    def bound(example, view, sample):
        return f"topic{example} about {example} voice{view} draw{sample}{view}"

    def steady(example, view, sample):
        return f"topic{example} about {example} {example} draw{sample}{view}"

    answers = {("base", None, "open"): answer_rows(bound), ("sft", 0, "open"): answer_rows(steady)}
    scores = {("base", None, "open"): rows(0.3, key=1), ("sft", 0, "open"): rows(0.3, key=2)}
    subjects = [Subject("base"), Subject("sft", (0,))]
    setup = Evidence(subjects, {"open": EXAMPLES}, scores, answers, {"words": word_vectors})
    row = comparison(build(setup, resamples=200, seed=0), "sft", "base", "consistency:words")
    assert row["difference"] > 0
    assert row["ci_low"] > 0
    assert not row["headline"]
