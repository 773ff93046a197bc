"""Answers that were made elsewhere: a JSONL file with `id` and `response`, checked against the held-out items.

An id is either a clip's, `EXAMPLE/VIEW` (one response for each voice), or an instruction's, `EXAMPLE` (one response
for all voices, as a text model gives). One file holds ids of one kind. No torch.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rbalign.errors import DataError, UsageError
from rbalign.eval.collect import Answered
from rbalign.eval.items import Item, every_view
from rbalign.eval.schedule import Spoken
from rbalign.types import View, ViewSpec

GIVEN = "given"
"""The stop of an answer from a file: nobody knows how many tokens it had, or whether it was cut."""
FORMAT = 'each line is a JSON object: {"id": "...", "response": "..."}, response null where the model failed'

Kind = Literal["clip", "instruction"]


@dataclass(frozen=True)
class Predictions:
    """What a file says about the held-out items. It is an `Answerer`: it looks the answers up."""

    kind: Kind
    items: Sequence[Item]
    """Every item that should have an answer: the denominator."""
    responses: Mapping[str, str | None]
    """By the file's own ids; None where the model that was asked failed."""

    @property
    def missing(self) -> int:
        """Items that the file says nothing about."""
        return sum(_id(item, self.kind) not in self.responses for item in self.items)

    @property
    def ignored(self) -> int:
        """Responses to instructions of the split that are not asked: beyond a limit, or without a reference."""
        return len(set(self.responses) - {_id(item, self.kind) for item in self.items})

    @property
    def failed(self) -> int:
        """Items whose response is null."""
        return sum(self.responses.get(_id(item, self.kind), "") is None for item in self.items)

    def answer(self, items: Sequence[Item]) -> list[Answered]:
        """See `Answerer`. What is missing or null is an error, and scored at each metric's floor."""
        return [self._one(_id(item, self.kind)) for item in items]

    def _one(self, name: str) -> Answered:
        if name not in self.responses:
            return Answered("", "error", error="missing in the file")
        response = self.responses[name]
        return Answered("", "error", error="null response") if response is None else Answered(response, GIVEN)


def read_predictions(path: Path, asked: Spoken, known: Mapping[str, Kind]) -> Predictions:
    """The file's responses to `asked`. `known` are all ids of the split: what is known but not asked is passed over.

    DataError for a broken line, a repeated or an unknown id, or ids of both kinds.
    """
    told = read_responses(path, known, _allowed(asked), "check the dataset, --split and --limit")
    responses = {name: one.text for name, one in told.items()}
    first = next(iter(told.items()), None)
    if first is None:
        raise DataError(f"{path} holds no prediction", FORMAT)
    kind = known[first[0]]
    other = next(((name, one) for name, one in told.items() if known[name] != kind), None)
    if other is not None:
        (name, one), (start, begun) = other, first
        raise DataError(
            f"{path} line {one.line}: {name!r} is {_a(known[name])}, {start!r} (line {begun.line}) {_a(kind)}",
            "use ids of one kind in a file",
        )
    items = every_view(asked.examples, asked.views) if kind == "clip" else [_once(one) for one in asked.examples]
    return Predictions(kind, items, responses)


@dataclass(frozen=True, slots=True)
class Response:
    """What a file says about one id."""

    line: int
    text: str | None
    """None where the model that was asked failed."""


def read_responses(path: Path, known: Collection[str], allowed: str, cure: str) -> dict[str, Response]:
    """Id -> response, in the order of the file. `allowed` and `cure` tell of an id that is not in `known`.

    DataError for a broken line, an unknown or a repeated id.
    """
    found: dict[str, Response] = {}
    for number, row in _rows(path):
        name, text = _fields(path, number, row)
        if name not in known:
            raise DataError(f"{path} line {number}: unknown id {name!r}; {allowed}", _nearest(name, known) or cure)
        if name in found:
            raise DataError(f"{path} line {number}: id {name!r} stands there twice", "keep one response for each id")
        found[name] = Response(number, text)
    return found


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of every line that is not blank. Not `rundir.journal`: a foreign file's last line counts
    without a newline, too."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line.decode("utf-8-sig"))
                except ValueError:  # UnicodeDecodeError is one
                    raise DataError(f"{path} line {number} is not JSON in UTF-8", FORMAT) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "give a JSONL file with predictions") from None


def _fields(path: Path, number: int, row: Any) -> tuple[str, str | None]:
    if not isinstance(row, dict):
        raise DataError(f"{path} line {number} is no JSON object", FORMAT)
    for field in ("id", "response"):
        if field not in row:
            raise DataError(f"{path} line {number} has no {field!r}", FORMAT)
    name, response = row["id"], row["response"]
    if not isinstance(name, str):
        raise DataError(f"{path} line {number}: id {json.dumps(name)} is no string", FORMAT)
    if response is not None and not isinstance(response, str):
        raise DataError(f"{path} line {number}: the response of {name!r} is neither a string nor null", FORMAT)
    return name, response


def _allowed(asked: Spoken) -> str:
    clips = asked.clips()
    return (
        f"allowed are those of {len(asked.examples)} instructions, such as {asked.examples[0].id!r}, "
        f"or of their {len(clips)} clips, such as {clips[0].id!r}"
    )


def _nearest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"did you mean {close[0]!r}?" if close else ""


def _a(kind: Kind) -> str:
    return "a clip's id" if kind == "clip" else "an instruction's"


def _once(example: Any) -> Item:
    """An instruction answered once, whoever said it."""
    return Item(example, View(example.id, 0, example.split, ViewSpec(""), 0.0))


def _id(item: Item, kind: Kind) -> str:
    return item.view.id if kind == "clip" else item.example.id
