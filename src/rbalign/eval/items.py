"""What is asked: one item is one instruction, said once, answered once. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rbalign.errors import DataError
from rbalign.keys import Key
from rbalign.types import Example, View

STAGE = "eval"
"""Names evaluation's noise: never the noise that y_ref or the independent reference was drawn with."""


@dataclass(frozen=True, slots=True)
class Item:
    """One answer to get. Every arm and reference gets the same items, so that all comparisons are paired."""

    example: Example
    view: View
    """The clip that is played; references that read ignore its audio."""
    sample: int = 0
    beside: str = ""
    """An instruction written beside the clip, where a benchmark has one."""

    @property
    def id(self) -> str:
        """`EXAMPLE/VIEW/SAMPLE`."""
        return f"{self.view.id}/{self.sample}"

    def written(self, words: str | None = None) -> str:
        """The request in writing: `words` (by default the clip's own), and the instruction beside them."""
        said = self.example.instruction if words is None else words
        return f"{said}\n\n{self.beside}" if self.beside else said

    def key(self, seed: int) -> Key:
        """One fixed key per item, shared by all arms."""
        return Key(seed, STAGE, example=self.example.id, view=self.view.index, sample=self.sample)


def by_example(views: Iterable[View]) -> dict[str, list[View]]:
    """Views under their example, in index order."""
    grouped: dict[str, list[View]] = {}
    for view in sorted(views, key=lambda view: (view.example_id, view.index)):
        grouped.setdefault(view.example_id, []).append(view)
    return grouped


def limit_examples(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """The first `limit` instructions in the order of their ids: the same ones in every stage and resume."""
    return sorted(examples, key=lambda example: example.id)[:limit]


def every_view(examples: Sequence[Example], views: Mapping[str, list[View]]) -> list[Item]:
    """Each instruction in each of its voices, once."""
    missing = [example.id for example in examples if not views.get(example.id)]
    if missing:
        raise DataError(f"{len(missing)} test instructions have no clip, first {missing[0]!r}", "run synth again")
    return [Item(example, view) for example in examples for view in views[example.id]]


def chosen_view(example: Example, views: Sequence[View], seed: int) -> View:
    """One view of an instruction, drawn by key: which voice it is differs from instruction to instruction."""
    return views[Key(seed, f"{STAGE}-view", example=example.id).digest() % len(views)]


def one_view(examples: Sequence[Example], views: Mapping[str, list[View]], seed: int) -> list[Item]:
    """Each instruction once, in its chosen voice."""
    return [Item(example, chosen_view(example, views[example.id], seed)) for example in examples]


def repeats(examples: Sequence[Example], views: Mapping[str, list[View]], samples: int, seed: int) -> list[Item]:
    """Further samples (1, 2, ...) on the chosen clip: what consistency would be if the voice did not change."""
    return [Item(item.example, item.view, s) for item in one_view(examples, views, seed) for s in range(1, samples)]


def wrong_audio(items: Sequence[Item], views: Iterable[View]) -> dict[str, View]:
    """For each item's id, a clip of another instruction in the same voice.

    The clips of a voice are taken in the order of their length and each item gets its neighbour's, so the wrong
    clip is about as long as the right one. A voice that says only one instruction borrows from the whole list.
    """
    pool = sorted(views, key=lambda view: (view.seconds, view.id))
    by_voice: dict[str, list[View]] = {}
    for view in pool:
        by_voice.setdefault(view.spec.voice, []).append(view)
    return {item.id: _neighbour(item.view, by_voice[item.view.spec.voice], pool) for item in items}


def _neighbour(view: View, same_voice: Sequence[View], everyone: Sequence[View]) -> View:
    for clips in (same_voice, everyone):
        place = next(i for i, clip in enumerate(clips) if clip.id == view.id)
        for step in range(1, len(clips)):
            other = clips[(place + step) % len(clips)]
            if other.example_id != view.example_id:
                return other
    raise DataError("wrong-audio needs at least two instructions", "evaluate more instructions")
