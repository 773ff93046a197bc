"""Scorers by name, and what each falls for as a reward. A scorer's module is imported when the scorer is built.

The red team (`benchmarks/red_team.py`, results/benchmarks/red_team.json) asks of a scorer how often degenerate answers
stay below the median honest one. What fails any attack, or was never asked, is unsafe alone: a policy finds it. Then a
recipe must mix in the guard that was measured beside it, and a scorer that reads answers at all.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rbalign.errors import UsageError, unknown
from rbalign.rundir.progress import note
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
    """Scorer -> the least weight for each 1 of this one (measured). A reward without it is refused."""
    left: tuple[str, ...] = ()
    """What it falls for with the guard, too. Then, and if not measured, a reward without `mend` gets a warning."""
    mend: Mapping[str, float] = field(default_factory=dict)
    """As `guard`, and with it nothing is left."""
    reads: bool = True
    """It sees whether an answer is good. False: it sees form or likeness only, and needs one beside it that does."""
    measured: bool = True
    """The red team asked it. False: what it falls for depends on a model of the user's, or takes one that hears."""

    @property
    def unsafe_alone(self) -> bool:
        """Whether it fails as the only reward, or nobody knows."""
        return bool(self.falls_for) or not self.reads or not self.measured


_ALL = ("echo", "repetition", "wrong script", "flattery", "constant", "negation")
_OVERLAP = ("echo", "repetition", "flattery", "constant", "negation")
_ANSWERS = {"repetition": 0.5, "relevance": 0.25, "polarity": 0.25}
_FORMS = {"novelty": 0.5, "repetition": 0.5}
"""Against the request said again and the answer without end."""
SCORERS: Mapping[str, Entry] = {
    # Warned of and not refused without what mends it: no run has been trained with all five yet.
    "similarity": Entry(
        "similarity",
        "Similarity",
        _OVERLAP,
        guard=_FORMS,
        left=("flattery", "constant", "negation"),
        mend={"novelty": 1.0, "repetition": 0.5, "relevance": 0.5, "polarity": 0.5},
    ),
    "chrf": Entry("overlap", "ChrF", _OVERLAP, {"novelty": 0.75, "repetition": 0.5, "relevance": 0.5, "polarity": 0.5}),
    # Novelty alone, or with repetition, leaves it worse than bare: a refusal is as new as an honest answer.
    "bleu": Entry("overlap", "Bleu", _ALL, {"novelty": 0.75, "repetition": 0.5, "relevance": 0.5, "polarity": 0.25}),
    "teacher-likelihood": Entry(
        "likelihood",
        "TeacherLikelihood",
        ("echo", "repetition", "wrong script", "constant", "negation"),
        {"novelty": 4.0, "repetition": 2.0, "relevance": 2.0, "polarity": 1.5},
    ),
    "qa": Entry("qa", "QuestionAnswering", ("repetition", "negation"), _ANSWERS),
    "qa-ultraeval": Entry("qa", "UltraEvalAnswering", ("repetition", "negation"), _ANSWERS),
    "qa-vocalbench": Entry("qa", "VocalBenchAnswering", ("repetition", "negation"), _ANSWERS),
    "constraints": Entry(
        "constraints", "Constraints", _ALL, {"novelty": 0.5, "repetition": 0.25, "relevance": 0.25, "polarity": 0.25}
    ),
    "length": Entry("form", "Length", ("echo", "wrong script", "flattery", "constant", "negation"), reads=False),
    "repetition": Entry(
        "form", "Repetition", ("echo", "wrong script", "flattery", "constant", "negation"), reads=False
    ),
    "novelty": Entry(
        "form", "Novelty", ("repetition", "wrong script", "flattery", "constant", "negation"), reads=False
    ),
    "language": Entry("form", "Language", _OVERLAP, reads=False),
    "relevance": Entry("similarity", "Relevance", ("echo", "negation"), reads=False),
    "polarity": Entry("form", "Polarity", _ALL, reads=False),
    "consistency": Entry("consistency", "Consistency", _ALL, reads=False),
    "hidden-similarity": Entry("likelihood", "HiddenSimilarity", reads=False, measured=False),
    "reward-model": Entry("reward", "RewardModel", mend=_FORMS, measured=False),
    "judge": Entry("judged", "Judged", mend=_FORMS, measured=False),
}
"""Every scorer. What a reward model or a judge falls for depends on the model: ask `benchmarks/red_team.py
--reward-model FOLDER` or `--judge JUDGE.toml`."""

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
    """UsageError for a reward that is unsafe alone and lacks its guard; the cure is the line to write.

    What is left open beside the guard is said in one line on stderr.
    """
    parts = {scorer: 1.0} if isinstance(scorer, str) else dict(scorer)
    for name in parts:
        entry(name)
    wanted = guarded(parts)
    if wanted != parts:
        raise UsageError(f"[align] scorer: {_lack(parts, wanted)}", f"write {_written(wanted)}; see docs/objectives.md")
    open_to = warning(parts)
    if open_to is not None:
        note(open_to)


def guarded(parts: Mapping[str, float], whole: bool = False) -> dict[str, float]:
    """The same reward with what it lacks: a scorer that reads answers, and each one's guard at its least weight.

    `whole`: with all that mends it. A guard may want a guard of its own: of two that want the same, weights add up.
    """
    full = dict(parts)
    if not any(weight > 0 and SCORERS[name].reads for name, weight in full.items()):
        full[READER] = max([1.0, *full.values()])
    while True:
        least: dict[str, float] = {}
        for name, weight in full.items():
            own = SCORERS[name]
            for guard, ratio in (own.mend if whole and own.mend else own.guard).items():
                least[guard] = least.get(guard, 0.0) + ratio * max(0.0, weight)
        lacking = {name: weight for name, weight in least.items() if full.get(name, 0.0) < weight}
        if not lacking:
            return full
        full |= lacking


def warning(parts: Mapping[str, float]) -> str | None:
    """What a guarded reward falls for still, and the line that mends it; None where nothing is known to be left."""
    wanted = guarded(parts, whole=True)
    if wanted == parts:
        return None
    known = [name for name, weight in parts.items() if weight > 0 and SCORERS[name].mend]
    left = dict.fromkeys(attack for name in known for attack in SCORERS[name].left)
    unknown_of = [name for name in known if not SCORERS[name].measured]
    said = [
        f"{' and '.join(name for name in known if SCORERS[name].left)} so guarded still falls for {', '.join(left)}"
    ]
    asked = f"what {' and '.join(unknown_of)} falls for was not measured: ask benchmarks/red_team.py"
    why = "; ".join([*(said if left else []), *([asked] if unknown_of else [])])
    return f"warning: [align] scorer: {why}; safer: {_written(wanted)}"


def _written(parts: Mapping[str, float]) -> str:
    return f"scorer = {{ {', '.join(f'{name} = {weight:g}' for name, weight in parts.items())} }}"


def _lack(parts: Mapping[str, float], wanted: Mapping[str, float]) -> str:
    """Why a reward is refused, in a few words."""
    if not any(weight > 0 and SCORERS[name].reads for name, weight in parts.items()):
        return f"{' and '.join(parts) or 'nothing'} alone cannot tell a good answer from a bad one"
    unsafe = [name for name, weight in parts.items() if weight > 0 and SCORERS[name].guard]
    attacks = dict.fromkeys(attack for name in unsafe for attack in SCORERS[name].falls_for)
    lacks = [f"{name} at {weight:g} or more" for name, weight in wanted.items() if parts.get(name) != weight]
    return f"{' and '.join(unsafe)} without {' and '.join(lacks)} falls for {', '.join(attacks)}"
