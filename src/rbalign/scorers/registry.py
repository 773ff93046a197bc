"""Scorers by name. A scorer's module is imported when the scorer is built."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from rbalign.errors import UsageError, unknown
from rbalign.scorers.base import Scorer

CLASSES = {
    "similarity": ("similarity", "Similarity"),
    "chrf": ("overlap", "ChrF"),
    "bleu": ("overlap", "Bleu"),
    "teacher-likelihood": ("likelihood", "TeacherLikelihood"),
    "qa": ("qa", "QuestionAnswering"),
    "qa-ultraeval": ("qa", "UltraEvalAnswering"),
    "qa-vocalbench": ("qa", "VocalBenchAnswering"),
    "constraints": ("constraints", "Constraints"),
    "length": ("form", "Length"),
    "repetition": ("form", "Repetition"),
    "novelty": ("form", "Novelty"),
    "language": ("form", "Language"),
    "consistency": ("consistency", "Consistency"),
    "hidden-similarity": ("likelihood", "HiddenSimilarity"),
    "reward-model": ("reward", "RewardModel"),
    "judge": ("judged", "Judged"),
}
"""Name -> (module of this package, class)."""


def names() -> list[str]:
    """Every scorer's name, sorted."""
    return sorted(CLASSES)


def build(name: str | Mapping[str, float], **resources: Any) -> Scorer:
    """The scorer called `name`, or the weighted sum of several. Resources are arguments of one scorer's constructor,
    for example `against="reference"`."""
    if not isinstance(name, str):
        from rbalign.scorers.weighted import Weighted

        return Weighted({part: (build(part), weight) for part, weight in name.items()})
    if name not in CLASSES:
        raise unknown("scorer", name, CLASSES, "see `rba list scorers`")
    module, kind = CLASSES[name]
    try:
        made: Scorer = getattr(importlib.import_module(f"rbalign.scorers.{module}"), kind)(**resources)
    except TypeError as error:
        raise UsageError(f"scorer {name!r}: {error}", "give only arguments that its constructor names") from error
    return made
