"""One static page from a run folder: `report/index.html`, which a double click opens. No torch, no network.

report.md and results.json beside it hold the same numbers for readers and for programs.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbalign.config.sections import ReportConfig
from rbalign.data.dataset import Dataset
from rbalign.errors import DataError, UsageError
from rbalign.report import charts, document, markdown, samples, tables
from rbalign.report.pivot import HEADLINES, Results
from rbalign.rundir.files import atomic_write
from rbalign.rundir.journal import read_rows
from rbalign.types import Example, View

SECTIONS = (
    ("verdict", "In short"),
    ("table", "Table"),
    ("differences", "Differences"),
    ("gap", "Gap"),
    ("length", "Length"),
    ("consistency", "Consistency"),
    ("voices", "Voices"),
    ("training", "Training"),
    ("samples", "Samples"),
    ("method", "Method"),
)


@dataclass(frozen=True)
class Answered:
    """Answers of one task beside the instructions and clips that they belong to."""

    task: str
    answers: samples.Answers
    wrong: samples.Answers
    """To another item's clip."""
    examples: Mapping[str, Example]
    views: Mapping[str, View]

    def items(self, limit: int) -> list[dict[str, Any]]:
        """Sample cards, without their clips."""
        return samples.build_items(self.task, self.answers, self.wrong, self.examples, self.views, limit)


def build(run: Path, config: ReportConfig) -> Path:
    """Write `run/report/` anew and return its index.html; single.html, if asked for, stands beside it.

    Raises UsageError if the run has no results yet, DataError if results.json is damaged.
    """
    results = read_results(run)
    page = page_of(run, results, _answered(run) if config.samples or config.single_file else [])
    index = document.write(run / "report", page, config)
    text = json.dumps(results.value, indent=1, ensure_ascii=False) + "\n"
    atomic_write(index.with_name("results.json"), text)
    atomic_write(index.with_name("report.md"), markdown.report(page.context))
    return index


def page_of(run: Path, results: Results, tasks: Sequence[Answered]) -> document.Page:
    """The page of a run, with samples of these tasks."""
    context = _context(run, results)
    return document.Page(
        "run.html.j2",
        context,
        _sections(context),
        lambda limit: [item for task in tasks for item in task.items(limit)],
        {(task.task, id_): view for task in tasks for id_, view in task.views.items()},
    )


def read_results(run: Path) -> Results:
    """results.json of a run."""
    path = run / "results.json"
    if not path.is_file():
        raise UsageError(f"{run} has no results.json", "first `rba eval RECIPE`")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return Results({"rows": value["rows"], "comparisons": value.get("comparisons", []), **value})
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a table of results ({error!r})", "run `rba eval` again") from None


def _context(run: Path, results: Results) -> dict[str, Any]:
    """Everything that stands on the page but the samples."""
    recipe = _text(run / "recipe.toml")
    settings = tomllib.loads(recipe) if recipe else {}
    logs = {path.parent.name: list(read_rows(path)) for path in sorted((run / "arms").glob("*/metrics.jsonl"))}
    figures = {
        "forests": [charts.forest(results, metric) for metric in HEADLINES],
        "gaps": [charts.ladder(results, metric) for metric in HEADLINES],
        "conditions": [charts.conditions(results, metric) for metric in HEADLINES],
        "lengths": [charts.length_against_win(results, metric) for metric in HEADLINES],
        "consistency": [charts.consistency_against_quality(results)],
        "curves": [charts.curves(logs, name) for name in tables.curve_names(list(logs.values()))],
    }
    return {
        "figures_of": {name: [figure for figure in made if figure] for name, made in figures.items()},
        "name": settings.get("name", run.name),
        "description": settings.get("description", ""),
        "facts": _facts(results, settings),
        "verdict": tables.verdict(results),
        "table": tables.main_table(results),
        "comparisons": tables.comparison_table(results),
        "family": tables.family_size(results),
        "gaps": tables.gap_table(results),
        "consistency": tables.consistency_table(results),
        "voices": tables.voice_tables(results),
        "training": tables.training_table(results),
        "method": _method(results),
        "heads": {
            "differences": list(markdown.DIFFERENCES),
            "steadiness": list(markdown.STEADINESS),
            "training": list(markdown.TRAINING),
        },
        "files": {"recipe.toml": recipe, "environment.json": _text(run / "environment.json")},
        "same_numbers": ["report.md", "results.json"],
        "baseline": "base",
    }


def _sections(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Those that have something to show, as the template decides it."""
    figures = context["figures_of"]
    optional = {
        "differences": bool(figures["forests"] or context["comparisons"]),
        "gap": bool(context["gaps"]["lines"] or figures["gaps"]),
        "length": bool(figures["lengths"]),
        "consistency": bool(context["consistency"]),
        "voices": bool(context["voices"]),
        "training": bool(figures["curves"] or context["training"]),
    }
    return [(id_, title) for id_, title in SECTIONS if optional.get(id_, True)]


def _answered(run: Path) -> list[Answered]:
    """Every task that has answers and whose instructions are at hand."""
    found = []
    for task, place in (("open", run / "data"), ("qa", run / "eval" / "questions")):
        answers = samples.load_answers(run, task)
        if answers and place.is_dir():
            wrong = samples.load_answers(run, f"{task}-wrong-audio")
            found.append(Answered(task, answers, wrong, *_dataset(place)))
    return found


def _dataset(folder: Path) -> tuple[dict[str, Example], dict[str, View]]:
    """Examples and views of the held-out splits by id; clips stay on the disk until they are asked for."""
    dataset = Dataset.open(folder)
    splits = ("validation", "test")
    examples = {example.id: example for split in splits for example in dataset.examples(split)}
    return examples, {view.id: view for split in splits for view in dataset.views(split)}


def _facts(results: Results, settings: dict[str, Any]) -> list[str]:
    counts = {row["task"]: row["n"] for row in results.rows if row["metric"] in HEADLINES}
    facts = [f"{n} {'questions' if task == 'qa' else 'instructions'}" for task, n in counts.items() if "-" not in task]
    voices = {row["voice"] for row in results.rows if row.get("voice") and "/voice:" in row["metric"]}
    if voices:
        facts.append(f"{len(voices)} distinct test voices")
    if "seed" in settings:
        facts.append(f"recipe seed {settings['seed']}")
    return facts


def _method(results: Results) -> list[tuple[str, str]]:
    """What stands behind the numbers, from results.json itself."""
    value = results.value
    lines = [(name, str(value[name])) for name in ("unit", "interval") if name in value]
    protocols = {row["task"]: row["protocol"] for row in results.rows if row["protocol"]}
    lines += [(f"task {task}", protocol) for task, protocol in protocols.items()]
    return lines + [(f"note {number}", note) for number, note in enumerate(value.get("notes", []), start=1)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
