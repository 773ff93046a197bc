"""The page of `rba eval --model`: figures by task, differences, conditions, samples. Pure values in; no torch.

Rows are those of evaluation.json, `model` being the name that the page uses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbalign.config.sections import ReportConfig
from rbalign.report import document, markdown, plots, samples, tables
from rbalign.report.drawing import Figure, colour
from rbalign.report.pivot import Results, Row, axis
from rbalign.rundir.files import atomic_write
from rbalign.types import View

SECTIONS = (
    ("verdict", "In short"),
    ("tasks", "Scores"),
    ("differences", "Differences"),
    ("gap", "Gap"),
    ("length", "Length"),
    ("consistency", "Consistency"),
    ("samples", "Samples"),
    ("method", "Method"),
)
BY_CONDITION = ("score", "accuracy", "rate")
"""Metrics whose parts are conditions of the same requests, voices or kinds of constraint."""
QUALITY = ("accuracy", "chrf")
"""What consistency is held against."""
WON = "winrate@"
CALLED = {"followed": "rate", "win": "win rate"}
"""Scores of samples -> the figure that is made of them."""


@dataclass(frozen=True, slots=True)
class Question:
    """One clip of a task, and what its answers are held against."""

    id: str
    unit: str
    part: str
    instruction: str
    targets: Mapping[str, str]
    """Name -> text."""
    view: View | None
    """None where the clip cannot be had."""


@dataclass(frozen=True)
class TaskAnswers:
    """What was asked in a task and what everybody answered."""

    task: str
    questions: Sequence[Question]
    answers: Mapping[str, Mapping[str, Row]]
    """Model -> the question's id -> the sample of its scored file."""
    score: str
    """Which score stands beside an answer."""


@dataclass(frozen=True)
class Evaluated:
    """Everything on the page."""

    name: str
    """Of the model."""
    what: str
    models: Sequence[str]
    """The model, those it is compared with, references."""
    titles: Mapping[str, str]
    """Task -> what it is."""
    figures: Sequence[Row]
    comparisons: Sequence[Row]
    method: Sequence[tuple[str, str]]
    tasks: Sequence[TaskAnswers]


def build(folder: Path, shown: Evaluated, config: ReportConfig) -> Path:
    """Write the page into `folder` anew, report.md beside it, and return its index.html."""
    context = _context(shown)
    absent = {name for name in ("gap", "length", "consistency") if not context["figures_of"][name]}
    absent |= set() if context["comparisons"] else {"differences"}
    page = document.Page(
        "evaluation.html.j2",
        context,
        [pair for pair in SECTIONS if pair[0] not in absent],
        lambda limit: [card for task in shown.tasks for card in cards(task, shown, limit)],
        {
            (task.task, f"{unit}/{place}"): question.view
            for task in shown.tasks
            for unit, own in _by_unit(task.questions).items()
            for place, question in enumerate(own)
            if question.view is not None
        },
    )
    index = document.write(folder, page, config)
    atomic_write(index.with_name("report.md"), _markdown(context))
    return index


def _context(shown: Evaluated) -> dict[str, Any]:
    results = Results({"comparisons": [_comparison(row) for row in shown.comparisons]})
    figures: dict[str, Sequence[Figure | None]] = {
        "differences": _forests(results, shown.models),
        "gap": _conditions(shown),
        "length": _lengths(shown),
        "consistency": _steadiness(shown),
    }
    return {
        "figures_of": {name: [one for one in made if one] for name, made in figures.items()},
        "name": shown.name,
        "description": shown.what,
        "facts": [f"{len(shown.titles)} tasks", "95 % intervals over instructions"],
        "verdict": tables.verdict(results),
        "blocks": [_block(task, shown) for task in shown.titles],
        "comparisons": tables.comparison_table(results),
        "family": tables.family_size(results),
        "heads": {"differences": list(markdown.DIFFERENCES)},
        "method": shown.method,
        "files": {},
        "same_numbers": ["report.md", "../evaluation.json"],
        "baseline": shown.name,
    }


def called(figure: Row) -> str:
    """A figure's metric and part for people: `accuracy clean, %`. Whose voice is the worst differs between models."""
    part = "" if figure["metric"] == "worst_voice" else figure["part"]
    words = " ".join(filter(None, (CALLED.get(figure["metric"], figure["metric"]), part))).replace("_", " ")
    return f"{words}, %" if figure["unit"] == "%" else words


def _row(figure: Row) -> Row:
    """As tables and plots take it."""
    return {**figure, "metric": called(figure)}


def _comparison(row: Row) -> Row:
    """A difference as tables and plots take it."""
    return {**row, "metric": f"{row['task']} {called(row)}"}


def _block(task: str, shown: Evaluated) -> dict[str, Any]:
    """One task's table: figures down, models across. Numbers of other instructions, or judged otherwise, say so."""
    found: dict[str, dict[str, Row]] = {}
    for figure in shown.figures:
        if figure["task"] == task:
            name = called(figure)
            first = next(iter(found.get(name, {}).values()), figure)
            if WON in figure["metric"] and figure["protocol"] != first["protocol"]:
                name = f"{name} (protocol of {figure['model']})"
            found.setdefault(name, {})[figure["model"]] = _row(figure)
    models = [model for model in shown.models if any(model in rows for rows in found.values())]
    lines = [_line(name, rows, models) for name, rows in found.items()]
    return {"task": task, "title": shown.titles[task], "models": models, "lines": lines}


def _line(name: str, rows: Mapping[str, Row], models: Sequence[str]) -> dict[str, Any]:
    """A figure of every model; where they were asked different numbers of instructions, each says its own."""
    counts = {row["n"] for row in rows.values() if row["value"] is not None}
    cells = [tables.cell(rows.get(model)) for model in models]
    if len(counts) > 1:
        for model, made in zip(models, cells, strict=True):
            if made["value"]:
                made["interval"] = f"{made['interval']}; n {rows[model]['n']}"
    return {"name": name, "n": "–" if len(counts) > 1 else str(max(counts, default=0)), "cells": cells}


def _forests(results: Results, models: Sequence[str]) -> list[Figure | None]:
    rows = [row for row in results.comparisons if row["headline"] and row["difference"] is not None]
    names = dict.fromkeys(row["metric"] for row in rows)
    return [plots.forest([row for row in rows if row["metric"] == name], name, models) for name in names]


def _conditions(shown: Evaluated) -> list[Figure | None]:
    """How far hearing stays behind reading in each condition of a task."""
    return [_condition(task, metric, shown) for task in shown.titles for metric in BY_CONDITION]


def _condition(task: str, metric: str, shown: Evaluated) -> Figure | None:
    """None without several conditions. Where the text LLM reads the same in all of them it is a line, else a model as
    others are: kinds of constraint differ in writing, too."""
    parts: dict[str, dict[str, Row]] = {}
    for row in shown.figures:
        if (row["task"], row["metric"]) == (task, metric) and row["part"] and row["value"] is not None:
            parts.setdefault(row["part"], {})[row["model"]] = _row({**row, "part": ""})
    if len(parts) < 2:
        return None
    read = [rows["text"] for rows in parts.values() if "text" in rows]
    reading = read[0] if len({row["value"] for row in read}) == 1 else None
    models = [model for model in shown.models if model != "text" or reading is None]
    name = next(iter(next(iter(parts.values())).values()))["metric"]
    return plots.by_condition(parts, models, name, f"{task}: {metric} by condition", reading)


def _lengths(shown: Evaluated) -> list[Figure | None]:
    """Win rates over the length of answers, a task, an opponent and a judge in a figure."""
    rows: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in shown.figures:
        if row["metric"].startswith(WON) and not row["part"] and row["value"] is not None:
            rows[row["task"], row["metric"].removeprefix(WON), row["protocol"]].append(row)
    return [
        plots.wins(
            [(row["model"], _length(row["characters"]), _row(row)) for row in own],
            shown.models,
            _length(own[0]["opponent_characters"]),
            f"{task}: length against wins over {opponent}",
            (opponent, "characters", "% with ties as half"),
        )
        for (task, opponent, _), own in rows.items()
    ]


def _length(characters: float) -> Row:
    return {"value": characters, "metric": "characters"}


def _steadiness(shown: Evaluated) -> list[Figure | None]:
    """Consistency between clips over quality, a task and an embedder in a figure."""
    made = []
    for task in shown.titles:
        own = [row for row in shown.figures if row["task"] == task and row["value"] is not None]
        quality = {row["model"]: _row(row) for row in own if row["metric"] in QUALITY and not row["part"]}
        for part in dict.fromkeys(row["part"] for row in own if row["metric"] == "consistency"):
            steady = {row["model"]: _row(row) for row in own if (row["metric"], row["part"]) == ("consistency", part)}
            points = [(m, quality[m], steady[m]) for m in shown.models if m in quality and m in steady]
            words = f"consistency between clips, {part}\n(0 other instruction, 1 same audio)"
            if points:
                made.append(plots.steadiness(points, shown.models, axis(points[0][1]["metric"]), words))
    return made


def _by_unit(questions: Sequence[Question]) -> dict[str, list[Question]]:
    found: dict[str, list[Question]] = {}
    for question in questions:
        found.setdefault(question.unit, []).append(question)
    return found


def cards(task: TaskAnswers, shown: Evaluated, limit: int) -> list[dict[str, Any]]:
    """Up to `limit` instructions of a task, drawn by key so that nobody picked them, without their clips."""
    units = _by_unit(task.questions)
    return [
        {
            "task": task.task,
            "id": unit,
            "instruction": units[unit][0].instruction,
            "targets": [samples.target(name, text) for name, text in units[unit][0].targets.items()],
            "views": [_view(place, question, task, shown) for place, question in enumerate(units[unit])],
            "gains": _gains(units[unit], task, shown.name),
            "flags": _flags(units[unit], task, shown.name),
        }
        for unit in samples.drawn(units, limit)
    ]


def _view(place: int, question: Question, task: TaskAnswers, shown: Evaluated) -> dict[str, Any]:
    view = question.view
    return {
        "index": place,
        "voice": samples.condition(view.spec) if view else question.part or "no clip",
        "audio": None,
        "seconds": round(view.seconds, 2) if view else 0.0,
        "heard": None,
        "answers": [
            _answer(model, own[question.id], task.score, shown.models)
            for model in shown.models
            if question.id in (own := task.answers.get(model, {}))
        ],
        "aside": [],
    }


def _answer(model: str, sample: Row, score: str, models: Sequence[str]) -> dict[str, Any]:
    value = sample["scores"].get(score)
    failed = sample["response"] is None
    notes = ([] if value is None else [f"{score} {value:.2f}"]) + ([sample["status"]] if failed else [])
    return {
        "name": model,
        "text": "" if failed else sample["response"],
        "note": ", ".join(notes),
        "colour": colour(model, models),
    }


def _scores(questions: Sequence[Question], task: TaskAnswers) -> dict[str, list[float]]:
    """Model -> its scores on these clips."""
    found: dict[str, list[float]] = {}
    for model, own in task.answers.items():
        known = [own[one.id]["scores"].get(task.score) for one in questions if one.id in own]
        found[model] = [value for value in known if value is not None]
    return {model: values for model, values in found.items() if values}


def _gains(questions: Sequence[Question], task: TaskAnswers, name: str) -> dict[str, float]:
    """Mean score of each other model minus the evaluated one's."""
    means = {model: sum(values) / len(values) for model, values in _scores(questions, task).items()}
    return {model: round(mean - means[name], 4) for model, mean in means.items() if model != name and name in means}


def _flags(questions: Sequence[Question], task: TaskAnswers, name: str) -> list[str]:
    """What the page can filter by: a failed answer, one that is right in some clips only, reading right and hearing
    wrong."""
    scores, own = _scores(questions, task), task.answers.get(name, {})
    flags = {"failed answer"} if any(one.id in own and own[one.id]["response"] is None for one in questions) else set()
    marks = {value for values in scores.values() for value in values}
    if marks <= {0.0, 1.0}:
        if any(len(set(values)) > 1 for values in scores.values()):
            flags.add("right in some clips only")
        if name in scores and "text" in scores and min(scores["text"]) > min(scores[name]):
            flags.add("reading right, hearing wrong")
    return sorted(flags)


def _markdown(context: Mapping[str, Any]) -> str:
    """report.md: the page's words and tables."""
    blocks = [f"# {markdown.plain(context['name'])}", markdown.plain(context["description"])]
    blocks += ["\n".join(f"- {markdown.plain(line['text'])}" for line in context["verdict"])]
    for block in context["blocks"]:
        columns = ["n", *block["models"]]
        lines = [{**line, "cells": [{"value": line["n"], "interval": ""}, *line["cells"]]} for line in block["lines"]]
        blocks += [f"## {markdown.plain(block['task'])}", markdown.cells("figure", columns, lines, "name")]
    if context["comparisons"]:
        blocks += [markdown.differences(context)]
    blocks += ["## How it was measured", markdown.terms(context["method"])]
    return "\n\n".join(block for block in blocks if block) + "\n"
