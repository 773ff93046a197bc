"""Scorers by name. Factories import what they need when they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rbalign.errors import UsageError, unknown
from rbalign.scorers.base import Scorer


def _similarity(**resources: Any) -> Scorer:
    from rbalign.scorers.similarity import Similarity

    return Similarity(**resources)


def _chrf(**resources: Any) -> Scorer:
    from rbalign.scorers.chrf import ChrF

    return ChrF(**resources)


def _likelihood(**resources: Any) -> Scorer:
    from rbalign.scorers.likelihood import TeacherLikelihood

    return TeacherLikelihood(**resources)


def _qa(**resources: Any) -> Scorer:
    from rbalign.scorers.qa import QuestionAnswering

    return QuestionAnswering(**resources)


FACTORIES: dict[str, Callable[..., Scorer]] = {
    "similarity": _similarity,
    "chrf": _chrf,
    "teacher-likelihood": _likelihood,
    "qa": _qa,
}


def names() -> list[str]:
    """Every scorer's name, sorted."""
    return sorted(FACTORIES)


def build(name: str, **resources: Any) -> Scorer:
    """The scorer called `name`. Resources are its constructor's arguments, for example `against="reference"`."""
    if name not in FACTORIES:
        raise unknown("scorer", name, FACTORIES, "see `rba list scorers`")
    try:
        return FACTORIES[name](**resources)
    except TypeError as error:
        raise UsageError(f"scorer {name!r}: {error}", "give only arguments that its constructor names") from error
