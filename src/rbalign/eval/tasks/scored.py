"""A scored file: what `rba score --task` writes as JSON and Markdown, and reads back to compare. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rbalign import __version__
from rbalign.errors import DataError, UsageError
from rbalign.eval.tasks.sheet import PERCENT, Sheet

KIND, SCHEMA = "rba task scores", 1
FIELDS = ("task", "model", "data", "figures", "samples", "counts")

Scored = Mapping[str, Any]


def as_scored(sheet: Sheet, model: str, origin: str, **more: Any) -> dict[str, Any]:
    """The sheet as a JSON value. model: what the responses are called; origin: where the data is from, in words."""
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "rbalign": __version__,
        "task": sheet.task.name,
        "title": sheet.task.title,
        "model": model,
        "data": {"from": origin, "content": sheet.data.content},
        **more,
        "interval": f"95 % percentile bootstrap, {sheet.resamples} resamples of instructions",
        "rule": " ".join(sheet.task.rule.split()),
        "counts": sheet.counts(),
        "notes": sheet.notes,
        "figures": sheet.figures,
        "samples": sheet.samples(),
    }


def read_scored(path: Path) -> dict[str, Any]:
    """A file that `rba score --task` wrote. UsageError if it cannot be read, DataError if it is something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "give a file that `rba score --task` wrote") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("kind") != KIND or not all(field in found for field in FIELDS):
        raise DataError(f"{path} holds no scores of a task", "give the .json that `rba score --task` wrote")
    if found.get("schema") != SCHEMA:
        raise DataError(f"{path} is of another version of rba", "score the predictions again")
    return found


def number(figure: Mapping[str, Any]) -> str:
    """`83.71 (81.2 to 86.0)`, a ratio with three digits; a dash where it is left open."""
    if figure["value"] is None:
        return "–"
    digits = 3 if figure["unit"] == "" and abs(figure["value"]) < 10 and "bleu" not in figure["metric"] else 2
    span = ""
    if figure["ci_low"] is not None:
        span = f" ({figure['ci_low']:.{digits}f} to {figure['ci_high']:.{digits}f})"
    return f"{figure['value']:.{digits}f}{figure['unit'] and ' ' + PERCENT}{span}"


def markdown(scored: Scored) -> str:
    """The figures as a page: every number with interval, n, and how it came about."""
    counts = scored["counts"]
    lines = [
        f"# {cell(scored['model'])} on {scored['task']}",
        "",
        f"{scored['title']}. Data: {scored['data']['from']}, content {scored['data']['content']}.",
        f"{scored['interval']}. rbalign {scored['rbalign']}.",
        "",
        "| metric | part | value (95 % interval) | n | note |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {cell(one['metric'])} | {cell(one['part'])} | {number(one)} | {one['n']} | {cell(remark(one))} |"
        for one in scored["figures"]
    ]
    lines += ["", f"Items {counts['items']}: " + ", ".join(f"{counts[key]} {key}" for key in _STATES) + ".", ""]
    lines += [f"- {cell(note)}" for note in scored["notes"]]
    lines += ["", "## Protocol", ""]
    protocols: dict[str, list[str]] = {}
    for one in scored["figures"]:
        protocols.setdefault(one["protocol"], []).append(f"{one['metric']} {one['part']}".strip())
    lines += [f"- {cell(', '.join(names))}: {cell(protocol)}" for protocol, names in protocols.items()]
    return "\n".join([*lines, "", scored["rule"], ""])


_STATES = ("answered", "missing", "failed", "unparsed", "left_out", "passed_over")


def remark(figure: Mapping[str, Any]) -> str:
    """What must stand beside a number: why it is open, lengths and outcomes of a win rate."""
    parts = [figure["note"]] if figure.get("note") else []
    if "wins" in figure:
        parts.append(f"{figure['wins']} won, {figure['ties']} tied, {figure['losses']} lost")
        parts.append(f"{figure['characters']:.0f} characters against {figure['opponent_characters']:.0f}")
        if figure["orders_agree"] is not None:
            parts.append(f"orders agree on {100 * figure['orders_agree']:.0f} %")
    if figure.get("unscored"):
        parts.append(f"{figure['unscored']} unscored")
    return "; ".join(parts)


def cell(text: str) -> str:
    """Text that cannot break out of a table: names of files and models may hold anything."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
