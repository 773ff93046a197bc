"""Two arms, of one run or of two, instruction by instruction: from their score journals alone. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbalign.errors import UsageError, unknown
from rbalign.eval.metrics import METRICS
from rbalign.eval.results import comparison_row
from rbalign.eval.score import load_rows
from rbalign.eval.stats import Bootstrap
from rbalign.eval.table import Table
from rbalign.keys import Key

SCORES = ".scores.jsonl"


@dataclass(frozen=True, slots=True)
class ArmScores:
    """An arm (all its seeds) or a reference in a run folder."""

    run: Path
    arm: str

    def rows(self, task: str) -> list[dict[str, Any]]:
        """Score rows of a task, seeds one after the other."""
        return load_rows(folder / f"{task}{SCORES}" for folder in self.folders())

    def folders(self) -> list[Path]:
        """`eval/ARM` or every `eval/ARM-sSEED`; naming one seed takes that seed."""
        exact = self.run / "eval" / self.arm
        if exact.is_dir():
            return [exact]
        pattern = re.compile(rf"{re.escape(self.arm)}-s\d+")
        return sorted(path for path in (self.run / "eval").glob("*") if pattern.fullmatch(path.name))

    def tasks(self) -> set[str]:
        """Tasks that have scores."""
        return {path.name.removesuffix(SCORES) for folder in self.folders() for path in folder.glob(f"*{SCORES}")}


def arms_of(run: Path) -> list[str]:
    """Arms and references that a run has scores of, seeds pooled under one name."""
    names = {re.sub(r"-s\d+$", "", path.parent.name) for path in (run / "eval").glob(f"*/*{SCORES}")}
    return sorted(names)


def named_arm(run: Path, arm: str) -> ArmScores:
    """The arm of that name, or UsageError with the ones that are there."""
    found = ArmScores(run, arm)
    if not arms_of(run):
        raise UsageError(f"{run} has no scores under eval/", "give the folder of a run whose eval is finished")
    if not found.tasks():
        raise unknown(f"arm of {run}", arm, arms_of(run))
    return found


def compare_arms(left: ArmScores, right: ArmScores, *, resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """left - right for every task and metric that both have, over the instructions that both answered.

    Rows: task, metric, difference, ci_low, ci_high, n, p, wins, losses, ties (instructions whose score went up,
    down, neither), sign_p. Raises UsageError if they share no instruction.
    """
    rows = [
        row for task in sorted(left.tasks() & right.tasks()) for row in _one_task(left, right, task, resamples, seed)
    ]
    if not rows:
        raise UsageError(
            f"{left.arm} and {right.arm} share no scored instruction", "compare runs that evaluated the same dataset"
        )
    return rows


def _one_task(left: ArmScores, right: ArmScores, task: str, resamples: int, seed: int) -> Iterator[dict[str, Any]]:
    mine, theirs = left.rows(task), right.rows(task)
    shared = sorted({row["example"] for row in mine} & {row["example"] for row in theirs})
    if not shared:
        return
    ours, others = Table(shared, mine), Table(shared, theirs)
    boot = Bootstrap(len(shared), resamples, Key(seed, "bootstrap").generator())
    for name, metric in METRICS.items():
        if metric.higher_is_better is not None and name in ours.metrics() and name in others.metrics():
            found = comparison_row(boot.compare(ours.values(name), others.values(name)))
            yield {"task": task, "metric": name, **found}
