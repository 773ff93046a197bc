"""Who answers what: tasks, their items, and which subject takes which. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rbalign.eval.items import Item, every_view, one_view, repeats
from rbalign.types import Example, View

Source = Literal[
    "speech", "wrong-audio", "text", "own-reading", "teacher", "cascade", "self-cascade", "loss", "text-loss"
]
"""What the answerer of a task is given."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """Instructions (or questions) of one kind with their clips."""

    examples: Sequence[Example]
    views: Mapping[str, list[View]]

    def clips(self) -> list[View]:
        """Every clip, by instruction."""
        return [view for example in self.examples for view in self.views[example.id]]


@dataclass(frozen=True, slots=True)
class Work:
    """One journal to fill: `eval/FOLDER/TASK.jsonl`."""

    folder: str
    task: str
    source: Source
    items: Sequence[Item]
    greedy: bool = False

    @property
    def kind(self) -> str:
        """The task without its side: "open", "qa" or "nll"."""
        return self.task.partition("-")[0]


def reference_work(
    references: Sequence[str], instructions: Spoken, questions: Spoken, samples: int, seed: int
) -> list[Work]:
    """What base and the references do. The cascade's ASR costs a second a clip, so it hears one clip of each; so is the
    NLL of y_ref measured, which no claim rests on."""
    tests, several = instructions.examples, instructions.views
    full = [*every_view(tests, several), *repeats(tests, several, samples, seed)]
    single, first = one_view(tests, several, seed), one_view(questions.examples, questions.views, seed)
    asked = every_view(questions.examples, questions.views)
    work = [
        Work("base", "open", "speech", full),
        Work("base", "nll", "loss", single),
        Work("base", "qa", "speech", asked, greedy=True),
    ]
    if "text" in references:
        work += [
            Work("text", "open", "text", full),
            Work("text", "nll", "text-loss", single),
            Work("text", "qa", "text", first, greedy=True),
        ]
    if "self-cascade" in references:
        work += [
            Work("self-cascade", "open", "self-cascade", full),
            Work("self-cascade", "qa", "self-cascade", asked, greedy=True),
        ]
    if "cascade" in references:
        work += [
            Work("cascade", "open", "cascade", single),
            Work("cascade", "qa", "cascade", first, greedy=True),
        ]
    if "wrong-audio" in references:
        work += [*_wrong("base", "open", single), *_wrong("base", "qa", first)]
    return [one for one in work if one.items]


def arm_work(
    folder: str, references: Sequence[str], instructions: Spoken, questions: Spoken, samples: int, seed: int
) -> list[Work]:
    """What a trained arm does: the same items as base, and its own text side. Questions on wrong audio are base's
    alone: no arm has answered one of a hundred rightly."""
    tests, several = instructions.examples, instructions.views
    single, first = one_view(tests, several, seed), one_view(questions.examples, questions.views, seed)
    work = [
        Work(folder, "open", "speech", [*every_view(tests, several), *repeats(tests, several, samples, seed)]),
        Work(folder, "nll", "loss", single),
        Work(folder, "qa", "speech", every_view(questions.examples, questions.views), greedy=True),
        Work(folder, "open-text", "text", single),
        Work(folder, "qa-text", "text", first, greedy=True),
    ]
    if "wrong-audio" in references:
        work += _wrong(folder, "open", single)
    return [one for one in work if one.items]


def _wrong(folder: str, kind: str, items: Sequence[Item]) -> list[Work]:
    """The items on other items' clips, where there are others."""
    several = len({item.example.id for item in items}) > 1
    return [Work(folder, f"{kind}-wrong-audio", "wrong-audio", items, greedy=kind == "qa")] if several else []
