"""Whole files and folders: written aside and renamed; files hashed, values named by their hash."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rbalign.errors import DataError, RunError, UsageError

_DISK_CURE = "free some disk space or mend the rights"


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
        raise DataError(f"cannot write {path}: {error.strerror}", _DISK_CURE) from error
    finally:
        aside.unlink(missing_ok=True)


def refuse_taken(out: Path) -> None:
    """UsageError if `out` is there and holds anything: nothing of the user's is ever overwritten."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there and not empty", "give a folder that does not exist yet, or empty it")


@contextmanager
def new_folder(out: Path, size: int) -> Iterator[Path]:
    """A folder to fill beside `out`; it becomes `out` when the block ends well, and vanishes when it does not.

    size: bytes that will be written. Raises UsageError if `out` is taken, RunError if the disk has no room for it,
    DataError if the disk refuses. What a killed process left beside `out` goes with the next one.
    """
    refuse_taken(out)
    place = out.resolve()
    aside = place.with_name(f".{place.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        free = shutil.disk_usage(aside).free
        if size > free:
            cure = "free some, or choose another place"
            raise RunError(f"{out} needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free", cure)
        yield aside
        aside.replace(place)
        fsync_folder(place.parent)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}", "choose another place") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file that is never rewritten at a second place, as a whole or not at all: a hard link, which costs no
    space; a copy where the file system has none. Replaces what is there; makes the folder.

    Raises DataError if the disk refuses.
    """
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.unlink(missing_ok=True)
        try:
            aside.hardlink_to(source)
        except OSError:
            with source.open("rb") as read, aside.open("wb") as written:
                shutil.copyfileobj(read, written, 1 << 20)
                written.flush()
                os.fsync(written.fileno())
        aside.replace(target)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}", _DISK_CURE) from error
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
