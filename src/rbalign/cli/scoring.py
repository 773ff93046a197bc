"""`rba score`: a run's own answers, or predictions made elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rbalign.cli.pipeline import PANEL
from rbalign.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(rich_help_panel=PANEL)(score)


def score(
    place: Annotated[
        str, typer.Argument(metavar="RUN|DATASET", help="A run folder, a recipe whose run is in --runs, or a dataset.")
    ],
    predictions: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE.jsonl",
            help="Answers made elsewhere: id (of a clip, EXAMPLE/VIEW, or of an instruction, EXAMPLE) and response.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The run that a file becomes; default: its name.")] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Whose answers a file holds; default: as in eval.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first instructions by id.")] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs live.")] = Path("runs"),
    again: Annotated[bool, typer.Option("--again", help="Throw the scores away first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and count; score nothing.")] = False,
) -> None:
    """Score a run's answers (rba predict), or a file of predictions against the independent references."""
    if predictions is not None:
        _score_file(place, predictions, name, split, limit, runs, again, dry_run)
    elif given := [f"--{option}" for option, value in (("name", name), ("split", split), ("limit", limit)) if value]:
        raise UsageError(f"{', '.join(given)} without a file of predictions", "a run's own recipe says what it answers")
    else:
        _score_run(place, runs, again, dry_run)


def _score_run(place: str, runs: Path, again: bool, dry_run: bool) -> None:
    from rbalign.cli import show
    from rbalign.rundir.run import RunDir
    from rbalign.stages import score as stage
    from rbalign.stages.chain import chain
    from rbalign.stages.named import run_named

    look = run_named(place, runs)
    planned = chain(look.recipe, look, "score", dry_run=True)  # what is refused, is refused before scores are dropped
    if not again:
        show.plan(planned, look.folder)
    if dry_run:
        return
    with RunDir.open(look.folder.parent, look.recipe) as run:
        if again:
            stage.forget(run)
        chain(run.recipe, run, "score", say=typer.echo)
        show.ending(run.folder, results=True)


def _score_file(
    place: str,
    file: Path,
    name: str | None,
    split: str | None,
    limit: int | None,
    runs: Path,
    again: bool,
    dry_run: bool,
) -> None:
    from rbalign.cli import show
    from rbalign.stages.predictions import read, score_predictions

    outside = read(place, file, name=name, split=split, limit=limit, runs=runs)
    for line in outside.counted():
        typer.echo(line)
    if dry_run:
        return
    folder = score_predictions(outside, runs, again).folder
    rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
    show.table(
        f"{outside.recipe.name} (95 % intervals over instructions)",
        ("metric", "held against", "value", "instructions", "unscored"),
        [
            [row["metric"], row["reference"], show.interval(row), str(row["n"]), str(row.get("unscored", ""))]
            for row in rows
        ],
        right=("instructions", "unscored"),
    )
    show.ending(folder, results=False)
