"""`rba run` and its stages: a recipe, overrides, and where the runs live."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from rbalign.errors import UsageError

PANEL = "Run a recipe"
STAGES = {
    "synth": "The teacher writes instructions and answers; voices speak them.",
    "connect": "Train encoder and adapter, so that the LLM can hear.",
    "align": "Align the arms to the teacher by the model's own samples.",
    "eval": "Measure arms and references on held-out instructions and voices.",
    "predict": "Only the answers of eval, without their scores; `rba score` goes on.",
    "report": "Draw the page that shows it all.",
}
EPILOG = "Any key of the recipe may follow as --section.key value, for example --align.beta 0.2."

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A packaged name (rba list recipes) or a .toml file.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs live; this one in DIR/NAME.")]
Fork = Annotated[
    str | None,
    typer.Option("--fork", metavar="NAME", help="A new run that keeps the finished stages of the recipe's own run."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what, how many, time and disk; start nothing.")]
SingleFile = Annotated[
    bool, typer.Option("--single-file", help="report/single.html, too: one file with a few samples and their clips.")
]
WIDER = ("synth", "eval", "report")
"""Verbs with options of their own: cli/sharing.py, cli/evaluating.py, and report below."""
SHARING = ("--shard", "--merge", "--surplus", "--engine", "--shards")
SINGLE_FILE = ("--report.single_file", "8")
"""What --single-file stands for: samples of each task, with four clips about 3 MB together."""


def recipe_verb(app: typer.Typer, name: str, text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a function a verb that takes a recipe: options it does not know are the recipe's overrides, which go, in
    their order, to ctx.args."""
    settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    return app.command(name, help=text, epilog=EPILOG, context_settings=settings, rich_help_panel=PANEL)


def register(app: typer.Typer) -> None:
    """Add `run` and one verb for each stage, or half of one."""

    def add(verb: str, only: str | None, text: str) -> None:
        def command(
            ctx: typer.Context, recipe: Recipe, runs: Runs = Path("runs"), fork: Fork = None, dry_run: DryRun = False
        ) -> None:
            name, overrides = split_words([recipe, *ctx.args])
            execute(name, overrides, runs, fork, dry_run, only)

        recipe_verb(app, verb, text)(command)

    add("run", None, "All stages of a recipe, one after the other; finished ones are skipped.")
    for stage, text in STAGES.items():
        if stage not in WIDER:
            add(stage, stage, text)

    @recipe_verb(app, "report", STAGES["report"])
    def report(
        ctx: typer.Context,
        recipe: Recipe,
        runs: Runs = Path("runs"),
        fork: Fork = None,
        single_file: SingleFile = False,
        dry_run: DryRun = False,
    ) -> None:
        name, overrides = split_words([recipe, *ctx.args])
        if single_file and not any(word.startswith(SINGLE_FILE[0]) for word in overrides):
            overrides += SINGLE_FILE
        execute(name, overrides, runs, fork, dry_run, "report")


def split_words(words: Sequence[str]) -> tuple[str, list[str]]:
    """The recipe and the overrides, in whatever order they stood."""
    recipes: list[str] = []
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            recipes.append(word)
            continue
        check_option(word, ("--runs", "--fork", "--single-file", "--dry-run", "--help"))
        overrides.append(word)
        if "=" not in word and rest and not rest[0].startswith("--"):
            overrides.append(rest.pop(0))
    if len(recipes) != 1:
        given = f"{len(recipes)} recipes: {', '.join(recipes)}" if recipes else "no recipe"
        raise UsageError(f"given {given}", "give one; overrides are written --section.key value")
    return recipes[0], overrides


def check_option(word: str, known: Sequence[str]) -> None:
    """A misspelt option would else be taken for a key of the recipe, and its message speak of keys alone."""
    name = word.split("=")[0].replace("_", "-")
    if name in SHARING:
        raise UsageError(f"{name} is an option of `rba synth`", "share out that stage, then `rba run RECIPE`")
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if "." not in name and close:
        raise UsageError(f"unknown option {word}", f"did you mean {close[0]}?")


def execute(
    recipe: str, overrides: Sequence[str], runs: Path, fork: str | None, dry_run: bool, only: str | None
) -> None:
    """Load, show the plan, work, and say where to look."""
    from rbalign.cli import show
    from rbalign.config.load import load_recipe
    from rbalign.rundir.progress import silent
    from rbalign.rundir.run import RunDir
    from rbalign.rundir.workers import launched
    from rbalign.stages.chain import chain

    loaded = load_recipe(recipe, overrides)
    rank, ranks = launched()
    if ranks > 1 and only != "align":
        raise UsageError(
            f"{ranks} processes were launched for `rba {only or 'run'}`, and only `rba align` trains in several",
            "first `rba synth RECIPE` by itself, then launch `rba align RECIPE`",
        )
    if rank:
        with RunDir.follow(runs, loaded, fork) as run, silent():
            chain(run.recipe, run, only)
        return
    # Planned from a run that is only looked at: what is refused here leaves no folder behind.
    look = RunDir.look(runs, loaded, fork)
    show.plan(chain(look.recipe, look, only, dry_run=True), look.folder)
    if dry_run:
        return
    with RunDir.open(runs, loaded, fork) as run:
        chain(run.recipe, run, only, say=typer.echo)
        show.ending(run.folder, results=only in (None, "eval"))
        if only == "predict":
            typer.echo(f"{run.folder / 'eval'}  (the answers; score them: rba score {run.folder})")
