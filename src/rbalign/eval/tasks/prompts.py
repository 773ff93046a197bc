"""DOWIS: prompts that people wrote and spoke, put before another task's clips. What it costs that the model hears the
prompt, too: the score with the prompt in writing minus the score with it spoken, by style. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from rbalign.audio.io import audio_seconds, read_audio, to_flac
from rbalign.data.shards import RATE, StoredView
from rbalign.errors import DataError, UsageError, unknown
from rbalign.eval.items import Item
from rbalign.eval.tasks.clips import VOICE, Clips, readers
from rbalign.eval.tasks.files import content_hash, table_files, tables
from rbalign.eval.tasks.items import TaskData, TaskItem
from rbalign.eval.tasks.registry import DOWIS, Kind, Task, tasks
from rbalign.eval.tasks.sheet import PERCENT, Sheet
from rbalign.keys import Key
from rbalign.types import Example, Split, View, ViewSpec

Mode = Literal["text", "speech"]
MODES: tuple[Mode, ...] = get_args(Mode)
KINDS: frozenset[Kind] = frozenset({"answers", "open", "translation"})
"""Kinds of tasks whose items say nothing of what is to be done with them, and whose score is one number."""
PAUSE = 0.5
"""Seconds of silence between a spoken prompt and the clip."""
SEED = 0
"""Of the draw of prompts and voices: all models are asked alike."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One way to ask, in writing and by those who spoke it."""

    text: str
    clips: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of one task in one language, by style."""

    language: str
    task: str
    content: str
    """Hash of the whole table."""
    by_style: Mapping[str, Sequence[Prompt]]

    def draw(self, style: str, item: str) -> tuple[str, bytes | None]:
        """An item's prompt of a style, by key: its words, and one of its voices; None where nobody spoke it."""
        generator = Key(SEED, DOWIS, example=f"{item} {style}").generator()
        own = self.by_style[style]
        prompt = own[int(generator.integers(len(own)))]
        return prompt.text, prompt.clips[int(generator.integers(len(prompt.clips)))] if prompt.clips else None

    def described(self, style: str, mode: Mode) -> str:
        """How an answer was asked for, in words."""
        how = "in writing beside the clip" if mode == "text" else f"spoken before the clip, {PAUSE:g} s between"
        return f"prompt by DOWIS {self.content}, {self.language} {self.task}, {style}, drawn by key, {how}"


def read_prompts(folder: Path, task: str, language: str) -> Prompts:
    """The prompts of a local copy of DOWIS. UsageError for a task or language that it has not, DataError for a table of
    another form."""
    own = tasks()[DOWIS]
    rows = tables(own, folder)[""]
    for column, name, given in (("language", "prompt language", language), ("task", "prompt task", task)):
        there = sorted({row[column] for row in rows})
        if given not in there:
            raise unknown(name, given, there)
    places = [at for at, row in enumerate(rows) if (row["language"], row["task"]) == (language, task)]
    if not places:
        raise UsageError(f"DOWIS has no {task} in {language}", "choose another --prompt-task or --prompt-language")
    (source,) = own.files
    files = table_files(source, own, folder)
    by_style: dict[str, list[Prompt]] = {}
    columns = (readers(replace(source, clip=(column,)), files, folder) for column in source.clip)
    # Column by column: a row group of the release is gigabytes, and is read once for each.
    voices = [[_clip(read[at]) for at in places] for read in columns]
    for at, *clips in zip(places, *voices, strict=True):
        spoken = tuple(clip for clip in clips if clip is not None)
        by_style.setdefault(rows[at]["prompt_type"], []).append(Prompt(rows[at]["text_prompt"], spoken))
    return Prompts(language, task, content_hash(own, folder), dict(sorted(by_style.items())))


def _clip(read: Callable[[], bytes]) -> bytes | None:
    """A prompt's recording; None where the table has none, or one that cannot be read."""
    try:
        clip = read()
        audio_seconds(clip)
    except DataError:
        return None
    return clip


# ---- items -----------------------------------------------------------------------------------------------------------


def asked_with(task: Task, data: TaskData, prompts: Prompts) -> TaskData:
    """Every item in every style, its prompt once in writing and once spoken. UsageError for a task of another kind."""
    if task.kind not in KINDS:
        allowed = ", ".join(sorted(KINDS))
        raise UsageError(
            f"--spoken-prompts beside {task.name}, of kind {task.kind}", f"tasks of kinds {allowed} take it"
        )
    items = tuple(replace(item, id=name) for item, _, _, name in _each(data, prompts))
    passed = frozenset(name for one in data.passed_over for name in _names(one, prompts))
    return TaskData(items, data.content, data.left_out, passed)


def played_with(data: TaskData, clips: Clips, prompts: Prompts) -> Clips:
    """What is played for `asked_with`: the clip with the prompt beside it, or after the prompt in one clip."""
    played: dict[str, Item] = {}
    silent: dict[str, str] = {}
    for item, style, mode, name in _each(data, prompts):
        words, said = prompts.draw(style, item.id)
        if item.id in clips.silent:
            silent[name] = clips.silent[item.id]
        elif mode == "text":
            played[name] = _prompted(name, clips.played[item.id], words, None)
        elif said is None:
            silent[name] = f"nobody spoke the prompt {words!r}"
        else:
            played[name] = _prompted(name, clips.played[item.id], words, said)
    return Clips(played, silent)


def _each(data: TaskData, prompts: Prompts) -> Iterator[tuple[TaskItem, str, Mode, str]]:
    """Item, style, mode, and the id of the answer."""
    for item in data.items:
        for style in prompts.by_style:
            for mode in MODES:
                yield item, style, mode, _name(item.id, style, mode)


def _names(item: str, prompts: Prompts) -> Iterator[str]:
    return (_name(item, style, mode) for style in prompts.by_style for mode in MODES)


def _name(item: str, style: str, mode: Mode) -> str:
    return f"{item}/{style}/{mode}"


def _prompted(name: str, item: Item, words: str, said: bytes | None) -> Item:
    read, seconds = partial(_flac, item.view), item.view.seconds
    request, beside = item.example.instruction, words
    if said is not None:
        read, seconds = partial(joined, said, item.view), audio_seconds(said) + PAUSE + seconds
        request, beside = f"{words}\n\n{request}", ""
    view = StoredView.lazy(read, View(name, 0, Split.TEST, ViewSpec(VOICE), seconds))
    return Item(Example(name, Split.TEST, request, ""), view, beside=beside)


def _flac(view: View) -> bytes:
    return view.flac


def joined(prompt: bytes, view: View) -> bytes:
    """A spoken prompt, silence, and a clip, as one FLAC of 16 kHz. DataError for audio that cannot be read."""
    silence = np.zeros(int(PAUSE * RATE), dtype=np.float32)
    return to_flac(np.concatenate([read_audio(prompt), silence, read_audio(view.flac)]))


# ---- figures ---------------------------------------------------------------------------------------------------------


def measure_with(sheet: Sheet, plain: TaskData, prompts: Prompts, measure: Callable[[Sheet], None]) -> None:
    """The task's own figures for each style and mode, and the gap between the modes; `plain`: the task's own items."""
    draws: dict[tuple[str, Mode], Mapping[str, np.ndarray]] = {}
    for style in prompts.by_style:
        for mode in MODES:
            own = _of(sheet, plain, style, mode)
            measure(own)
            draws[style, mode] = own.draws
            for figure in own.figures:
                part = f"{style} {mode} {figure['part']}".strip()
                protocol = f"{figure['protocol']}; {prompts.described(style, mode)}"
                sheet.figures.append({**figure, "part": part, "protocol": protocol})
            for item in plain.items:
                name = _name(item.id, style, mode)
                sheet.scores[name] = own.scores.get(item.id, {})
                sheet.extra[name] = own.extra.get(item.id, {})
            sheet.unparsed += own.unparsed
    _gaps(sheet, prompts, draws)


def _of(sheet: Sheet, plain: TaskData, style: str, mode: Mode) -> Sheet:
    """The answers of one style and mode as answers to the task's own items, with the same resamples."""
    told = {item.id: _name(item.id, style, mode) for item in plain.items}
    mine = {item: sheet.responses[name] for item, name in told.items() if name in sheet.responses}
    return replace(sheet.beside(mine), data=plain)


def _gaps(sheet: Sheet, prompts: Prompts, draws: Mapping[tuple[str, Mode], Mapping[str, np.ndarray]]) -> None:
    units = len({item.unit for item in sheet.data.items})
    boot = sheet.bootstrap("", units)
    about = f"prompts of DOWIS {prompts.content}, {prompts.language} {prompts.task}"
    for metric in next(iter(draws.values())):
        gaps = {style: draws[style, "text"][metric] - draws[style, "speech"][metric] for style in prompts.by_style}
        unit = PERCENT if metric == "accuracy" else ""
        for style, gap in {**gaps, "all styles": np.mean(list(gaps.values()), axis=0)}.items():
            rule = f"{metric} with the prompt in writing minus with it spoken, same instructions, {style}; {about}"
            sheet.figure(f"prompt_gap:{metric}", style, boot.estimate(gap, units), rule, unit=unit)
