"""The only append-only store: keyed JSON lines that survive kill -9, a full disk and a power cut.

One `append` is one write and one fsync; when it returns, its rows are on the disk. A crash can leave at most a
prefix of a batch that was not acknowledged: whole lines of it are kept (their keys are known, nothing is doubled),
a torn last line is cut when the journal is next opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from rbalign.errors import DataError
from rbalign.rundir.files import fsync_folder

FULL = "free some disk space and start again: every acknowledged row is kept"


class Journal:
    """Rows on disk, each known by `row[key]` (a string or an integer); a repeated key is ignored.

    Open it in a `with` block. The run directory's lock makes sure that nobody else writes to it.
    """

    def __init__(self, path: Path, key: str = "id") -> None:
        self.path = Path(path)
        self.key = key
        self._keys: set[str | int] = set()
        self._file = -1
        self._end = 0

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
            fsync_folder(self.path.parent)
            for row, end in _complete_rows(self.path):
                self._keys.add(self._key_of(row))
                self._end = end
            if os.fstat(self._file).st_size > self._end:
                self._cut()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise DataError(f"cannot open {self.path}: {error.strerror}", "mend the path or its rights") from error
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; rows() still works."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def append(self, rows: Iterable[Mapping[str, Any]]) -> int:
        """Write the rows whose keys are new, in one write and one fsync; how many were new.

        Raises DataError, with the file as it was before, if a row is not JSON or the disk refuses. After a refusal
        (or a Ctrl-C in the middle) the journal is closed: what the disk holds is known again at the next open.
        """
        fresh: dict[str | int, bytes] = {}
        for row in rows:
            key = self._key_of(row)
            if key not in self._keys and key not in fresh:
                fresh[key] = _line(row, key)
        if not fresh:
            return 0
        if self._file < 0:
            raise DataError(f"{self.path} is closed", "append inside its `with` block")
        block = b"".join(fresh.values())
        try:
            _write_all(self._file, block)
            os.fsync(self._file)
            self._keys.update(fresh)
            self._end += len(block)
        except BaseException as error:
            self._keys.difference_update(fresh)
            with suppress(OSError):  # a device, or a dying disk: the torn tail is cut at the next open
                self._cut()
            self.close()
            if isinstance(error, OSError):
                raise DataError(f"cannot write {self.path}: {error.strerror}", FULL) from error
            raise
        return len(fresh)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows in the order they were written, read from the disk."""
        return read_rows(self.path)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def _key_of(self, row: Mapping[str, Any]) -> str | int:
        key = row.get(self.key)
        if not isinstance(key, str | int):
            raise DataError(f"{self.path}: a row has no string or integer {self.key!r}", "give every row its key")
        return key

    def _cut(self) -> None:
        """Back to the last acknowledged byte."""
        os.ftruncate(self._file, self._end)
        os.fsync(self._file)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The complete rows of a journal, without opening it for writing; a torn last line is passed over."""
    return (row for row, _ in _complete_rows(Path(path)))


def count_lines(path: Path) -> int:
    """How many rows a journal holds, unread: quick, and true while another process writes it."""
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _complete_rows(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Every row that ends in a newline, with the offset of its end."""
    if not path.is_file():  # a device, or no journal yet: nothing to read
        return
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {number} is not a JSON row", f"delete or mend line {number}")
            yield row, end


def _line(row: Mapping[str, Any], key: str | int) -> bytes:
    try:
        text = json.dumps(dict(row), ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
    except (TypeError, ValueError) as error:
        raise DataError(f"row {key!r} cannot be written as JSON: {error}", "use None for a value that is not") from None
    # A lone surrogate has no UTF-8; its backslash form is the JSON escape of the same character.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _write_all(file: int, block: bytes) -> None:
    """os.write may take only a part (a disk that fills up): go on until it takes all or raises."""
    view = memoryview(block)
    while view:
        view = view[os.write(file, view) :]
