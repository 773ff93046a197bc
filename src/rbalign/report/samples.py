"""Answers side by side, with the clips that were played: what stands in samples-N.js and audio/. No torch."""

from __future__ import annotations

import base64
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rbalign.keys import Key
from rbalign.report.drawing import COLOURS, colour
from rbalign.report.pivot import REFERENCES
from rbalign.rundir.files import atomic_write, new_folder
from rbalign.rundir.journal import read_rows
from rbalign.types import Example, View, ViewSpec

CHUNK = 50
"""Items in a samples-N.js: about 350 kB. The page opens with the first; searching reads them all."""
TASKS = {"open": "chrf", "qa": "qa"}
"""Tasks that are shown, and the score that stands beside an answer."""
NOTES = {"length": "cut", "error": "failed"}
"""Why an answer ended, where that is worth a word."""
FLIPS = "right in some voices only"

Views = Mapping[tuple[str, str], View]
"""(task, EXAMPLE/VIEW) -> the clip that was played."""
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
    task: str,
    answers: Answers,
    wrong: Answers,
    examples: Mapping[str, Example],
    views: Mapping[str, View],
    limit: int,
) -> list[dict[str, Any]]:
    """Up to `limit` instructions, drawn by key so that nobody picked them, as values for the page."""
    heard: dict[str, list[int]] = defaultdict(list)
    for example, view in sorted(answers):
        heard[example].append(view)
    items = []
    for name in drawn((example for example in heard if example in examples), limit):
        shown = [_view(name, view, views.get(f"{name}/{view}"), answers, wrong) for view in heard[name]]
        items.append(
            {
                "task": task,
                "id": name,
                "instruction": examples[name].instruction,
                "targets": _targets(examples[name]),
                "views": shown,
                "gains": _gains(name, heard[name], answers),
                "flags": _flags(task, name, heard[name], answers),
            }
        )
    return items


def drawn(ids: Iterable[str], limit: int) -> list[str]:
    """Up to `limit` of the instructions: the same ones on every page, and the first of a larger draw."""
    return sorted(ids, key=lambda one: Key(0, "report", example=one).digest())[:limit]


def _targets(example: Example) -> list[dict[str, Any]]:
    """What answers are held against."""
    texts = {"y_ref": example.answer, "independent sample": example.reference}
    texts["accepted"] = " | ".join(example.labels.get("aliases") or ())
    return [target(name, text) for name, text in texts.items() if text]


def target(name: str, text: str) -> dict[str, Any]:
    """What answers are held against, beside them."""
    return {"name": name, "text": text, "note": "", "colour": "var(--faint)", "target": True}


def _view(example: str, index: int, view: View | None, answers: Answers, wrong: Answers) -> dict[str, Any]:
    own = answers[example, index]
    places = {name: place for place, name in enumerate(COLOURS)}
    order = sorted(own, key=lambda arm: (places.get(_objective(arm), len(places)), arm))
    hearing = next((row for arm, row in sorted(own.items()) if arm not in REFERENCES and row["heard"] is not None), {})
    first = next(iter(own.values()))
    return {
        "index": index,
        "voice": condition(view.spec) if view else first["voice"],
        "audio": None,
        "seconds": round(view.seconds, 2) if view else 0.0,
        "heard": hearing.get("heard"),
        "answers": [_answer(arm, own[arm]) for arm in order],
        "aside": [_answer(arm, row) for arm, row in sorted(wrong.get((example, index), {}).items())],
    }


def condition(spec: ViewSpec) -> str:
    """How a view was said: its voice, and whatever is not plain about it: `af_sarah, telephone, 1.2x`."""
    plain = ViewSpec(spec.voice)
    parts = [getattr(spec, name) for name in ("channel", "delivery") if getattr(spec, name) != getattr(plain, name)]
    speed = [] if spec.speed == plain.speed else [f"{spec.speed:g}x"]
    return ", ".join([spec.voice, *parts, *speed])


def _answer(arm: str, row: Mapping[str, Any]) -> dict[str, Any]:
    notes = [] if row["score"] is None else [f"{row['score']:.2f}"]
    notes += [NOTES[row["stop"]]] if row["stop"] in NOTES else []
    return {
        "name": arm,
        "text": row["error"] or row["answer"],
        "note": ", ".join(notes),
        "colour": colour(_objective(arm)),
    }


def _flags(task: str, example: str, views: Sequence[int], answers: Answers) -> list[str]:
    """What the page can filter by: an answer was cut or failed; an arm is right in some voices and wrong in others."""
    rows = [(arm, row) for view in views for arm, row in answers[example, view].items()]
    flags = {f"{NOTES[row['stop']]} answer" for _, row in rows if row["stop"] in NOTES}
    if task == "qa":
        marks: dict[str, set[bool]] = defaultdict(set)
        for arm, row in rows:
            if row["score"] is not None:
                marks[arm].add(row["score"] > 0)
        if any(len(own) > 1 for own in marks.values()):
            flags.add(FLIPS)
    return sorted(flags)


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


def write_audio(folder: Path, items: Sequence[dict[str, Any]], views: Views) -> None:
    """Make `folder` with one file for each shown clip; fills in each view's `audio`."""
    with new_folder(folder, 0) as aside:  # whole or not at all; no clip is worth an fsync, the dataset has it
        for place, item in enumerate(items):
            for shown, clip in _clips(item, views):
                safe = re.sub(r"[^A-Za-z0-9_-]", "_", item["id"])[:60]
                name = f"{place:04d}-{safe}-{shown['index']}.{_kind(clip)}"
                (aside / name).write_bytes(clip)
                shown["audio"] = f"{folder.name}/{name}"


def inline_audio(items: Sequence[dict[str, Any]], views: Views) -> None:
    """Put each shown clip into its view's `audio`, as a data: URL."""
    for item in items:
        for shown, clip in _clips(item, views):
            shown["audio"] = f"data:audio/{_kind(clip)};base64,{base64.b64encode(clip).decode()}"


def _clips(item: Mapping[str, Any], views: Views) -> Iterator[tuple[dict[str, Any], bytes]]:
    for shown in item["views"]:
        view = views.get((item["task"], f"{item['id']}/{shown['index']}"))
        clip = view.flac if view else b""  # one access: each reads from the disk
        if clip:
            yield shown, clip


def _kind(clip: bytes) -> str:
    """`ogg` for the Opus of the held-out set that ships, else `flac`: the file's suffix and its type."""
    return "ogg" if clip[:4] == b"OggS" else "flac"


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
