"""Scorers by name, and what each falls for as a reward. A scorer's module is imported when the scorer is built.

The red team (`benchmarks/red_team.py`, results/benchmarks/red_team.json) asks of a scorer how often degenerate answers
stay below the median honest one. What fails any attack is unsafe alone: a policy finds it. Then a recipe must mix in
the guard that mends what it falls for most, and a scorer that reads answers at all.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rbalign.errors import UsageError, unknown
from rbalign.scorers.base import Scorer


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a scorer is, and whether it can be a reward by itself."""

    module: str
    """Of this package."""
    kind: str
    """The class."""
    falls_for: tuple[str, ...] = ()
    """Attacks of `red_team` that stay below honest answers on fewer than 95 % of the requests. Any: unsafe alone."""
    guard: Mapping[str, float] = field(default_factory=dict)
    """Scorer -> the least weight, for each 1 of this one, that mends what this one falls for most (measured)."""
    reads: bool = True
    """It sees whether an answer is good. False: it sees form or likeness only, and needs one beside it that does."""

    @property
    def unsafe_alone(self) -> bool:
        """Whether a recipe may not take it as its only reward."""
        return bool(self.falls_for) or not self.reads


_OVERLAP = ("echo", "repetition", "flattery", "constant", "negation")
SCORERS: Mapping[str, Entry] = {
    "similarity": Entry("similarity", "Similarity", _OVERLAP, {"novelty": 0.5}),
    "chrf": Entry("overlap", "ChrF", _OVERLAP, {"novelty": 0.5}),
    "bleu": Entry("overlap", "Bleu", ("echo", "repetition", "wrong script", *_OVERLAP[2:]), {"novelty": 0.5}),
    # Novelty and repetition alone make a constant refusal beat honest answers on 69 % of the requests.
    "teacher-likelihood": Entry(
        "likelihood",
        "TeacherLikelihood",
        ("echo", "repetition", "wrong script", "constant", "negation"),
        {"similarity": 4.0, "novelty": 2.0, "repetition": 4.0},
    ),
    "qa": Entry("qa", "QuestionAnswering"),
    "qa-ultraeval": Entry("qa", "UltraEvalAnswering"),
    "qa-vocalbench": Entry("qa", "VocalBenchAnswering"),
    "constraints": Entry("constraints", "Constraints"),
    "length": Entry("form", "Length", ("echo", "wrong script", "flattery", "constant", "negation"), reads=False),
    "repetition": Entry(
        "form", "Repetition", ("echo", "wrong script", "flattery", "constant", "negation"), reads=False
    ),
    "novelty": Entry(
        "form", "Novelty", ("repetition", "wrong script", "flattery", "constant", "negation"), reads=False
    ),
    "language": Entry("form", "Language", _OVERLAP, reads=False),
    "consistency": Entry("consistency", "Consistency", reads=False),
    "hidden-similarity": Entry("likelihood", "HiddenSimilarity", reads=False),
    "reward-model": Entry("reward", "RewardModel"),
    "judge": Entry("judged", "Judged"),
}
"""Every scorer. qa and constraints want columns that the red team's requests do not have; what a reward model or a
judge falls for depends on the model: ask `benchmarks/red_team.py --reward-model FOLDER` or `--judge JUDGE.toml`."""

READER = "similarity"
"""What is proposed beside scorers that read no answer."""


def names() -> list[str]:
    """Every scorer's name, sorted."""
    return sorted(SCORERS)


def entry(name: str) -> Entry:
    """What is known of a scorer; UsageError for an unknown name."""
    if name not in SCORERS:
        raise unknown("scorer", name, SCORERS, "see `rba list scorers`")
    return SCORERS[name]


def build(name: str | Mapping[str, float], **resources: Any) -> Scorer:
    """The scorer called `name`, or the weighted sum of several.

    Resources are arguments of the scorer's constructor, for example `against="reference"`; of a sum the arguments by
    scorer, `**{"reward-model": {"folder": ...}}`.
    """
    if not isinstance(name, str):
        from rbalign.scorers.weighted import Weighted

        return Weighted({part: (build(part, **resources.get(part, {})), weight) for part, weight in name.items()})
    found = entry(name)
    try:
        made: Scorer = getattr(importlib.import_module(f"rbalign.scorers.{found.module}"), found.kind)(**resources)
    except TypeError as error:
        raise UsageError(f"scorer {name!r}: {error}", "give only arguments that its constructor names") from error
    return made


def check_reward(scorer: str | Mapping[str, float]) -> None:
    """UsageError for a reward that is unsafe alone and lacks its guard; the cure is the line to write."""
    parts = {scorer: 1.0} if isinstance(scorer, str) else dict(scorer)
    for name in parts:
        entry(name)
    wanted = guarded(parts)
    if wanted == parts:
        return
    written = ", ".join(f"{name} = {weight:g}" for name, weight in wanted.items())
    raise UsageError(
        f"[align] scorer: {_lack(parts, wanted)}", f"write scorer = {{ {written} }}; see docs/objectives.md"
    )


def guarded(parts: Mapping[str, float]) -> dict[str, float]:
    """The same reward with what it lacks: a scorer that reads answers, and each one's guard at its least weight.

    A guard may want a guard of its own: of two that want the same one, the weights add up.
    """
    whole = dict(parts)
    if not any(weight > 0 and SCORERS[name].reads for name, weight in whole.items()):
        whole[READER] = max([1.0, *whole.values()])
    while True:
        least: dict[str, float] = {}
        for name, weight in whole.items():
            for guard, ratio in SCORERS[name].guard.items():
                least[guard] = least.get(guard, 0.0) + ratio * max(0.0, weight)
        lacking = {name: weight for name, weight in least.items() if whole.get(name, 0.0) < weight}
        if not lacking:
            return whole
        whole |= lacking


def _lack(parts: Mapping[str, float], wanted: Mapping[str, float]) -> str:
    """Why a reward is refused, in a few words."""
    if not any(weight > 0 and SCORERS[name].reads for name, weight in parts.items()):
        return f"{' and '.join(parts) or 'nothing'} alone cannot tell a good answer from a bad one"
    unsafe = [name for name, weight in parts.items() if weight > 0 and SCORERS[name].guard]
    attacks = dict.fromkeys(attack for name in unsafe for attack in SCORERS[name].falls_for)
    lacks = [f"{name} at {weight:g} or more" for name, weight in wanted.items() if parts.get(name) != weight]
    return f"{' and '.join(unsafe)} without {' and '.join(lacks)} falls for {', '.join(attacks)}"
