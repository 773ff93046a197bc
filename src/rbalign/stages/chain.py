"""The stages of a recipe one after the other: finished ones are skipped, changed ones refused, the rest run."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rbalign.config.endpoints import FREE
from rbalign.config.load import load_recipe
from rbalign.config.recipe import STAGES, Recipe
from rbalign.errors import RunError, UsageError
from rbalign.rundir.run import RunDir, StageHandle
from rbalign.stages.base import Plan, StageModule

# Fields that change memory and time, never a result: a run may go on with other values.
FREE_FIELDS = {
    "synth": {"batch_size", "workers"},
    "align": {"micro_batch", "workers", "gradient_checkpointing", "answers_every"},
    "eval": {"batch_size", "workers"},
}
# Seconds of work on files that are there: done again whenever asked, so that a new version can draw an old run.
REPEATED = {"report"}
HALVES = {"predict": ("eval", False), "score": ("eval", True)}
"""Verb -> the stage that it does a half of, under the whole stage's key, and whether that half completes the stage."""


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """What became of one stage."""

    stage: str
    skipped: bool
    """True if it was finished before."""
    plan: Plan = field(default_factory=Plan)
    """What was still to do; empty when skipped."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """What it made, name -> hash; empty in a dry run of an unfinished stage."""


def chain(
    recipe: Recipe,
    run: RunDir,
    only: str | None = None,
    dry_run: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[StageOutcome]:
    """Run the recipe's stages in order, or the one (or the half of one) that `only` names; `say` hears a line of each.

    A dry run makes the plans and starts nothing; a run opened by `RunDir.look` serves it. Raises UsageError if the
    recipe lacks the stage; RunError if an earlier stage is unfinished, a finished one changed or the disk too small.
    """
    outcomes = []
    if not dry_run:
        _check(recipe, run, only)
    for verb in _wanted(recipe, only):
        stage, completes = HALVES.get(verb, (verb, True))
        module = _module(verb)
        handle = _enter(_module(stage), stage, recipe, run)
        if handle is None and not dry_run:
            raise _unfinished(verb, recipe, run)
        if handle is not None and handle.done and stage not in REPEATED:
            say(f"{stage}: finished before, skipped")
            outcomes.append(StageOutcome(stage, True, outputs=handle.outputs))
            continue
        plan = module.plan(recipe, run)
        if dry_run or handle is None:
            outcomes.append(StageOutcome(stage, False, plan))
            continue
        _check_space(stage, plan, run.folder)
        outputs = dict(module.run(recipe, run))
        if completes:
            handle.finish(outputs)
        say(f"{verb}: done")
        outcomes.append(StageOutcome(stage, False, plan, outputs))
    return outcomes


def run_recipe(
    recipe: str | Path | Recipe,
    overrides: tuple[str, ...] = (),
    runs: str | Path = "runs",
    fork: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """`rba run` from Python: the whole chain of a packaged recipe, a TOML file or a Recipe; the run's folder."""
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, overrides)
    with RunDir.open(Path(runs), loaded, fork) as run:
        chain(run.recipe, run, say=say)
        return run.folder


def _check(recipe: Recipe, run: RunDir, only: str | None) -> None:
    """What a later stage would refuse after hours of the stages before it, it refuses now."""
    for verb in _wanted(recipe, only):
        stage, _ = HALVES.get(verb, (verb, True))
        check = getattr(_module(stage), "check", None)
        if check is not None and run.outputs(stage) is None:
            check(recipe)


def _wanted(recipe: Recipe, only: str | None) -> list[str]:
    stages = recipe.stages()
    wanted, _ = HALVES.get(only or "", (only, True))
    if wanted is not None and wanted not in stages:
        has = ", ".join(f"[{stage}]" for stage in stages) or "no stage"
        raise UsageError(f"recipe {recipe.name} has no [{wanted}] section; it has {has}", f"add [{wanted}] to it")
    if not stages:
        raise UsageError(f"recipe {recipe.name} has no stage", f"add at least one of {', '.join(STAGES)}")
    return stages if only is None else [only]


def _module(stage: str) -> StageModule:
    return cast(StageModule, importlib.import_module(f"rbalign.stages.{stage}"))


def _enter(module: StageModule, stage: str, recipe: Recipe, run: RunDir, begin: bool = True) -> StageHandle | None:
    """The stage's handle, or None while an earlier stage of the recipe is unfinished and its outputs unknown.

    A fork takes over what its source has finished. Without `begin` an unfinished stage stays as it was.
    """
    inputs: dict[str, str] = {}
    for earlier in recipe.stages():
        if earlier == stage:
            break
        outputs = run.outputs(earlier)
        if outputs is None:
            taken = _enter(_module(earlier), earlier, recipe, run, begin=False) if run.is_fork else None
            if taken is None or not taken.done:
                return None
            outputs = dict(taken.outputs)
        # The key too: a stage whose outputs say too little must not pass for unchanged in a fork.
        inputs |= {f"{earlier}.key": run.key(earlier)} | {f"{earlier}.{name}": outputs[name] for name in outputs}
    outside = getattr(module, "inputs", None)
    if outside is not None:
        inputs |= outside(recipe)
    return run.stage(stage, settings(recipe, stage), inputs, repeat=stage in REPEATED, begin=begin)


def settings(recipe: Recipe, stage: str) -> dict[str, Any]:
    """What a stage's result depends on in the recipe: its section, the seed and the teacher."""
    whole = recipe.model_dump(mode="json")
    section = {key: value for key, value in whole[stage].items() if key not in FREE_FIELDS.get(stage, ())}
    if voices := section.get("endpoint_voices"):
        section["endpoint_voices"] = [_without_free(voice) for voice in voices]
    for name in ("judge", "rollout"):
        if server := section.get(name):
            section[name] = _without_free(server)
    for writer in (teacher := whole["teacher"], (section.get("labels") or {}).get("tagger") or {}):
        if endpoint := writer.get("endpoint"):
            writer["endpoint"] = _without_free(endpoint)
    return {"seed": whole["seed"], "teacher": teacher, stage: section}


def _without_free(endpoint: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in endpoint.items() if key not in FREE}


def _unfinished(stage: str, recipe: Recipe, run: RunDir) -> RunError:
    missing = next(earlier for earlier in recipe.stages() if run.outputs(earlier) is None)
    return RunError(
        f"{stage} needs {missing}, which is not finished in run {run.recipe.name}",
        f"first `rba {missing} RECIPE`, or all in order: `rba run RECIPE`",
    )


def _check_space(stage: str, plan: Plan, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if plan.bytes > free:
        raise RunError(
            f"{stage} needs about {plan.bytes / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free",
            "free some space, or choose another place with --runs DIR",
        )
