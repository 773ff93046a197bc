"""Tables for people: the plan of a run, its results, and where to look."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rbalign.rundir.progress import duration

if TYPE_CHECKING:
    from rbalign.stages.chain import StageOutcome
    from rbalign.stages.suite import SuiteTable


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a plain table. Cells are text, never markup: a model may have written them."""
    shown = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in columns:
        shown.add_column(column, justify="right" if column in right else "left")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:  # a file or a pipe: no line of a table may be cut or wrapped at 80 columns
        console.width = 1000
    console.print(shown)


def plan(outcomes: Sequence[StageOutcome], folder: Path) -> None:
    """What is still to do, with the estimated time and disk of each stage."""
    rows: list[list[str]] = []
    for outcome in outcomes:
        if outcome.skipped:
            rows.append([outcome.stage, "finished before", "", "", ""])
        for row in outcome.plan.rows:
            rows.append([outcome.stage, row.what, f"{row.count:,}", duration(row.seconds), size(row.bytes)])
    seconds = sum(outcome.plan.seconds for outcome in outcomes)
    total = sum(outcome.plan.bytes for outcome in outcomes)
    rows.append(["", "together", "", duration(seconds), size(total)])
    table(f"run {folder}", ("stage", "what", "how many", "time", "disk"), rows, right=("how many", "time", "disk"))


def ending(folder: Path, results: bool) -> None:
    """The table of results, if asked for and there, and the files worth opening."""
    path = folder / "results.json"
    if results and path.exists():
        headline_table(json.loads(path.read_text(encoding="utf-8")))
    page = folder / "report"
    shown = (
        (page / "index.html", "open in a browser"),
        (page / "single.html", "the same with a few samples, as one file"),
        (page / "report.md", "the same as Markdown"),
        (path, "every number with its interval"),
    )
    for place, what in shown:
        if place.exists():
            typer.echo(f"{place}  ({what})")
    typer.echo(f"{folder}  (the run: recipe.toml, status.json, data, arms)")


def headline_table(results: dict[str, Any]) -> None:
    """The page's main table, with intervals where a metric may carry a claim, and what it says in words."""
    from rbalign.report.pivot import Results
    from rbalign.report.tables import main_table, verdict

    asked = Results(results)
    made = main_table(asked)
    headlines = [column["headline"] for column in made["columns"]]
    table(
        "Held-out results (95 % intervals over instructions; * = this arm's loss optimises it)",
        ["arm", *(column["label"] for column in made["columns"])],
        [[line["arm"], *map(_cell, line["cells"], headlines)] for line in made["lines"]],
    )
    for line in verdict(asked):
        typer.echo(line["text"])


def _cell(cell: dict[str, Any], headline: bool) -> str:
    interval = f" ({cell['interval']})" if headline and cell["interval"] else ""
    return f"{cell['value']}{'*' if cell['optimised'] else ''}{interval}"


def is_plain(metric: str) -> bool:
    """True for a metric's main row: not one voice's, not a gap or a part of the consistency."""
    return not any(mark in metric for mark in "/@:")


def interval(row: dict[str, Any]) -> str:
    """`0.412 [0.398, 0.427]`, or only the value where there is no interval."""
    if row["value"] is None:
        return "-"
    value = f"{row['value']:.3f}"
    return value if row["ci_low"] is None else f"{value} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def paired(row: dict[str, Any]) -> list[str]:
    """A difference by instruction: arm, task, metric, value, interval, flips, exact sign test, effect size."""
    span = f"{row['ci_low']:+.3f} to {row['ci_high']:+.3f}"
    flips = f"{row['wins']} / {row['losses']} / {row['ties']}"
    effect = "-" if row["effect"] is None else f"{row['effect']:+.2f}"
    names = [row["arm"], row["task"], row["metric"]]
    return [*names, f"{row['difference']:+.3f}", span, flips, f"{row['sign_p']:.3f}", effect]


def suite(made: SuiteTable) -> None:
    """A paper's rows beside ours, and what must be said of them."""
    table(made.title, made.columns, made.rows)
    for line in made.notes:
        typer.echo(line)


def size(count: float) -> str:
    """Bytes for people, in powers of 1000 as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
