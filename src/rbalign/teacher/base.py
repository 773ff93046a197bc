"""What a text teacher is: it declares what it can do, and a recipe that needs more is refused before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rbalign.errors import UsageError
from rbalign.keys import Key
from rbalign.lm.sampler import Level, SamplingParams
from rbalign.types import StopReason

CAPABILITIES = frozenset({"chat", "continue", "score", "distribution"})


@dataclass(frozen=True, slots=True)
class Written:
    """A text that the teacher wrote, and whether it came to its end."""

    text: str
    stop: StopReason
    tokens: int


class Teacher(Protocol):
    """`can` says which of the methods work: continue (write_instructions), chat (answer), score (loglikelihood)."""

    can: frozenset[str]
    name: str
    tokenizer_hash: str

    def params(self, temperature: Level, top_p: Level, max_new_tokens: int) -> SamplingParams:
        """Sampling parameters with the teacher's own end tokens."""
        ...

    def write_instructions(
        self, keys: Sequence[Key], params: SamplingParams, systems: Sequence[str | None]
    ) -> list[Written]:
        """Magpie: sample user turns from the bare pre-query template, each after its own system prompt."""
        ...

    def answer(
        self, instructions: Sequence[str], keys: Sequence[Key], params: SamplingParams, system: str | None = None
    ) -> list[Written]:
        """Answer written requests through the chat template."""
        ...

    def loglikelihood(
        self, instructions: Sequence[str], answers: Sequence[str], system: str | None = None
    ) -> list[float | None]:
        """Mean log-prob per token (nats) of each answer to its request; None = unscored."""
        ...


def require(teacher: Teacher, needs: frozenset[str], who: str) -> None:
    """Refuse a stage that needs what its teacher cannot do."""
    missing = needs - teacher.can
    if missing:
        raise UsageError(
            f"{who} needs a teacher that can {', '.join(sorted(missing))}; {teacher.name} can "
            f"{', '.join(sorted(teacher.can))}",
            "set [teacher] model to a local model folder or asset",
        )
