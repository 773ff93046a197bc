"""What a task asks: its items, built from checked tables or from a dataset folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rbalign.config.views import CLEAN, FLUENT
from rbalign.data.dataset import Dataset
from rbalign.errors import DataError
from rbalign.eval.items import by_example, chosen_view
from rbalign.eval.tasks.files import Row, content_hash, tables
from rbalign.eval.tasks.registry import Task
from rbalign.eval.tasks.smoke import SmokeSet, smoke_set
from rbalign.scorers.constraints import follows
from rbalign.types import Example, View

REPEAT_SEED = 0
"""Of the draw which clip of an instruction is answered twice: files of several models must agree on it."""
SLOW, FAST = 0.85, 1.15
"""Speeds beyond these are conditions of their own; between them people differ anyway."""


@dataclass(frozen=True, slots=True)
class TaskItem:
    """One answer to score."""

    id: str
    unit: str
    """The instruction that it belongs to: what is resampled."""
    part: str = ""
    request: str = ""
    reference: str | None = None
    aliases: tuple[str, ...] = ()
    constraints: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    retracted: str | None = None
    retracted_aliases: tuple[str, ...] = ()
    """Answers to the request that was taken back."""
    row: int = -1
    """Its row in the table that holds its clip; -1 for a clip of a dataset folder."""
    words: str | None = None
    """What a text LLM reads in the place of the clip, where that is not the request."""
    beside: str = ""
    """An instruction written beside the clip."""
    sample: int = 0
    """Above 0: a further answer to the same clip, whose id then ends with it."""

    @property
    def clip(self) -> str:
        """The id of what is played."""
        return self.id.rpartition("/")[0] if self.sample else self.id


@dataclass(frozen=True, slots=True)
class TaskData:
    """All items of a task, and what they were read from."""

    items: tuple[TaskItem, ...]
    content: str
    """Hash of the data."""
    left_out: int = 0
    """Items that the data cannot score: without a reference."""
    passed_over: frozenset[str] = frozenset()
    """Ids that the data knows and the task does not ask."""
    repeats: tuple[TaskItem, ...] = ()
    """Further answers to clips of `items`: what changes while the clip does not. Not in the denominator."""

    @property
    def asked(self) -> tuple[TaskItem, ...]:
        """Everything that a model is asked."""
        return self.items + self.repeats

    def first(self, limit: int | None) -> TaskData:
        """The items of the first instructions in the order of the data; responses to the others are passed over."""
        units = set(list(dict.fromkeys(item.unit for item in self.items))[:limit])
        kept, again = (tuple(item for item in one if item.unit in units) for one in (self.items, self.repeats))
        others = {item.id for item in self.asked if item.unit not in units}
        return replace(self, items=kept, repeats=again, passed_over=self.passed_over | others)


def load(task: Task, folder: Path, split: str = "test") -> TaskData:
    """The items of a local copy. DataError, in one line, for data of another form."""
    if task.smoke:
        return _smoke(task, smoke_set(task.smoke))
    if task.kind == "conditions":
        return _conditions(task, Dataset.open(folder), split)
    if task.kind == "consistency":
        data = Dataset.open(folder)
        return _several(data.iter_examples(split), data.iter_views(split), data.content_hash, f"the {split} split")
    if task.of_dataset:
        return _by_topic(Dataset.open(folder), split)
    given = tables(task, folder)
    left_out = 0
    if task.kind == "constraints":
        items = [item for part, rows in given.items() for item in _constrained(part, rows)]
    elif task.kind == "accents":
        items = [item for part, rows in given.items() for item in _accented(part, rows)]
    elif task.name.startswith("fleurs"):
        items, left_out = _joined(given["source"], given["target"])
    else:
        items = [replace(_ITEMS[task.kind](str(place), row), row=place) for place, row in enumerate(given[""])]
    if not items:
        raise DataError(f"{folder} holds no item of {task.name}", "copy the data again")
    return TaskData(tuple(items), content_hash(task, folder), left_out)


def columns(items: Sequence[TaskItem]) -> dict[str, list[Any]]:
    """The columns that scorers read, a row for each item."""
    return {
        "reference": [item.reference for item in items],
        "aliases": [list(item.aliases) for item in items],
        "constraints": [list(item.constraints) for item in items],
    }


def _constrained(part: str, rows: Iterable[Row]) -> Iterable[TaskItem]:
    """Items of Speech-IFEval. Every constraint is tried once, so that an unknown one stops before all."""
    for place, row in enumerate(rows):
        own: tuple[tuple[str, Mapping[str, Any]], ...] = ()
        name = f"{part}/{place}"
        if part != "reasoning":
            ids, arguments = row["instruction_id_list"], row["kwargs"]
            if isinstance(ids, str) or not ids or len(ids) != len(arguments):
                raise DataError(f"item {name} has {len(arguments)} kwargs for {ids!r}", "copy the data again")
            own = tuple(zip(ids, arguments, strict=True))
            for constraint, given in own:
                follows("x", constraint, given)
        request = row["instruction"]
        yield TaskItem(
            name, name, part, request, constraints=own, row=place, words=row["textual_audio"], beside=request
        )


def _accented(part: str, rows: Iterable[Row]) -> Iterable[TaskItem]:
    """Items of one accent; a question is the same row of every accent's table."""
    for place, row in enumerate(rows):
        aliases = (row["reference"],)
        yield TaskItem(f"{part}/{place}", str(place), part, row["prompt"], aliases=aliases, row=place)


def _asked(name: str, row: Row) -> TaskItem:
    """An item of a win rate: Alpaca's instruction with its input, or VoiceBench's prompt."""
    request = row["prompt"] if "prompt" in row else "\n".join(filter(None, (row["instruction"], row.get("input"))))
    return TaskItem(name, name, request=request, reference=row.get("output"))


def _question(name: str, row: Row) -> TaskItem:
    found = next(row[column] for column in ("answers", "answer", "Answer") if column in row)
    aliases = (found,) if isinstance(found, str) else tuple(found)
    return TaskItem(name, name, request=row.get("question") or row.get("Questions") or "", aliases=aliases)


def _translated(name: str, row: Row) -> TaskItem:
    return TaskItem(name, name, request=row["sentence"], reference=row["translation"])


_ITEMS = {"preference": _asked, "answers": _question, "translation": _translated}


def _joined(source: Iterable[Row], target: Iterable[Row]) -> tuple[list[TaskItem], int]:
    """Recordings of the source language with the target's sentence of the same id, and how many have none."""
    meant: dict[int, str] = {row["id"]: row["raw_transcription"] for row in target}
    seen: Counter[int] = Counter()
    items, left_out = [], 0
    for place, row in enumerate(source):
        sentence, number = row["id"], seen[row["id"]]
        seen[sentence] += 1
        if sentence not in meant:
            left_out += 1
            continue
        name = f"{sentence}/{number}"
        request = row["raw_transcription"]
        items.append(TaskItem(name, str(sentence), request=request, reference=meant[sentence], row=place))
    return items, left_out


def _conditions(task: Task, dataset: Dataset, split: str) -> TaskData:
    items, passed = _by_condition(task, dataset.iter_examples(split), dataset.iter_views(split))
    if len({item.part for item in items} | {task.plain}) < 2:
        raise DataError(
            f"no clip of the {split} split of {dataset.folder} is other than {task.plain}",
            "make views with deliveries or channels: docs/views.md",
        )
    return TaskData(items, dataset.content_hash, passed_over=passed)


def _by_topic(dataset: Dataset, split: str) -> TaskData:
    """Each instruction once, under its topic; one without a topic counts for the whole alone."""
    items = tuple(
        TaskItem(one.id, one.id, str(one.labels.get("topic") or ""), one.instruction, one.reference)
        for one in dataset.iter_examples(split)
    )
    if not any(item.part for item in items):
        raise DataError(
            f"no instruction of the {split} split of {dataset.folder} has a topic",
            "synthesise one with [synth.labels] test_per_topic, or choose another --split",
        )
    return TaskData(items, dataset.content_hash)


def _smoke(task: Task, given: SmokeSet) -> TaskData:
    """What ships: every view of a set of conditions, else each instruction once."""
    if task.kind == "conditions":
        items, passed = _by_condition(task, given.examples, given.views)
        return TaskData(items, given.content, passed_over=passed)
    if task.kind == "consistency":
        return _several(given.examples, given.views, given.content, "the set")
    made = (
        TaskItem(
            one.id,
            one.id,
            request=one.instruction,
            reference=one.reference,
            aliases=tuple(one.labels.get("aliases", ())),
            constraints=tuple((name, given) for name, given in one.labels.get("constraints", ())),
        )
        for one in given.examples
    )
    if task.kind == "translation":
        made = (_into(task.into, one) for one in given.examples)
    return TaskData(tuple(made), given.content)


def _into(language: str, example: Example) -> TaskItem:
    """A sentence to be translated, with the request for it in writing."""
    meant = example.labels["translations"][language]
    beside = f"Translate this into {language}. Say only the translation."
    return TaskItem(example.id, example.id, request=example.instruction, reference=meant, beside=beside)


def _by_condition(
    task: Task, examples: Iterable[Example], views: Iterable[View]
) -> tuple[tuple[TaskItem, ...], frozenset[str]]:
    """Clips by what was done to them, and the ids of those that a task does not ask."""
    by_id = {example.id: example for example in examples}
    items, passed = [], set()
    for view in views:
        part = _condition(task, view)
        if part is None:
            passed.add(view.id)
        else:
            items.append(_clip(by_id[view.example_id], view, part))
    return tuple(items), frozenset(passed)


def _several(examples: Iterable[Example], views: Iterable[View], content: str, where: str) -> TaskData:
    """Every clip of instructions that have two or more, and one further answer to one clip of each, drawn by key."""
    grouped = {name: own for name, own in by_example(views).items() if len(own) > 1}
    if not grouped:
        raise DataError(f"no instruction of {where} has two clips", "make views: docs/views.md")
    items, again = [], []
    for example in examples:
        if example.id not in grouped:
            continue
        items += [_clip(example, view, view.spec.voice) for view in grouped[example.id]]
        chosen = chosen_view(example, grouped[example.id], REPEAT_SEED)
        again.append(replace(_clip(example, chosen, chosen.spec.voice), id=f"{chosen.id}/1", sample=1))
    return TaskData(tuple(items), content, repeats=tuple(again))


def _condition(task: Task, view: View) -> str | None:
    """`stutter+filler`, `noise:babble+telephone`, `telephone+fast`; amounts drop out. None for a clip that also has the
    other change."""
    if task.by_delivery:
        return view.spec.delivery if view.spec.channel == CLEAN else None
    if view.spec.delivery != FLUENT:
        return None
    steps = [re.sub(r"[:@]-?\d.*$", "", step) for step in view.spec.channel.split("+")]
    pace = "slow" if view.spec.speed < SLOW else "fast" if view.spec.speed > FAST else ""
    if pace:
        steps = [*(step for step in steps if step != CLEAN), pace]
    return "+".join(steps)


def _clip(example: Example, view: View, part: str) -> TaskItem:
    aliases, others = (tuple(example.labels.get(name) or ()) for name in ("aliases", "retracted_aliases"))
    return TaskItem(
        view.id,
        example.id,
        part,
        example.instruction,
        example.reference,
        aliases,
        retracted=view.retracted,
        retracted_aliases=others if view.retracted else (),
    )
