"""Whole files: written aside and renamed, hashed, or named by the hash of a value."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rbalign.errors import DataError


def atomic_write(path: Path, content: bytes | str) -> None:
    """Replace a file so that a reader or a crash sees the old or the new content, never a part; makes its folder.

    Raises DataError if the disk refuses (full, read-only, no permission); the old content is then untouched.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}", "free some disk space or mend the rights") from error
    finally:
        aside.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut. A no-op where folders cannot be opened (Windows)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """The file's sha256 in hex, read in 1 MiB blocks; `advance` is told the bytes of each block."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if advance is not None:
                advance(len(block))
    return digest.hexdigest()


def stable_hash(value: Any) -> str:
    """32 hex digits that name a JSON value: equal whatever the order of its keys, on every machine.

    Tuples count as lists. Raises DataError for what JSON cannot hold, since its hash would not be stable.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"no stable hash of this value: {error}", "use numbers, strings, lists and tables") from None
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
