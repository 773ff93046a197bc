"""`rba synth`: the whole stage, here or on a Ray cluster, or one of N shares of it and their merge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rbalign.cli.pipeline import STAGES, DryRun, Fork, Recipe, Runs, execute, recipe_verb, split_words
from rbalign.errors import UsageError, unknown
from rbalign.synth.parts import MOST_PARTS

Shard = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", help="Only what is next of the I-th of N shares, here or elsewhere; then --merge."
    ),
]
Merge = Annotated[bool, typer.Option("--merge", help="Merge the shards: their texts, later their clips.")]
Surplus = Annotated[
    float | None,
    typer.Option(
        "--surplus", min=0.0, help="Of a shard: accepted texts beside its own, as a share; 0.05 if not given."
    ),
]

ENGINES = ("local", "ray")
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="local|ray",
        help="ray: by the cluster of RAY_ADDRESS, or one started here; its machines see DIR as the same files.",
    ),
]
Shards = Annotated[
    int | None,
    typer.Option(
        "--shards", metavar="N", min=1, max=MOST_PARTS, help="With --engine ray: shares; one a core if not given."
    ),
]


def register(app: typer.Typer) -> None:
    """Add `synth`."""

    @recipe_verb(app, "synth", STAGES["synth"])
    def synth(
        ctx: typer.Context,
        recipe: Recipe,
        runs: Runs = Path("runs"),
        fork: Fork = None,
        shard: Shard = None,
        surplus: Surplus = None,
        merge: Merge = False,
        engine: Engine = "local",
        shards: Shards = None,
        dry_run: DryRun = False,
    ) -> None:
        name, overrides = split_words([recipe, *ctx.args])
        if engine not in ENGINES:
            raise unknown("engine", engine, ENGINES)
        if engine == "ray":
            if shard is not None or surplus is not None or merge:
                raise UsageError(
                    "--engine ray makes and merges the shards itself", "leave --shard, --surplus and --merge out"
                )
            on_ray(name, overrides, runs, fork, dry_run, shards)
        elif shards is not None:
            raise UsageError(f"--shards {shards} is for --engine ray", "add that, or make each with --shard I/N")
        elif shard is None and surplus is None and not merge:
            execute(name, overrides, runs, fork, dry_run, "synth")
        else:
            share(name, overrides, runs, fork, dry_run, shard, surplus, merge)


def share(
    recipe: str,
    overrides: Sequence[str],
    runs: Path,
    fork: str | None,
    dry_run: bool,
    shard: str | None,
    surplus: float | None,
    merge: bool,
) -> None:
    """A shard of synth, or the merge of all: show the plan, work, and say what comes next."""
    from rbalign.cli import show
    from rbalign.config.load import load_recipe
    from rbalign.rundir.run import RunDir
    from rbalign.stages import synth_merge, synth_shards
    from rbalign.stages.chain import StageOutcome
    from rbalign.synth.parts import Part

    if merge == (shard is not None) or (merge and surplus is not None):
        raise UsageError("--merge, --shard I/N and --surplus do not go together", "give --merge, or --shard I/N")
    _refuse_fork(fork)
    part = None if shard is None else Part.parse(shard)
    loaded = load_recipe(recipe, overrides)
    look = RunDir.look(runs, loaded)
    plan = synth_shards.plan_shard(loaded, look, part, surplus) if part else synth_merge.plan_merge(loaded, look)
    show.plan([StageOutcome("synth", not plan.rows, plan)], look.folder)
    if dry_run:
        return
    if part is None:
        synth_merge.merge(loaded, runs, typer.echo)
    else:
        synth_shards.run_shard(loaded, runs, part, surplus, typer.echo)


def on_ray(
    recipe: str, overrides: Sequence[str], runs: Path, fork: str | None, dry_run: bool, shards: int | None
) -> None:
    """All of synth by actors of a Ray cluster: show the plan, then work."""
    from rbalign.cli import show
    from rbalign.config.load import load_recipe
    from rbalign.rundir.run import RunDir
    from rbalign.stages.chain import chain
    from rbalign.stages.synth_ray import synth_on_ray

    _refuse_fork(fork)
    loaded = load_recipe(recipe, overrides)
    look = RunDir.look(runs, loaded)
    show.plan(chain(loaded, look, "synth", dry_run=True), look.folder)
    if not dry_run:
        synth_on_ray(loaded, runs, shards, typer.echo)


def _refuse_fork(fork: str | None) -> None:
    if fork is not None:
        raise UsageError("--fork has no shards", "give the recipe another name instead")
