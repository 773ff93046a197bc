"""Evaluation texts that no instruction may resemble, from the files that a recipe names.

Every text is read on its own: beside an id and an answer in one line, a question would resemble no instruction.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from rbalign.errors import DataError, UsageError

_BATCH = 1024
"""Rows of a parquet file in memory at once."""


def leakage_texts(path: Path) -> Iterator[str]:
    """The texts of a file: every string of .json and .jsonl, however deep, and of the text columns of .parquet, every
    cell of .csv and .tsv, every line of any other file. Only .json is held in memory whole.

    Raises UsageError for a file that cannot be opened, DataError for one that is not what its name says.
    """
    read = _READERS.get(path.suffix.lower(), _lines)
    try:
        with path.open("rb") as file:
            yield from (text for text in read(file) if text.strip())
    except OSError as error:
        raise UsageError(f"cannot read leakage file {path}: {error.strerror}", "name an existing file") from None
    except UnicodeDecodeError:
        raise DataError(f"leakage file {path} is no UTF-8 text", "save it as UTF-8") from None
    except ValueError as error:
        raise DataError(f"leakage file {path}: {error}", "mend it, or save its texts as .jsonl") from None


def _text(file: BinaryIO) -> TextIOWrapper:
    return TextIOWrapper(file, encoding="utf-8-sig", newline="")


def _lines(file: BinaryIO) -> Iterator[str]:
    for line in _text(file):
        yield from line.splitlines()


def _jsonl(file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(_text(file), start=1):
        if line.strip():
            yield from _strings(_parsed(line, f"line {number}"))


def _json(file: BinaryIO) -> Iterator[str]:
    return _strings(_parsed(_text(file).read(), "it"))


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"{what} is no JSON") from None
    except RecursionError:
        raise ValueError(f"{what} is JSON nested too deep") from None


def _csv(file: BinaryIO) -> Iterator[str]:
    """Strict, since a quote that is never closed would make one long text of all rows after it. The delimiter is the
    one that the first line has most of: spreadsheets of many countries write semicolons."""
    lines = _text(file)
    first = lines.readline()
    delimiter = max(",;\t", key=first.count)
    return _cells(chain([first], lines), delimiter=delimiter, strict=True, skipinitialspace=True)


def _tsv(file: BinaryIO) -> Iterator[str]:
    """Quotes are letters, as in the tables of Common Voice, CoVoST2 and FLEURS."""
    return _cells(_text(file), delimiter="\t", quoting=csv.QUOTE_NONE)


def _cells(lines: Iterable[str], **form: Any) -> Iterator[str]:
    rows = csv.reader(lines, **form)
    try:
        for row in rows:
            yield from row
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from None


def _parquet(file: BinaryIO) -> Iterator[str]:
    """Only columns of text are read, also those inside lists and tables: the clips beside them may be gigabytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            leaves = [table.schema.column(place) for place in range(len(table.schema))]
            columns = [leaf.path for leaf in leaves if leaf.logical_type.type == "STRING"]
            if not columns:
                raise ValueError("it has no column of text")
            for batch in table.iter_batches(_BATCH, columns=columns):
                yield from _strings(batch.to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"it cannot be read as parquet: {error}") from None


def _strings(value: Any) -> Iterator[str]:
    """A conversation is a list of tables: its turns count as much as a plain column. So do keys of several words:
    some sets map questions to answers."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from (key for key in value if " " in key)
            waiting += reversed(value.values())
        elif isinstance(value, list | tuple):
            waiting += reversed(value)


_READERS: dict[str, Callable[[BinaryIO], Iterator[str]]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
