"""`rba score`: a run's own answers, predictions made elsewhere, a public benchmark's task, the paper's table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rbalign.cli.pipeline import PANEL
from rbalign.errors import UsageError

TASK_PANEL = "A public benchmark"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(rich_help_panel=PANEL)(score)


def _task_option(*names: str, text: str, metavar: str | None = None) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(*names, metavar=metavar, help=text, rich_help_panel=TASK_PANEL)
    return option


Place = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN|DATASET|FILE.jsonl",
        help="A run folder, a recipe whose run is in --runs, or a dataset; with --task the predictions.",
    ),
]
Predictions = Annotated[
    Path | None,
    typer.Argument(
        metavar="FILE.jsonl",
        help="Answers made elsewhere: id (of a clip, EXAMPLE/VIEW, or of an instruction, EXAMPLE) and response.",
    ),
]
Name = Annotated[str | None, typer.Option("--name", help="The run that a file becomes; default: its name.")]
Split = Annotated[str | None, typer.Option("--split", help="Whose answers a file holds; default: as in eval.")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first instructions: by id, with --task of its data.")
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs live.")]
Again = Annotated[bool, typer.Option("--again", help="Throw the scores away first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and count; score nothing.")]
TaskName = Annotated[str | None, _task_option("--task", text="Score FILE.jsonl by it: `rba list tasks`.")]
Data = Annotated[
    str | None,
    _task_option(
        "--data", metavar="FOLDER", text="A local copy of the task's data; hf: or hf:OWNER/NAME@REVISION fetches it."
    ),
]
Against = Annotated[
    Path | None,
    _task_option("--against", metavar="FILE.jsonl", text="An opponent's answers (win rate), a text LLM's (delta)."),
]
Scorer = Annotated[str | None, _task_option("--scorer", text="One of the task's; default: its first.")]
Judge = Annotated[
    str | None,
    _task_option(
        "--judge", metavar="JUDGE.toml", text="url and model of an LLM; or, offline, chrf, wordllama, minilm."
    ),
]
Out = Annotated[Path | None, _task_option("--out", metavar="OUT.json", text="Default: beside FILE.jsonl; OUT.md, too.")]
Suite = Annotated[
    str | None, _task_option("--suite", text="rba-paper: the paper's rows, beside scored files in a folder.")
]


def score(
    place: Place = None,
    predictions: Predictions = None,
    name: Name = None,
    split: Split = None,
    limit: Limit = None,
    runs: Runs = Path("runs"),
    again: Again = False,
    dry_run: DryRun = False,
    task: TaskName = None,
    data: Data = None,
    against: Against = None,
    scorer: Scorer = None,
    judge: Judge = None,
    out: Out = None,
    suite: Suite = None,
) -> None:
    """Score a run's answers (rba predict), or a file of predictions: against references, or by a public benchmark."""
    tasks_own = {"data": data, "against": against, "scorer": scorer, "judge": judge, "out": out}
    if suite is not None:
        _refuse(
            {**tasks_own, "name": name, "limit": limit, "task": task, "split": split},
            f"beside --suite {suite}",
            "drop it",
        )
        _suite(suite, place)
    elif task is not None:
        _refuse({"name": name}, f"beside --task {task}", "--out names the result")
        from rbalign.eval.tasks.registry import task_named

        data = data or task_named(task).ships
        if place is None or predictions is not None or data is None:
            raise UsageError(
                f"--task {task} needs its data and one file", f"rba score --task {task} --data FOLDER FILE.jsonl"
            )
        _score_task(task, data, Path(place), (against, scorer, judge, split, out), limit, again, dry_run)
    elif place is None:
        raise UsageError("nothing to score", "give a run, a dataset and a file, --task or --suite")
    else:
        _refuse(tasks_own, "without --task", "name one: `rba list tasks`")
        if predictions is not None:
            _score_file(place, predictions, name, split, limit, runs, again, dry_run)
        else:
            _refuse(
                {"name": name, "split": split, "limit": limit},
                "without a file of predictions",
                "a run's own recipe says what it answers",
            )
            _score_run(place, runs, again, dry_run)


def _refuse(options: Mapping[str, object], where: str, cure: str) -> None:
    if given := [f"--{option}" for option, value in options.items() if value is not None]:
        raise UsageError(f"{', '.join(given)} {where}", cure)


def _score_task(
    task: str,
    data: str,
    file: Path,
    chosen: tuple[Path | None, str | None, str | None, str | None, Path | None],
    limit: int | None,
    again: bool,
    dry_run: bool,
) -> None:
    from rbalign.cli import show
    from rbalign.eval.tasks.scored import number, remark
    from rbalign.stages.tasks import read
    from rbalign.stages.tasks import score as score_task

    against, scorer, judge, split, out = chosen
    options: dict[str, Any] = {"against": against, "scorer": scorer, "judge": judge, "limit": limit}
    asked = read(task, data, file, **options, split=split or "test", out=out, again=again)
    for line in asked.counted():
        typer.echo(line)
    if dry_run:
        return
    scored = score_task(asked)
    show.table(
        f"{scored['model']} on {scored['task']} (95 % intervals over instructions)",
        ("metric", "part", "value", "n", "note"),
        [[one["metric"], one["part"], number(one), str(one["n"]), remark(one)] for one in scored["figures"]],
        right=("n",),
    )
    for protocol in dict.fromkeys(one["protocol"] for one in scored["figures"]):
        typer.echo(f"protocol: {protocol}")
    typer.echo(f"{asked.out}  (every number and sample; two of them: rba compare A.json B.json)")
    typer.echo(f"{asked.out.with_suffix('.md')}  (the figures as a page)")


def _suite(suite: str, place: str | None) -> None:
    from rbalign.cli import show
    from rbalign.stages.suite import suite_table

    show.suite(suite_table(suite, None if place is None else Path(place)))


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
