"""A task's tables from a local copy: JSONL or parquet, with exactly the columns and types that the task names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rbalign.errors import DataError, ServiceError, UsageError
from rbalign.eval.tasks.registry import SHIPPED, SMOKE, Column, Source, Task
from rbalign.rundir.files import sha256_file, stable_hash

HUB = "hf:"

Row = Mapping[str, Any]


def local_copy(given: str, task: Task) -> Path:
    """The folder of a task's data: a folder as it is, or `hf:` (`hf:OWNER/NAME`, `hf:OWNER/NAME@REVISION`) fetched into
    the hub's cache. UsageError if there is none, ServiceError if the hub does not give it."""
    if task.smoke:
        if given != SHIPPED:
            raise UsageError(f"--data {given}: {task.name} ships with rba", "leave it out")
        return Path(__file__).parent / SMOKE
    if not given.startswith(HUB):
        folder = Path(given)
        if not folder.is_dir():
            raise UsageError(f"--data {given} is no folder", f"{task.name} needs a local copy of {task.place}")
        return folder
    if not task.hub:
        raise UsageError(f"{task.name} is not on the hub", f"its data is {task.data}")
    name, _, revision = given.removeprefix(HUB).partition("@")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name or task.hub,
                repo_type="dataset",
                revision=revision or task.revision,
                allow_patterns=[_filled(glob, task) for source in task.files for glob in source.names],
            )
        )
    except Exception as error:  # whatever the hub's client and its transport raise, none of it is a fault of rba
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ServiceError(
            f"the hub does not give {name or task.hub} ({said})", "copy it to a folder and give --data FOLDER"
        ) from None


def origin(given: str, task: Task) -> str:
    """Where `local_copy` has the data from, without a path of this machine."""
    if task.smoke:
        return "ships with rba: smoke, not comparable"
    if not given.startswith(HUB):
        return f"a local copy, in the form of {task.hub or task.data}"
    name, _, revision = given.removeprefix(HUB).partition("@")
    return f"hub dataset {name or task.hub} at {revision or task.revision}"


def tables(task: Task, folder: Path) -> dict[str, list[Row]]:
    """Part -> checked rows, in the order of the files. DataError, in one line, for what the task does not allow."""
    return {source.part: list(_checked(source, table_files(source, task, folder))) for source in task.files}


def content_hash(task: Task, folder: Path) -> str:
    """Names what was scored against: the hash of the files that were read."""
    return stable_hash([sha256_file(path) for source in task.files for path in table_files(source, task, folder)])[:16]


def table_files(source: Source, task: Task, folder: Path) -> list[Path]:
    """The files of one table, in order; DataError if there is none."""
    globs = [_filled(name, task) for name in source.names]
    for glob in globs:
        found = sorted(path for path in folder.glob(glob) if path.is_file())
        if found:
            return found
    raise DataError(
        f"{folder} has none of {', '.join(globs)}", f"{task.name} needs a local copy of {task.place}; docs/protocols.md"
    )


def _filled(name: str, task: Task) -> str:
    source, target = task.languages or ("", "")
    pair = f"{source}{task.pair}{target}"
    return name.replace("{source}", source).replace("{target}", target).replace("{pair}", pair)


def _checked(source: Source, files: Sequence[Path]) -> Iterator[Row]:
    for path in files:
        for number, row in enumerate(_rows(path, source.columns)):
            for name, kind in source.columns.items():
                if name not in row and not kind.endswith("?"):
                    raise DataError(
                        f"{path} row {number} has no column {name!r}; it has {', '.join(sorted(row)) or 'none'}",
                        f"allowed are tables with {', '.join(source.columns)}; see docs/protocols.md",
                    )
                fits, allowed = _KINDS[kind]
                if not fits(row.get(name)):
                    given = type(row.get(name)).__name__
                    raise DataError(
                        f"{path} row {number}: column {name!r} is {given}, allowed: {allowed}", "see docs/protocols.md"
                    )
            yield row


def _rows(path: Path, columns: Mapping[str, Column]) -> Iterator[Row]:
    if path.suffix == ".parquet":
        yield from _parquet(path, columns)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{path} line {number} is no JSON object in UTF-8", "copy the data again")
            yield row


def _parquet(path: Path, columns: Mapping[str, Column]) -> Iterator[Row]:
    """Only the named columns are read: the clips beside them may be gigabytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        there = file.schema_arrow.names
        for batch in file.iter_batches(columns=[name for name in columns if name in there]):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}", "copy the data again") from None


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


_KINDS: dict[Column, tuple[Callable[[Any], bool], str]] = {
    "text": (lambda value: isinstance(value, str), "a text"),
    "text?": (lambda value: value is None or isinstance(value, str), "a text, or none"),
    "texts": (_is_texts, "a text or a list of texts"),
    "number": (lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number"),
    "tables": (
        lambda value: isinstance(value, list) and all(isinstance(one, dict) for one in value),
        "a list of tables",
    ),
}
