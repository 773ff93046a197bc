"""Answers side by side, with the clips that were played: what stands in samples-N.js and audio/. No torch."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rbalign.keys import Key
from rbalign.report.charts import COLOURS, colour
from rbalign.report.pivot import REFERENCES
from rbalign.rundir.files import atomic_write
from rbalign.rundir.journal import read_rows
from rbalign.types import Example, View

CHUNK = 10
"""Items in a samples-N.js: about 60 kB."""
TASKS = {"open": "chrf", "qa": "qa"}
"""Tasks that are shown, and the score that stands beside an answer."""

Answers = dict[tuple[str, int], dict[str, dict[str, Any]]]
"""(example, view) -> arm folder -> its answer row, with `score`."""


def load_answers(run: Path, task: str) -> Answers:
    """Sample 0 of every arm's answers to a task, with their scores."""
    found: Answers = defaultdict(dict)
    for folder in sorted((run / "eval").glob("*/")):
        scores = {row["id"]: row["scores"] for row in read_rows(folder / f"{task}.scores.jsonl")}
        for row in read_rows(folder / f"{task}.jsonl"):
            if row["sample"] == 0:
                value = scores.get(row["id"], {}).get(TASKS[task.removesuffix("-wrong-audio")])
                found[row["example"], row["view"]][folder.name] = {**row, "score": value}
    return found


def build_items(
    task: str, answers: Answers, wrong: Answers, examples: Mapping[str, Example], limit: int
) -> list[dict[str, Any]]:
    """Up to `limit` instructions, drawn by key so that nobody picked them, as values for the page."""
    voices: dict[str, list[int]] = defaultdict(list)
    for example, view in sorted(answers):
        voices[example].append(view)
    drawn = sorted((e for e in voices if e in examples), key=lambda e: Key(0, "report", example=e).digest())[:limit]
    return [_item(task, examples[example], voices[example], answers, wrong) for example in drawn]


def _item(task: str, example: Example, views: Sequence[int], answers: Answers, wrong: Answers) -> dict[str, Any]:
    targets = [("y_ref", example.answer), ("independent sample", example.reference)]
    if example.labels.get("aliases"):
        targets.append(("accepted", " | ".join(example.labels["aliases"])))
    return {
        "task": task,
        "id": example.id,
        "instruction": example.instruction,
        "targets": [
            {"name": name, "text": text, "note": "", "colour": "var(--faint)", "target": True}
            for name, text in targets
            if text
        ],
        "views": [_view(example.id, view, answers, wrong) for view in views],
        "gains": _gains(example.id, views, answers),
    }


def _view(example: str, view: int, answers: Answers, wrong: Answers) -> dict[str, Any]:
    own = answers[example, view]
    places = {name: place for place, name in enumerate(COLOURS)}
    order = sorted(own, key=lambda arm: (places.get(_objective(arm), len(places)), arm))
    shown = [_answer(arm, own[arm]) for arm in order]
    shown += [_answer(f"{arm} on wrong audio", row) for arm, row in sorted(wrong.get((example, view), {}).items())]
    hearing = next((row for arm, row in sorted(own.items()) if arm not in REFERENCES and row["heard"] is not None), {})
    first = next(iter(own.values()))
    return {
        "index": view,
        "voice": first["voice"],
        "audio": None,
        "seconds": 0.0,
        "heard": hearing.get("heard"),
        "answers": shown,
    }


def _answer(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    notes = [] if row["score"] is None else [f"{row['score']:.2f}"]
    notes += {"length": ["cut"], "error": ["failed"]}.get(row["stop"], [])
    shade = colour(_objective(name.removesuffix(" on wrong audio")))
    return {"name": name, "text": row["error"] or row["answer"], "note": ", ".join(notes), "colour": shade}


def _objective(arm: str) -> str:
    """The arm's name without its seed: `rba-single-s0` -> `rba-single`."""
    return re.sub(r"-s\d+$", "", arm)


def _gains(example: str, views: Sequence[int], answers: Answers) -> dict[str, float]:
    """Mean score of each arm minus base's over the item's views."""
    sums: dict[str, list[float]] = defaultdict(list)
    for view in views:
        own = answers[example, view]
        base = own.get("base", {}).get("score")
        for arm, row in own.items():
            if base is not None and row["score"] is not None and arm != "base":
                sums[arm].append(row["score"] - base)
    return {arm: round(sum(values) / len(values), 4) for arm, values in sums.items()}


def write_audio(folder: Path, items: Sequence[dict[str, Any]], views: Mapping[str, View]) -> int:
    """One FLAC for each shown clip; fills in each view's `audio` and `seconds`. Returns the bytes written."""
    written = 0
    for place, item in enumerate(items):
        for shown in item["views"]:
            view = views.get(f"{item['id']}/{shown['index']}")
            if view is not None and view.flac:
                safe = re.sub(r"[^A-Za-z0-9_-]", "_", item["id"])[:60]
                name = f"{place:04d}-{safe}-{shown['index']}.flac"
                atomic_write(folder / name, view.flac)
                shown["audio"], shown["seconds"] = f"audio/{name}", round(view.seconds, 2)
                written += len(view.flac)
    return written


def write_chunks(folder: Path, items: Sequence[Mapping[str, Any]]) -> int:
    """samples-0.js, samples-1.js, ...: each hands its items to the page. Returns how many."""
    for old in folder.glob("samples-*.js"):
        old.unlink()
    starts = range(0, len(items), CHUNK)
    for number, start in enumerate(starts):
        atomic_write(folder / f"samples-{number}.js", f"rbaSamples({script_json(items[start : start + CHUNK])});\n")
    return len(starts)


def script_json(value: Any) -> str:
    """JSON that no HTML or JavaScript parser can read as anything but data."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
