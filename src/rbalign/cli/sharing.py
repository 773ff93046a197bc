"""`rba synth`: the whole stage, or one of N shares of it and their merge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from rbalign.cli.pipeline import STAGES, DryRun, Fork, Recipe, Runs, execute, recipe_verb, split_words
from rbalign.errors import UsageError

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
        dry_run: DryRun = False,
    ) -> None:
        name, overrides = split_words([recipe, *ctx.args])
        if shard is None and surplus is None and not merge:
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
    if fork is not None:
        raise UsageError("--fork has no shards", "give the recipe another name instead")
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
