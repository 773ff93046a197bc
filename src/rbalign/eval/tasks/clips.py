"""What a task plays: the clips of a local copy or of a dataset folder, read when they are heard and not before.

Parquet as the hub has it (`audio: {bytes, path}`, never decoded by `datasets`), or JSONL with the path of a file below
the data's folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from rbalign.audio.io import audio_seconds
from rbalign.data.dataset import Dataset
from rbalign.data.shards import StoredView
from rbalign.errors import DataError
from rbalign.eval.items import Item
from rbalign.eval.tasks.files import table_files
from rbalign.eval.tasks.items import TaskItem
from rbalign.eval.tasks.registry import Source, Task
from rbalign.eval.tasks.smoke import SmokeSet
from rbalign.types import Example, Split, View, ViewSpec

VOICE = "benchmark"
"""The voice of clips that somebody else recorded."""


@dataclass(frozen=True, slots=True)
class Clips:
    """Items that can be played, and the task's ids of those that cannot."""

    played: dict[str, Item]
    """By the task's own ids."""
    silent: dict[str, str]
    """Task id -> why its clip cannot be had: a failed item, which stays in the denominator."""


def clips(task: Task, folder: Path, items: Sequence[TaskItem], split: str = "test", beside: str = "") -> Clips:
    """The clips of a task's items; `beside` is written beside those that have no instruction of their own.

    DataError for a table without a column of clips.
    """
    if task.of_dataset:
        return of_dataset(Dataset.open(folder), items, split, beside)
    sources = task.files[:1] if task.languages else task.files  # of two languages, the one that is heard
    by_part = {source.part: readers(source, table_files(source, task, folder), folder) for source in sources}
    played: dict[str, Item] = {}
    silent: dict[str, str] = {}
    for item in items:
        read = by_part[item.part if len(by_part) > 1 else sources[0].part][item.row]
        try:
            seconds = audio_seconds(read())
        except DataError as error:
            silent[item.id] = str(error)
            continue
        example = Example(item.id, Split.TEST, item.request if item.words is None else item.words, "")
        view = StoredView.lazy(read, View(item.id, 0, Split.TEST, ViewSpec(VOICE), seconds))
        played[item.id] = Item(example, view, beside=item.beside or beside)
    return Clips(played, silent)


def of_dataset(dataset: Dataset, items: Sequence[TaskItem], split: str, beside: str = "") -> Clips:
    """The views of a dataset folder; an item is a view's id, or an example's (then its first view)."""
    return _of_views(dataset.iter_examples(split), dataset.iter_views(split), items, beside)


def planned(given: SmokeSet, items: Sequence[TaskItem], beside: str = "") -> Clips:
    """The same of a set that ships, before any voice has said it: items without audio."""
    return _of_views(given.examples, given.views, items, beside)


def _of_views(examples: Iterable[Example], views: Iterable[View], items: Sequence[TaskItem], beside: str) -> Clips:
    by_id = {example.id: example for example in examples}
    there: dict[str, View] = {}
    for view in views:
        there[view.id] = view
        there.setdefault(view.example_id, view)
    played = {
        item.id: Item(by_id[there[item.clip].example_id], there[item.clip], item.sample, item.beside or beside)
        for item in items
        if item.clip in there
    }
    return Clips(played, {item.id: "no voice could say it" for item in items if item.id not in played})


def readers(source: Source, files: Sequence[Path], folder: Path) -> list[Callable[[], bytes]]:
    """One reader of its clip a row, in the order of the files: `load` counts rows alike. DataError without a column."""
    found: list[Callable[[], bytes]] = []
    for path in files:
        found += _of_parquet(source, path) if path.suffix == ".parquet" else _of_lines(source, path, folder)
    return found


def _of_parquet(source: Source, path: Path) -> list[Callable[[], bytes]]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    column = _column(source, file.schema_arrow.names, path)
    stamp, groups = path.stat().st_mtime_ns, file.metadata.num_row_groups
    return [
        partial(_from_parquet, path, stamp, column, group, place)
        for group in range(groups)
        for place in range(file.metadata.row_group(group).num_rows)
    ]


def _from_parquet(path: Path, stamp: int, column: str, group: int, place: int) -> bytes:
    value = _row_group(path, stamp, column, group)[place].as_py()
    clip = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(clip, bytes):
        raise DataError(f"{path}: row {place} of group {group} holds no clip in {column}", "copy the data again")
    return clip


@lru_cache(maxsize=2)
def _row_group(path: Path, stamp: int, column: str, group: int) -> Any:
    """One row group's clips: releases have a hundred or a thousand in one. `stamp` tells a rewritten file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, memory_map=True).read_row_group(group, columns=[column]).column(column)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}", "copy the data again") from None


def _of_lines(source: Source, path: Path, folder: Path) -> list[Callable[[], bytes]]:
    """The rows themselves were checked by `files.tables`."""
    rows = [json.loads(line.decode("utf-8-sig")) for line in path.read_bytes().splitlines() if line.strip()]
    if not rows:
        return []
    column = _column(source, rows[0], path)
    return [partial(_from_file, folder.resolve(), row.get(column)) for row in rows]


def _from_file(folder: Path, name: Any) -> bytes:
    """The file of that name below the data's folder, whatever machine's path stands before it."""
    if not isinstance(name, str) or not name:
        raise DataError(f"{name!r} is no path of a clip", "copy the data again")
    place = (folder / name).resolve()
    if not place.is_relative_to(folder) or not place.is_file():
        raise DataError(f"there is no clip {name} below {folder.name}", "copy the audio beside the data")
    return place.read_bytes()


def _column(source: Source, names: Sequence[str] | dict[str, Any], path: Path) -> str:
    for column in source.clip:
        if column in names:
            return column
    raise DataError(
        f"{path} has no clips: none of the columns {', '.join(source.clip)}", "copy the audio of the data, too"
    )
