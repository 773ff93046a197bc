"""`rba score --suite NAME [FOLDER]`: a paper's rows, with what was measured here beside them and why the two differ."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rbalign.errors import DataError, UsageError, unknown
from rbalign.eval.tasks.scored import Scored, number, read_scored

EMPTY = ""
"""A cell that nothing was measured for."""


@dataclass(frozen=True, slots=True)
class SuiteTable:
    """Rows as text: what, the paper's columns, ours, how the protocols differ."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    notes: list[str]


def suite_table(name: str, place: Path | None) -> SuiteTable:
    """The rows of a suite; `place`: a scored file, or a folder with scored files among others.

    UsageError for an unknown suite or a place without scores.
    """
    suites = tomllib.loads(resources.files("rbalign.eval.tasks").joinpath("paper.toml").read_text(encoding="utf-8"))
    if name not in suites:
        raise unknown("suite", name, suites)
    suite, ours = suites[name], [] if place is None else _scored_files(place)
    papers: Sequence[str] = suite["columns"]
    rows = [
        [row["what"], *(row["values"].get(column, EMPTY) for column in papers), _ours(row, ours), row["differs"]]
        for row in suite["rows"]
    ]
    measured = sum(bool(row[-2]) for row in rows)
    notes = [f"{measured} of {len(rows)} rows have a number of ours; it is another protocol's in each of them"]
    protocols = {figure["protocol"]: None for row in suite["rows"] for _, figure in _figures(row, ours)}
    notes += [f"ours: {protocol}" for protocol in protocols]
    return SuiteTable(suite["title"], ("what", *papers, "ours", "what differs"), rows, notes)


def _scored_files(place: Path) -> list[Scored]:
    if place.is_file():
        return [read_scored(place)]
    if not place.is_dir():
        raise UsageError(f"no file or folder {place}", "give a folder with files that `rba score --task` wrote")
    found = list(_readable(sorted(place.glob("*.json"))))
    if not found:
        raise UsageError(f"{place} holds no scored file", "rba score --task NAME --data FOLDER FILE.jsonl makes one")
    return found


def _readable(paths: Sequence[Path]) -> Iterator[Scored]:
    """Scores among other JSON files."""
    for path in paths:
        try:
            yield read_scored(path)
        except DataError:
            continue


def _ours(row: Mapping[str, Any], scored: Sequence[Scored]) -> str:
    """`mine@base 74.00 % (68.1 to 79.9), n 200`, several joined by a semicolon."""
    return "; ".join(
        f"{one['model']}{_opponent(figure)} {number(figure)}, n {figure['n']}" for one, figure in _figures(row, scored)
    )


def _figures(row: Mapping[str, Any], scored: Sequence[Scored]) -> Iterator[tuple[Scored, Mapping[str, Any]]]:
    """Our figures for a row: those of its task, its metric, of the whole task, that have a value."""
    for one in scored:
        for figure in one["figures"]:
            metric, _, opponent = figure["metric"].partition("@")
            # A win rate stands beside the paper's against the same role: the file behind --against has its name.
            if (
                one["task"] == row.get("task")
                and metric == row.get("metric")
                and opponent.lower() == row.get("opponent", "")
                and figure["part"] == ""
                and figure["value"] is not None
            ):
                yield one, figure


def _opponent(figure: Mapping[str, Any]) -> str:
    opponent = figure["metric"].partition("@")[2]
    return f" against {opponent}" if opponent else ""
