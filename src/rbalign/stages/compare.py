"""Two finished runs, or two arms, side by side, from their files alone."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rbalign.errors import DataError, UsageError
from rbalign.eval.paired import Flip, arm_flips, arms_of, compare_arms, compare_scored, named_arm
from rbalign.eval.tasks.corpus import METRICS as METRICS_OF_A_CORPUS
from rbalign.eval.tasks.scored import read_scored


@dataclass(frozen=True, slots=True)
class Pair:
    """The same number in both runs: two rows of results.json."""

    a: dict[str, Any]
    b: dict[str, Any]

    @property
    def difference(self) -> float | None:
        """b - a, None where one of them has no value."""
        known = self.a["value"] is not None and self.b["value"] is not None
        return float(self.b["value"] - self.a["value"]) if known else None


@dataclass(frozen=True, slots=True)
class RunComparison:
    """What differs between two runs."""

    settings: list[tuple[str, Any, Any]]
    """(dotted key, value in a, value in b) for all that differs in the recipes; None where a key is absent."""
    note: str
    """Whether the two were measured on the same data."""
    pairs: list[Pair]
    paired: list[dict[str, Any]] = field(default_factory=list)
    """b - a by instruction, where both were measured on the same ones: see `eval.paired.compare_arms`, plus `arm`."""
    flips: list[Flip] = field(default_factory=list)
    """Of two arms."""


def compare(a: Path, b: Path) -> RunComparison:
    """Compare two run folders, or two arms: RUN:ARM. Raises UsageError where one has no results.

    Arms are compared by instruction; so are all arms that two runs on the same dataset share.
    """
    (a, arm_a), (b, arm_b) = _run_and_arm(a), _run_and_arm(b)
    rows_a, rows_b = _rows(a), _rows(b)
    shared = [] if arm_a or arm_b else [Pair(rows_a[key], rows_b[key]) for key in rows_a if key in rows_b]
    same = _dataset(a) is not None and _dataset(a) == _dataset(b)
    note = (
        "Both runs were measured on the same dataset."
        if same
        else "The runs have different datasets: their instructions differ, so small differences mean nothing."
    )
    settings = sorted(_differences(_recipe(a), _recipe(b)))
    by_instruction = list(_paired(a, arm_a, b, arm_b)) if same else []
    flips = arm_flips(named_arm(b, arm_b), named_arm(a, arm_a)) if same and arm_a and arm_b else []
    return RunComparison([one for one in settings if one[0] != "name"], note, shared, by_instruction, flips)


@dataclass(frozen=True, slots=True)
class FileComparison:
    """What differs between two scored files of a task."""

    task: str
    notes: list[str]
    """Where their protocols differ."""
    rows: list[dict[str, Any]]
    """b - a; see `eval.paired.compare_scored`."""
    flips: list[Flip]

    @property
    def lines(self) -> list[list[str]]:
        """The rows as text."""
        return [
            [
                row["metric"],
                row["part"],
                f"{row['difference']:+.{_digits(row)}f}{row['unit'] and ' ' + row['unit']}",
                f"{row['ci_low']:+.{_digits(row)}f} to {row['ci_high']:+.{_digits(row)}f}",
                f"{row['p']:.4f}",
                f"{row['wins']} / {row['losses']} / {row['ties']}",
                f"{row['sign_p']:.4f}",
                "-" if row["effect"] is None else f"{row['effect']:+.2f}",
                str(row["n"]),
            ]
            for row in self.rows
        ]


def compare_files(a: Path, b: Path) -> FileComparison:
    """Compare two files that `rba score --task` wrote. Raises UsageError where their items are not the same."""
    first, second = read_scored(a), read_scored(b)
    rows, flips = compare_scored(second, first)
    if not rows:
        raise UsageError(
            "the files share no score: of wins over other answers, or by another judge, there is no difference",
            "score both --against the same file by the same --judge",
        )
    notes = [
        f"the protocols differ: {field} of A is {_said(first, field)}, of B {_said(second, field)}"
        for field in ("scorer", "judge", "against", "rbalign")
        if _said(first, field) != _said(second, field)
    ]
    return FileComparison(first["task"], notes, rows, flips)


def _digits(row: dict[str, Any]) -> int:
    """Two of percents and of a corpus' points, three of what lies between 0 and 1."""
    return 2 if row["unit"] or row["metric"] in METRICS_OF_A_CORPUS else 3


def _said(scored: dict[str, Any], field: str) -> str:
    found = scored.get(field)
    return str(found.get("protocol") or found.get("name")) if isinstance(found, dict) else str(found or "none")


def _run_and_arm(given: Path) -> tuple[Path, str | None]:
    """`runs/laptop:sft` -> the run's folder and the arm's name; a folder of that very name comes first."""
    run, colon, arm = str(given).rpartition(":")
    return (Path(run), arm) if colon and not Path(given).is_dir() else (Path(given), None)


def _paired(a: Path, arm_a: str | None, b: Path, arm_b: str | None) -> Iterator[dict[str, Any]]:
    """Differences by instruction; an arm that is named on one side only is compared with its own name."""
    if arm_a or arm_b:
        pairs = [(arm_a or arm_b or "", arm_b or arm_a or "")]
    else:
        pairs = [(arm, arm) for arm in arms_of(a) if arm in arms_of(b)]
    for one, other in pairs:
        label = one if one == other else f"{other} - {one}"
        for row in compare_arms(named_arm(b, other), named_arm(a, one)):
            yield {"arm": label, **row}


def _rows(run: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    path = run / "results.json"
    if not path.is_file():
        raise UsageError(f"{run} has no results.json", "give the folder of a run whose eval is finished")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return {tuple(row[key] for key in ("arm", "task", "metric", "seed")): row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a table of results ({error!r})", "run `rba eval` again") from None


def _dataset(run: Path) -> str | None:
    """The content hash of the dataset: synth's own, or the one that predictions made elsewhere were scored on."""
    try:
        stages = json.loads((run / "status.json").read_text(encoding="utf-8"))["stages"]
        own = "synth" in stages
        return str(stages["synth"]["outputs"]["dataset"] if own else stages["eval"]["inputs"]["synth.dataset"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _recipe(run: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{run / 'recipe.toml'} cannot be read: {error}", "give the folder of a run") from None


def _differences(a: dict[str, Any], b: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in sorted({*a, *b}):
        old, new = a.get(key), b.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{where}{key}.")
        elif old != new:
            yield f"{where}{key}", old, new
