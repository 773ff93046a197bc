"""Evaluation texts that no instruction may resemble, from the files that a recipe names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rbalign.errors import UsageError


def leakage_texts(path: Path) -> list[str]:
    """The texts of a file: of .jsonl every string in its rows, however deep, of any other file its lines.

    Raises UsageError for a file that cannot be read as that.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UsageError(f"cannot read leakage file {path}: {reason}", "name an existing file") from None
    if path.suffix.lower() != ".jsonl":
        return [line for line in text.splitlines() if line.strip()]
    found: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                found += _strings(json.loads(line))
            except ValueError:
                raise UsageError(f"leakage file {path}: line {number} is no JSON", "mend that line") from None
    return found


def _strings(value: Any) -> Iterator[str]:
    """A conversation is a list of tables: its turns count as much as a plain column."""
    if isinstance(value, str) and value.strip():
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
