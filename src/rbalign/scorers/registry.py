"""Scorers by name. Factories import what they need when they are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def _bleu(**resources: Any) -> Scorer:
    from rbalign.scorers.bleu import Bleu

    return Bleu(**resources)


def _constraints(**resources: Any) -> Scorer:
    from rbalign.scorers.constraints import Constraints

    return Constraints(**resources)


def _form(name: str) -> Callable[..., Scorer]:
    def make(**resources: Any) -> Scorer:
        from rbalign.scorers import form

        made: Scorer = getattr(form, name)(**resources)
        return made

    return make


FACTORIES: dict[str, Callable[..., Scorer]] = {
    "similarity": _similarity,
    "chrf": _chrf,
    "bleu": _bleu,
    "teacher-likelihood": _likelihood,
    "qa": _qa,
    "constraints": _constraints,
    "length": _form("Length"),
    "repetition": _form("Repetition"),
    "novelty": _form("Novelty"),
    "language": _form("Language"),
}


def names() -> list[str]:
    """Every scorer's name, sorted."""
    return sorted(FACTORIES)


def build(name: str | Mapping[str, float], **resources: Any) -> Scorer:
    """The scorer called `name`, or the weighted sum of several. Resources are arguments of one scorer's constructor,
    for example `against="reference"`."""
    if not isinstance(name, str):
        from rbalign.scorers.weighted import Weighted

        return Weighted({part: (build(part), weight) for part, weight in name.items()})
    if name not in FACTORIES:
        raise unknown("scorer", name, FACTORIES, "see `rba list scorers`")
    try:
        return FACTORIES[name](**resources)
    except TypeError as error:
        raise UsageError(f"scorer {name!r}: {error}", "give only arguments that its constructor names") from error
