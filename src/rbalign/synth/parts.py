"""Parts of a recipe's synthesis, for several processes or machines: `rba synth RECIPE --shard 3/64`.

Everything that synthesis makes is a pure function of a key: a draft of its candidate's index, a label, a reference or
a clip of its example. So parts share indices out, and what they made together is what one process would have made,
whatever N is and whichever part ends first. How a part is made and merged: `stages/synth_shards.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Self, TypeVar

from rbalign.errors import UsageError

MOST_PARTS = 900
"""The merge reads all parts at once, and a process may commonly have 1,024 files open."""
SURPLUS = 0.05
"""Share of accepted instructions that a part brings beside its own, for near-duplicates of those of other parts."""
_LUCK = 3.0
"""Standard deviations by which a part may have been luckier than the others: its last index is then a low one, and
the merge takes candidates in index order up to the first that is missing."""

Draft = dict[str, Any]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Part:
    """Part `number` of `of`, counted from 1. It owns every place p with p % of == number - 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """ "3/64" -> Part(3, 64). UsageError for anything else, or out of bounds."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None:
            raise UsageError(f"--shard {text!r} is no part of a whole", "write --shard I/N, for example --shard 3/64")
        number, of = int(found[1]), int(found[2])
        if not 1 <= of <= MOST_PARTS:
            raise UsageError(f"--shard {text} asks for {of} shards", f"choose 1 to {MOST_PARTS}")
        if not 1 <= number <= of:
            raise UsageError(f"--shard {text}: there is no shard {number} of {of}", f"choose 1/{of} to {of}/{of}")
        return cls(number, of)

    @classmethod
    def named(cls, name: str) -> Self | None:
        """The part whose folder is called so ("3-of-64"), or None."""
        found = re.fullmatch(r"([1-9]\d*)-of-([1-9]\d*)", name)
        return cls(int(found[1]), int(found[2])) if found and int(found[1]) <= int(found[2]) else None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number}-of-{self.of}"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def place(self, count: int) -> int:
        """The part's place number `count`, from 0."""
        return self.number - 1 + self.of * count

    def owns(self, place: int) -> bool:
        """Whether it is the part's."""
        return place % self.of == self.number - 1

    def own(self, items: Iterable[Item]) -> Iterator[Item]:
        """Those of the items whose place the part owns."""
        return (item for place, item in enumerate(items) if self.owns(place))


WHOLE = Part(1, 1)


def part_size(wanted: int, of: int, surplus: float) -> int:
    """Accepted instructions that a part must bring so that all of them hold `wanted` after the merge."""
    share = wanted / of
    return math.ceil(share * (1.0 + surplus) + (_LUCK * math.sqrt(share) if of > 1 else 0.0))


class InTurn:
    """Rows of a part that come in any order, given back by index; what came too early waits."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._given = 0
        self._early: dict[str, Draft] = {}

    def give(self, drafts: Iterable[Draft]) -> Iterator[Draft]:
        """The drafts whose turn has come, while `drafts` are taken in."""
        for draft in drafts:
            self._early[draft["id"]] = draft
            while (ready := self._early.pop(draft_id(self._part.place(self._given)), None)) is not None:
                self._given += 1
                yield ready


def draft_id(index: int) -> str:
    """Candidate 123 -> "000123"."""
    return f"{index:06d}"


def merged(parts: Sequence[Iterable[Mapping[str, Any]]]) -> Iterator[Draft]:
    """Drafts of all parts, 1/N to N/N, by index, up to the first that no part has. What is in memory does not grow
    with their number: each part's rows are read as their turn comes."""
    of = len(parts)
    streams = [InTurn(Part(number, of)).give(map(dict, rows)) for number, rows in enumerate(parts, start=1)]
    for stream in cycle(streams):
        draft = next(stream, None)
        if draft is None:
            return
        yield draft
