"""Where recordings and what is said in them may lie: in audiofolders, in parquet, in tables, in texts beside.

metadata.jsonl, metadata.csv    `file_name` and the transcript's column
*.parquet                       `audio` (a struct with `bytes`) and the transcript's column: an audio dataset of the hub
*.tsv                           with a head: `path` or `file_name` and the column (CoVoST2, Common Voice); without one:
                                FLEURS. Clips lie beside the table, in clips/, or in audio/TABLE/.
NAME.txt beside NAME.wav        where there is nothing of the kind
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from rbalign.errors import DataError, UsageError, unknown
from rbalign.rundir.files import sha256_file, stable_hash

SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff"})
METADATA, PARQUET = ("metadata.jsonl", "metadata.csv"), ".parquet"
TABLES = (*METADATA, "*.tsv", f"*{PARQUET}")
FILE_NAME, AUDIO = "file_name", "audio"
FLEURS = ("id", FILE_NAME, "raw_transcription", "transcription", "characters", "num_samples", "gender")
"""Columns of its tables, which have no head."""


def read_transcripts(folder: Path, column: str) -> dict[str, str]:
    """Path below `folder` -> transcript, one line each, sorted by path.

    Raises UsageError if the folder or the column is not there, DataError for a list that cannot be read or that names
    a file outside the folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", "set [synth.s2tt] source to a folder of recordings")
    lists = [path for name in TABLES for path in sorted(folder.rglob(name))]
    found: dict[str, str] = {}
    for path in lists:
        for number, row in enumerate(_rows(path, column), start=1):
            if FILE_NAME not in row:
                raise DataError(f"{path}: row {number} has no {FILE_NAME}", "name the clip of every row there")
            if column not in row:
                raise unknown(f"column in row {number} of {path}", column, row, "set [synth.s2tt] column")
            name = PurePosixPath(str(row[FILE_NAME]))
            if name.is_absolute() or ".." in name.parts:
                raise DataError(f"{path}: {name} lies outside the folder", "list only clips below it")
            found[_place(path, name).relative_to(folder).as_posix()] = " ".join(str(row[column] or "").split())
    if not lists:
        for path in (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
            beside = path.with_suffix(".txt")
            if beside.is_file():
                found[path.relative_to(folder).as_posix()] = " ".join(_text(beside).split())
    if not found:
        raise UsageError(
            f"{folder} holds no recording with a transcript",
            f"put {' or '.join(METADATA)} into it ({FILE_NAME}, {column}), parquet ({AUDIO}, {column}), "
            "a .tsv, or NAME.txt beside NAME.wav",
        )
    return dict(sorted(found.items()))


def source_hash(folder: Path) -> str:
    """Of what `Recordings` reads: tables and texts by content, clips by name and size, for they may be gigabytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed: list[list[Any]] = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        if path.name in METADATA or path.suffix in (".txt", ".tsv", PARQUET):
            listed.append([name, sha256_file(path)])
        elif path.suffix.lower() in SUFFIXES:
            listed.append([name, path.stat().st_size])
    return stable_hash(listed)


def clip_of(folder: Path, name: str) -> Path | bytes:
    """A recording by its name among the transcripts: a file, or what a row of a parquet file holds."""
    path = folder / name
    if path.parent.suffix != PARQUET:
        return path
    row, stamp = int(path.name), path.parent.stat().st_mtime_ns
    for group, size in enumerate(_groups(path.parent, stamp)):
        if row < size:
            with _READING:
                clip = _clips(path.parent, stamp, group)[row].as_py()
            return bytes(clip["bytes"] or b"") if clip else b""
        row -= size
    raise DataError(f"{path.parent} has no row {path.name}", "run the stage again, the file has changed")


@lru_cache(maxsize=64)
def _groups(path: Path, stamp: int) -> list[int]:
    """Rows of every row group; `stamp` tells a rewritten file."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


_READING = Lock()
"""Threads that need one row group load it once."""


@lru_cache(maxsize=2)
def _clips(path: Path, stamp: int, group: int) -> Any:
    """The clips of a row group: it may be a hundred megabytes, so two are kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return file.read_row_group(group, columns=[AUDIO]).column(AUDIO)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}", "copy it again") from None


def _place(table: Path, name: PurePosixPath) -> Path:
    """Where a table's clip lies; a row of a parquet file lies in it."""
    if table.suffix == PARQUET:
        return table / name
    places = [table.parent / name]
    if table.suffix == ".tsv":
        places += [table.parent / "clips" / name, table.parent / "audio" / table.stem / name]
    return next((place for place in places if place.is_file()), places[0])


def _rows(path: Path, column: str) -> Iterator[Mapping[str, Any]]:
    if path.suffix == PARQUET:
        yield from _parquet(path, column)
        return
    if path.suffix == ".csv":
        yield from csv.DictReader(_text(path).splitlines(keepends=True))
        return
    if path.suffix == ".tsv":
        yield from _tsv(path)
        return
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {number} is no JSON object", "mend that line")
            yield row


def _parquet(path: Path, column: str) -> Iterator[Mapping[str, Any]]:
    """Its texts alone, each with the number of its row for a name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            if AUDIO not in there or column not in there:
                missing = AUDIO if AUDIO not in there else column
                raise unknown(f"column of {path}", missing, there, "set [synth.s2tt] column")
            number = 0
            for batch in file.iter_batches(columns=[column]):
                for text in batch.column(0).to_pylist():
                    yield {FILE_NAME: f"{number:07d}", column: text}
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}", "copy it again") from None


def _tsv(path: Path) -> Iterator[Mapping[str, Any]]:
    """Fields between tabs; quotes are letters, as the tables of Common Voice, CoVoST2 and FLEURS have them."""
    lines = [line.split("\t") for line in _text(path).split("\n") if line.strip()]
    head = [name.strip() for name in lines[0]] if lines else []
    if len(head) == len(FLEURS) and head[0].isdigit():
        head = list(FLEURS)
    else:
        lines = lines[1:]
    for line in lines:
        row = dict(zip(head, line, strict=False))
        yield row if FILE_NAME in row or "path" not in row else {**row, FILE_NAME: row["path"]}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "save it as UTF-8") from None
