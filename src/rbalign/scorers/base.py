"""What a scorer is, and the few things that every scorer does alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from rbalign.types import Example

MAX_CHARACTERS = 8_000
"""Text beyond this is not read by any scorer: bounds the time that one hostile answer can take."""


@runtime_checkable
class Scorer(Protocol):
    """TRL's reward signature. Total: whatever the texts hold, it returns one bounded score or None for each.

    `columns` are lists as long as `completions`: `answer` (y_ref), `reference` (an independent teacher sample),
    `aliases` (accepted answers), and whatever `needs` names; the caller computes those.
    None means *unscored*: never to be read as zero, and to be counted.
    """

    name: str
    needs: frozenset[str]

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One score for each completion."""
        ...


def counts_of(scorer: Scorer) -> dict[str, float]:
    """What a scorer counted so far beside its scores: answers cut short, requests sent. Most count nothing."""
    return dict(getattr(scorer, "counts", {}))


def as_text(completion: Any) -> str:
    """The text of a completion: a string, or a conversation in TRL's message form (its contents joined)."""
    if isinstance(completion, str):
        text = completion
    elif isinstance(completion, list | tuple):
        parts = (turn.get("content") if isinstance(turn, dict) else turn for turn in completion)
        text = " ".join(part for part in parts if isinstance(part, str))
    else:
        text = ""
    return text[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8").strip()


def example_columns(examples: Sequence[Example]) -> dict[str, list[Any]]:
    """The columns that examples themselves hold, a row for each."""
    return {
        "answer": [example.answer for example in examples],
        "reference": [example.reference for example in examples],
        "aliases": [example.labels.get("aliases") for example in examples],
        "constraints": [example.labels.get("constraints") for example in examples],
    }


def column(columns: dict[str, Any], name: str, rows: int) -> list[Any]:
    """A column as long as the completions; an absent or shorter one is filled with None (unscored)."""
    values = list(columns.get(name) or [])[:rows]
    return values + [None] * (rows - len(values))
