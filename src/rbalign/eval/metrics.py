"""Every metric's name, direction and right to be a headline, and which objective optimises what. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from rbalign.config.mixtures import needs


@dataclass(frozen=True, slots=True)
class Metric:
    """What a column of numbers means."""

    name: str
    label: str
    reference: str
    """What an answer is held against."""
    higher_is_better: bool | None = True
    """None: neither end is good (length, truncation); shown, never compared."""
    headline: bool = False
    """May carry the claim: no objective rewards it."""
    floor: float | None = None
    """What an answer that failed (an error, nothing said) scores: failed items stay in the denominator."""
    digits: int = 3


_METRICS = (
    Metric("chrf", "chrF", "independent teacher sample", headline=True, floor=0.0),
    Metric("wordllama", "similarity (WordLlama)", "independent teacher sample", headline=True, floor=0.0),
    Metric("similarity", "similarity (MiniLM)", "independent teacher sample", floor=0.0),
    Metric("similarity-answer", "similarity (MiniLM) to y_ref", "y_ref", floor=0.0),
    Metric("teacher-likelihood", "teacher's log-likelihood a token", "text teacher"),
    Metric("qa", "QA accuracy", "accepted answers", headline=True, floor=0.0),
    Metric("flip-rate", "QA flip rate between voices", "accepted answers", higher_is_better=False),
    Metric("nll", "NLL of y_ref a token", "y_ref", higher_is_better=False),
    Metric("wer", "WER of what was heard", "spoken text", higher_is_better=False),
    Metric("tokens", "tokens an answer", "", higher_is_better=None, digits=1),
    Metric("truncated", "answers cut at the limit", "", higher_is_better=None),
    Metric("surprisal", "own surprisal a token", "", higher_is_better=None),
    Metric("echo", "share of the request's words said again", "", higher_is_better=None),
    Metric("failed", "items that failed", "", higher_is_better=None),
)
METRICS = {metric.name: metric for metric in _METRICS}

EMBEDDERS = {"similarity": "minilm", "wordllama": "wordllama"}
"""Metrics that are a cosine, and the embedder that each uses."""


def optimised_by(terms: Iterable[str], scorer: str | Mapping[str, float] = "similarity") -> frozenset[str]:
    """Metrics that the terms of an arm's mixture raise by themselves; they never judge it.

    ce, kd and single pull y_ref up (RBA-Single's expected gradient at the start is SFT's) and opd pulls towards the
    teacher's distribution, so teacher likelihood and the NLL of y_ref are theirs; terms that are rewarded taint what
    they are rewarded with. A reward by an embedder taints every cosine of that embedder.
    """
    tainted: set[str] = set()
    if not {"ce", "kd", "single", "opd"}.isdisjoint(terms := set(terms)):
        tainted |= {"teacher-likelihood", "nll"}
    if "scores" in needs(terms):
        tainted.update([scorer] if isinstance(scorer, str) else scorer)
        if "similarity" in tainted:
            tainted |= {"similarity-answer", "consistency:minilm"}
        if "consistency" in tainted:
            tainted.add("consistency:minilm")
        if any(name.startswith("qa-") for name in tainted):  # another rule for the same accepted answers
            tainted.add("qa")
    return frozenset(tainted)


def raised(optimised: Collection[str], metric: str, part: str = "", judge: str = "", scorer: str = "") -> bool:
    """Whether a figure, or a sample's score, of a benchmark is one of the metrics that an arm optimises (paper.md,
    section 5). judge: who said which answer wins; scorer: which rule marked answers right."""
    name = metric.partition("@")[0].removeprefix("lc_")
    if name in ("win", "winrate"):
        name = judge
    elif name in ("consistency", "cross_view", "floor", "ceiling"):
        name = f"consistency:{part}"
    elif name in ("followed", "rate", "if_rate", "delta"):
        name = "constraints"
    elif name in ("accuracy", "score", "worst_voice", "worst_view", "pass^K", "flip_rate", "relative_accuracy"):
        name = "chrf" if scorer == "chrf" else "qa"
    return {"minilm": "similarity", "chrf++": "chrf"}.get(name, name) in optimised


def headlines(present: Iterable[str]) -> list[str]:
    """The headline metrics among those present, in the order of the table."""
    names = set(present)
    return [metric.name for metric in _METRICS if metric.headline and metric.name in names]
