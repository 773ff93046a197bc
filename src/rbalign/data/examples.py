"""Examples on disk: examples-NNNNN.jsonl, one row for each instruction, read one at a time or found by id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path

from rbalign.errors import DataError
from rbalign.types import Example

EXAMPLES_PER_FILE = 10_000
"""About 10 MB: what is held as text when examples are added."""

_FIELDS = {field.name for field in fields(Example)}
_FIRST_KEY = b'{"id": '
"""How every row starts, since the id is the first field."""
_DECODER = json.JSONDecoder()
_OFFSET_BITS = 44
"""A place is (number of the file, offset in it) in one int: 16 TB a file."""


def example_files(folder: Path) -> list[Path]:
    """The files of a dataset folder, in the order they were written."""
    return sorted(folder.glob("examples-*.jsonl"))


def encode_examples(examples: Iterable[Example]) -> str:
    """The text of one file. ValueError for labels that JSON cannot hold."""
    rows = (json.dumps(asdict(example), ensure_ascii=False, allow_nan=False) for example in examples)
    return "".join(row + "\n" for row in rows)


def iter_examples(folder: Path) -> Iterator[Example]:
    """Every example, in the order they were written; one row is in memory. DataError for a row that is none."""
    for _, line, where in _lines(example_files(folder)):
        yield _decode(line, where)


class ExampleIndex:
    """Finds examples by id without holding them: about 120 bytes of memory for each."""

    def __init__(self, folder: Path) -> None:
        """Reads the id of every row. DataError for a row without one."""
        self._files = example_files(folder)
        self._places = {_identity(line, where): place for place, line, where in _lines(self._files)}
        self._last: Example | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, identity: str) -> Example:
        """The example of that id; the one asked for last is kept. DataError if there is none."""
        if self._last is None or self._last.id != identity:
            place = self._places.get(identity)
            if place is None:
                raise DataError(f"there is no example {identity!r}", "run the stage that wrote the dataset again")
            path, offset = self._files[place >> _OFFSET_BITS], place & ((1 << _OFFSET_BITS) - 1)
            with path.open("rb") as file:
                file.seek(offset)
                self._last = _decode(file.readline(), f"{path.name} at byte {offset}")
        return self._last


def _lines(files: Iterable[Path]) -> Iterator[tuple[int, bytes, str]]:
    """(place, row, how to call it) of every row. Lines end in \\n alone: U+2028 in a text is no line end in JSON."""
    for number, path in enumerate(files):
        offset = 0
        with path.open("rb") as file:
            for line_number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    yield number << _OFFSET_BITS | offset, line, f"{path.name} line {line_number}"
                offset += len(line)


def _identity(line: bytes, where: str) -> str:
    """The id of a row, without reading what stands behind it."""
    if line.startswith(_FIRST_KEY):
        try:
            return str(_DECODER.raw_decode(line.decode(), len(_FIRST_KEY))[0])
        except ValueError:
            pass  # told by _decode
    return _decode(line, where).id


def _decode(line: bytes, where: str) -> Example:
    try:
        row = json.loads(line)
        return Example(**{name: value for name, value in row.items() if name in _FIELDS})
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{where} is not an example: {error}", "write it again") from None
