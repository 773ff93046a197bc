"""One static page from a run folder: `report/index.html`, which a double click opens. No torch, no network."""

from __future__ import annotations

import json
import shutil
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from rbalign.config.sections import ReportConfig
from rbalign.errors import DataError, UsageError
from rbalign.report import charts, samples, tables
from rbalign.report.pivot import HEADLINES, Results
from rbalign.rundir.files import atomic_write
from rbalign.rundir.journal import read_rows

SECTIONS = (
    ("verdict", "In short"),
    ("table", "Table"),
    ("differences", "Differences"),
    ("gap", "Gap"),
    ("consistency", "Consistency"),
    ("voices", "Voices"),
    ("training", "Training"),
    ("samples", "Samples"),
    ("method", "Method"),
)


def build(run: Path, config: ReportConfig) -> Path:
    """Write `run/report/` anew and return its index.html.

    Raises UsageError if the run has no results yet, DataError if results.json is damaged.
    """
    results = read_results(run)
    folder = run / "report"
    shutil.rmtree(folder / "audio", ignore_errors=True)
    items = _items(run, config, folder)
    page = render(run, results, items, samples.write_chunks(_made(folder), items))
    atomic_write(folder / "index.html", page)
    return folder / "index.html"


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


def render(run: Path, results: Results, items: list[dict[str, Any]], chunks: int) -> str:
    """The page's HTML. Everything that is not made by charts.py goes through jinja2's autoescape."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    recipe = _text(run / "recipe.toml")
    settings = tomllib.loads(recipe) if recipe else {}
    logs = {path.parent.name: list(read_rows(path)) for path in sorted((run / "arms").glob("*/metrics.jsonl"))}
    figures = {
        "forests": [charts.forest(results, metric) for metric in HEADLINES],
        "ladders": [charts.ladder(results, metric) for metric in HEADLINES],
        "curves": [charts.curves(logs, name) for name in tables.curve_names(list(logs.values()))],
    }
    steady = charts.consistency_against_quality(results)
    context: dict[str, Any] = {
        **{name: [Markup(svg) for svg in made if svg] for name, made in figures.items()},
        "css": Markup(_asset("page.css")),
        "js": Markup(_asset("page.js")),
        "name": settings.get("name", run.name),
        "description": settings.get("description", ""),
        "facts": _facts(results, settings),
        "verdict": tables.verdict(results),
        "table": tables.main_table(results),
        "comparisons": tables.comparison_table(results),
        "family": tables.family_size(results),
        "gaps": tables.gap_table(results),
        "consistency": {
            "lines": tables.consistency_table(results),
            "figure": Markup(steady) if steady else None,
        },
        "voices": tables.voice_tables(results),
        "training": tables.training_table(results),
        "sample_count": len(items),
        "sample_tasks": sorted({item["task"] for item in items}),
        "sample_arms": sorted({arm for item in items for arm in item["gains"]}),
        "chunks": chunks,
        "method": _method(results),
        "recipe": recipe,
        "environment": _text(run / "environment.json"),
    }
    present = {"verdict", "table", "method"} | {id_ for id_, there in _optional(context).items() if there}
    context["sections"] = [pair for pair in SECTIONS if pair[0] in present]
    return environment.from_string(_asset("page.html.j2")).render(context)


def _optional(context: dict[str, Any]) -> dict[str, bool]:
    """Sections that stand on the page only if there is something to show, as the template decides it."""
    return {
        "differences": bool(context["forests"] or context["comparisons"]),
        "gap": bool(context["gaps"]["lines"] or context["ladders"]),
        "consistency": bool(context["consistency"]["lines"]),
        "voices": bool(context["voices"]),
        "training": bool(context["curves"] or context["training"]),
        "samples": bool(context["sample_count"]),
    }


def _items(run: Path, config: ReportConfig, folder: Path) -> list[dict[str, Any]]:
    """Sample cards of every task; clips are written beside them if asked."""
    items: list[dict[str, Any]] = []
    for task, place in (("open", run / "data"), ("qa", run / "eval" / "questions")):
        answers = samples.load_answers(run, task)
        if not answers or not config.samples or not place.is_dir():
            continue
        examples, views = _dataset(place)
        wrong = samples.load_answers(run, f"{task}-wrong-audio")
        made = samples.build_items(task, answers, wrong, examples, config.samples)
        if config.audio:
            samples.write_audio(folder / "audio", made, views)
        items += made
    return items


def _dataset(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Examples and views of the held-out splits by id."""
    from rbalign.data.dataset import Dataset

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


def _asset(name: str) -> str:
    return resources.files("rbalign.report").joinpath("templates", name).read_text(encoding="utf-8")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
