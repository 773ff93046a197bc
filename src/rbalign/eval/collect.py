"""Answers into journals: append-only, keyed by item, resumable, with failed items on record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rbalign.errors import DataError, ServiceError
from rbalign.eval.items import Item
from rbalign.rundir.journal import Journal
from rbalign.rundir.progress import progress


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer, with all that is needed to score it later without the model."""

    text: str
    stop: str
    """A StopReason, "error", or "scored" for a number about a given text."""
    prompt: str = ""
    """What the model was given: written words, or the id of a clip in angle brackets."""
    heard: str | None = None
    """The transcript of the clip where there is one."""
    ids: tuple[int, ...] = ()
    """Token ids, the end token included when `stop` is "end"."""
    logprob: float = 0.0
    """Sum of the answer's own untempered log-probs (nats)."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Numbers that only the model could give, such as `nll`."""
    error: str | None = None


class Answerer(Protocol):
    """Someone who answers: an arm or a reference. Answers must not depend on which items share a batch."""

    def answer(self, items: Sequence[Item]) -> list[Answered]:
        """One answer for each item. A clip that cannot be read is an `Answered` with `error`, not an exception."""
        ...


def failed(item: Item, error: Exception) -> Answered:
    """An item that could not be answered; it is scored at each metric's floor."""
    return Answered("", "error", prompt=f"<{item.view.id}>", error=str(error))


Batch = tuple[Sequence[Item], list[Answered], float]
"""Items, their answers, and the seconds that one of them took."""
AnswerBatches = Callable[[Sequence[Sequence[Item]]], Iterator[Batch]]
"""Answers batches one after another; closing the iterator early gives the rest up."""


def in_turn(answerer: Answerer) -> AnswerBatches:
    """Batches answered here."""
    return lambda batches: (answer_batch(answerer, batch) for batch in batches)


def answer_batch(answerer: Answerer, batch: Sequence[Item]) -> Batch:
    """A batch's answers, with failed items in their places."""
    began = time.perf_counter()
    answers = _answer(answerer, batch)
    return batch, answers, (time.perf_counter() - began) / len(batch)


def collect(
    answer: AnswerBatches,
    items: Sequence[Item],
    path: Path,
    settings: Mapping[str, Any],
    *,
    batch_size: int,
    label: str,
    workers: int = 1,
) -> None:
    """Answer what the journal at `path` lacks. `settings` (decoding, model digest) stand in every row."""
    with Journal(path) as journal:
        todo = [item for item in items if item.id not in journal]
        # Alike lengths share a batch: less padding. The answers do not depend on it.
        todo.sort(key=lambda item: (item.view.seconds, item.id))
        with progress(len(items), label, done=len(items) - len(todo), unit="answers") as advance:
            for batch, answers, seconds in answer(_batches(todo, batch_size, workers)):
                journal.append(_row(item, made, settings, seconds) for item, made in zip(batch, answers, strict=True))
                advance(len(batch))


def _batches(todo: Sequence[Item], largest: int, workers: int) -> list[Sequence[Item]]:
    """Nearly equal batches, as many for each worker: 100 items are 50 and 50 for two, not 64 and 36."""
    rounds = -(-len(todo) // (largest * workers))
    count = min(rounds * workers, len(todo))
    return [todo[len(todo) * i // count : len(todo) * (i + 1) // count] for i in range(count)]


def _answer(answerer: Answerer, batch: Sequence[Item]) -> list[Answered]:
    """The batch's answers; if the batch trips over one item's data, each item alone, so that only that one fails."""
    try:
        return answerer.answer(batch)
    except (DataError, ServiceError) as error:
        if len(batch) == 1:
            return [failed(batch[0], error)]
        return [answer for item in batch for answer in _answer(answerer, [item])]


def _row(item: Item, answer: Answered, settings: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    return {
        "id": item.id,
        "example": item.example.id,
        "view": item.view.index,
        "sample": item.sample,
        "voice": item.view.spec.voice,
        "prompt": answer.prompt,
        "heard": answer.heard,
        "answer": answer.text,
        "stop": answer.stop,
        "ids": list(answer.ids),
        "logprob": round(answer.logprob, 5),
        "values": dict(answer.values),
        "error": answer.error,
        "settings": dict(settings),
        "seconds": round(seconds, 4),
    }
