"""What each arm trains by: a weighted mixture of the terms that `train/objectives.py` computes. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TERMS = {
    "ce": "cross-entropy on the teacher's answer, given the speech",
    "kd": "KL from the teacher on text to the student on speech, on the teacher's answer",
    "single": "the teacher's answer preferred over the model's own sample, for every voice",
    "group": "the best of the samples over all voices preferred over the worst, by a scorer",
    "grpo": "own samples weighed by their score beside all samples of all voices of the instruction",
    "opd": "KL from the student on speech to the teacher on text, on the student's own samples",
}
"""Terms, one line each."""

NEEDS = {
    "ce": frozenset({"answer"}),
    "kd": frozenset({"answer", "logits", "teacher"}),
    "single": frozenset({"answer", "samples", "pairs", "reference"}),
    "group": frozenset({"samples", "scores", "pairs", "reference"}),
    "grpo": frozenset({"samples", "scores"}),
    "opd": frozenset({"samples", "logits", "teacher"}),
}
"""What a term must be given: the teacher's answer, own samples (scored, or in pairs), the reference policy's log-probs,
whole distributions of the student, the text teacher's distributions."""

CE_WEIGHT = None
"""In ARMS: the recipe's `ce_weight`."""

ARMS: Mapping[str, Mapping[str, float | None]] = {
    "sft": {"ce": 1.0},
    "kd": {"kd": 1.0},
    "rba-single": {"single": 1.0, "ce": CE_WEIGHT},
    "rba-group": {"group": 1.0, "ce": CE_WEIGHT},
    "grpo": {"grpo": 1.0},
    "opd": {"opd": 1.0},
}
"""Named arms. A recipe adds its own under [align.mixtures]."""

MATCHED = "-matched"
"""Ends the name of an arm that trains until its counted operations equal those of the run's RBA arm."""
MATCHING = {
    "sft" + MATCHED: "sft for as many updates as spend the operations of the run's RBA arm",
    "kd" + MATCHED: "kd likewise",
}
"""Arms that do, one line each."""


def objective(arm: str) -> str:
    """What an arm trains by: `sft-matched` by `sft`."""
    return arm.removesuffix(MATCHED)


def needs(mixture: Iterable[str]) -> frozenset[str]:
    """What the terms of a mixture must be given together."""
    return frozenset().union(*(NEEDS[term] for term in mixture))
