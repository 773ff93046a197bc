"""`rba score RUN`: the scoring half of `rba eval`, from answers that stand in the run's journals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rbalign.config.recipe import Recipe
from rbalign.errors import DataError, RunError
from rbalign.rundir.run import RunDir
from rbalign.stages.base import Plan, PlanRow
from rbalign.stages.eval import Evaluation
from rbalign.stages.eval_plan import BYTES_PER_SCORE, SECONDS_PER_SCORE


def plan(recipe: Recipe, run: RunDir) -> Plan:
    """The scores that are not there yet. Refuses a run that lacks answers: its table would have other denominators."""
    left = _answered(recipe, run).left(".scores")
    return Plan((PlanRow("scores", left, left * SECONDS_PER_SCORE, left * BYTES_PER_SCORE),) if left else ())


def run(recipe: Recipe, run: RunDir) -> Mapping[str, str]:
    """Score and tabulate, going on where an earlier start stopped."""
    return _answered(recipe, run).conclude()


def forget(run: RunDir) -> None:
    """Drop every score, keep every answer: the next start scores all of them anew."""
    run.reopen("eval")
    for path in run.path("eval").glob("*/*.scores.jsonl"):
        path.unlink()


def _answered(recipe: Recipe, run: RunDir) -> Evaluation:
    """The evaluation, all of whose answers are there."""
    where = "" if run.folder.parent == Path("runs") else f" --runs {run.folder.parent}"
    cure = f"first `rba predict {run.path('recipe.toml')}{where}`"
    try:
        evaluation = Evaluation.open(recipe, run, speak=False)
    except DataError as error:
        raise RunError(error.problem, cure) from error
    if left := evaluation.left():
        raise RunError(f"{left:,} answers of run {run.recipe.name} are not written yet", cure)
    return evaluation
