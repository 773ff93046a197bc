"""`rba score --suite NAME [FOLDER]`, `rba eval --suite NAME --output DIR`: a paper's rows, with what was measured here
beside them and why the two differ.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rbalign.errors import DataError, UsageError, unknown
from rbalign.eval.tasks.scored import Scored, number, read_scored

EMPTY = ""
"""A cell that nothing was measured for."""
NAMED = 3
"""Files that are passed over and named; the others are counted."""


@dataclass(frozen=True, slots=True)
class SuiteTable:
    """Rows as text: what, the paper's columns, ours, how the protocols differ."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class _Ours:
    """One of our figures that belongs to a row."""

    who: str
    scored: Scored
    figure: Mapping[str, Any]


def suite_table(name: str, place: Path | None, *, strict: bool = True) -> SuiteTable:
    """The rows of a suite; `place`: a scored file, or a folder that has scored files somewhere in it.

    UsageError for an unknown suite; if `strict`, for a place without scores, too, which is else said in a note.
    """
    suites = tomllib.loads(resources.files("rbalign.eval.tasks").joinpath("paper.toml").read_text(encoding="utf-8"))
    if name not in suites:
        raise unknown("suite", name, suites)
    suite = suites[name]
    found, told = ([], []) if place is None else _scored_files(place, strict)
    papers: Sequence[str] = suite["columns"]
    ours = [list(_figures(row, found)) for row in suite["rows"]]
    rows = [
        [row["what"], *(row["values"].get(column, EMPTY) for column in papers), _cell(row, own), row["differs"]]
        for row, own in zip(suite["rows"], ours, strict=True)
    ]
    notes = [
        f"{sum(map(bool, ours))} of {len(rows)} rows have a number of ours; it is another protocol's in each of them",
        *told,
        *dict.fromkeys(f"ours: {one.figure['protocol']}" for own in ours for one in own),
    ]
    return SuiteTable(suite["title"], ("what", *papers, "ours", "what differs"), rows, notes)


def _scored_files(place: Path, strict: bool) -> tuple[list[tuple[str, Scored]], list[str]]:
    """Whose they are and the scored files, and what is to be said of the other files."""
    if place.is_file():
        one = read_scored(place)
        return [(one["model"], one)], []
    if strict and not place.is_dir():
        raise UsageError(f"no file or folder {place}", "give a folder with files that `rba score --task` wrote")
    found: dict[str, Scored] = {}
    passed: list[str] = []
    for path in sorted(place.rglob("*.json")):
        within = path.relative_to(place).as_posix()
        try:
            if path.is_file():
                found[within] = read_scored(path)
        except DataError:
            passed.append(within)
    if not found:
        problem, cure = f"{place} holds no scored file", "rba score --task NAME --data FOLDER FILE.jsonl makes one"
        if strict:
            raise UsageError(problem, cure)
        return [], [f"{problem}: {cure}, and so does rba eval --model"]
    more = f" and {len(passed) - NAMED} more" if len(passed) > NAMED else ""
    told = [f"passed over, as no scores of this version of rba: {', '.join(passed[:NAMED])}{more}"] if passed else []
    return _told_apart(found), told


def _told_apart(found: Mapping[str, Scored]) -> list[tuple[str, Scored]]:
    """By the model's name, and where several files of a task have it (every folder its `text`) by the file's."""
    names = Counter((one["task"], one["model"]) for one in found.values())
    return [(within if names[one["task"], one["model"]] > 1 else one["model"], one) for within, one in found.items()]


def _cell(row: Mapping[str, Any], ours: Sequence[_Ours]) -> str:
    """`mine against base 74.00 % (68.1 to 79.9), n 200`, several joined by a semicolon."""
    return "; ".join(f"{one.who}{_which(row, one)} {number(one.figure)}, n {one.figure['n']}" for one in ours)


def _which(row: Mapping[str, Any], one: _Ours) -> str:
    """What tells a figure from the others that its row takes."""
    metric, _, opponent = one.figure["metric"].partition("@")
    return "".join(
        (
            f" on {one.scored['task']}" if len(_listed(row, "task")) > 1 else "",
            f" {metric}" if len(_listed(row, "metric")) > 1 else "",
            f" against {opponent}" if opponent else "",
            f" by {one.figure['part']}" if len(_listed(row, "part")) > 1 else "",
        )
    )


def _figures(row: Mapping[str, Any], found: Sequence[tuple[str, Scored]]) -> Iterator[_Ours]:
    """Our figures for a row: those of its task, metric, opponent and part that have a value."""
    for who, one in found:
        if one["task"] not in _listed(row, "task"):
            continue
        for figure in one["figures"]:
            metric, _, opponent = figure["metric"].partition("@")
            # A win rate stands beside the paper's against the same role: the file behind --against has its name.
            if (
                metric in _listed(row, "metric")
                and opponent.lower() == row.get("opponent", "")
                and figure["part"] in _listed(row, "part")
                and figure["value"] is not None
            ):
                yield _Ours(who, one, figure)


def _listed(row: Mapping[str, Any], key: str) -> Sequence[str]:
    """A row's task, metric or part: one, or several. Without any the whole of a task is meant."""
    given: str | Sequence[str] = row.get(key, "")
    return [given] if isinstance(given, str) else given
