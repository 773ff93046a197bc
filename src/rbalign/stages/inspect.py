"""What is in a dataset or a run, read from its files; works while a run is being written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rbalign.config.load import load_recipe
from rbalign.data.dataset import MANIFEST, Dataset
from rbalign.errors import DataError, RbaError, UsageError
from rbalign.rundir.journal import count_lines, read_rows
from rbalign.stages.synth_outside import ready_views
from rbalign.synth.accept import Acceptance
from rbalign.synth.labels import PAPER
from rbalign.synth.parts import WHOLE, InTurn

VIEWS_PER_CAUSE = 3
MOST_JUDGED = 50_000
"""Candidates of a run that still writes: 0.3 ms each, 15 s."""


@dataclass(slots=True)
class Inspection:
    """Rows of words, ready to be shown as tables."""

    lines: list[str] = field(default_factory=list)
    stages: list[list[str]] = field(default_factory=list)
    """Name, state, since when."""
    splits: list[list[str]] = field(default_factory=list)
    """Name, instructions, views, hours, distinct voices (other speeds of a voice are the same voice)."""
    bytes: int = 0
    """Disk space of the dataset."""
    labels: list[list[str]] = field(default_factory=list)
    """Label, value, how many, share, and the paper's share."""
    drops: list[list[str]] = field(default_factory=list)
    """Cause, how many, texts that fell to it."""
    examples: list[list[str]] = field(default_factory=list)
    """Id, split, instruction, answer."""


def look_at(place: Path, rows: int = 5) -> Inspection:
    """Look at a dataset folder or a run folder; at most `rows` examples. UsageError if it is neither."""
    found = Inspection()
    is_run = (place / "status.json").is_file()
    if not is_run and not (place / MANIFEST).is_file():
        raise UsageError(f"{place} is neither a run nor a dataset", "give a folder with status.json or manifest.json")
    if is_run:
        _run(place, found)
    folder = place / "data" if is_run else place
    dataset = Dataset.open(folder) if (folder / MANIFEST).is_file() else None
    if dataset is not None:
        _dataset(dataset, rows, found)
    else:
        found.lines.append("no finished dataset in it")
        if is_run:
            _judged_so_far(place, found)
    _drops(folder, dataset, found)
    return found


def _run(place: Path, found: Inspection) -> None:
    try:
        status = json.loads((place / "status.json").read_text(encoding="utf-8"))
        if status["forked_from"]:
            found.lines.append(f"forked from {status['forked_from']}")
        for name, entry in status["stages"].items():
            taken = f", taken from {entry['taken_from']}" if "taken_from" in entry else ""
            since = entry.get("finished", entry["started"])
            found.stages.append([name, entry["state"] + taken, since])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{place / 'status.json'} is not the status of a run", "give another folder") from None


def _dataset(dataset: Dataset, rows: int, found: Inspection) -> None:
    manifest = dataset.manifest
    for key in ("kind", "teacher", "translator", "seed", "content_hash"):
        if key in manifest:
            found.lines.append(f"{key.replace('_', ' ')}: {manifest[key]}")
    if "labels" in manifest:
        found.lines.append(f"labelled by {manifest['labels']['tagger']}")
    for split, summary in manifest["splits"].items():
        counts = [f"{summary['examples']:,}", f"{summary['views']:,}", f"{summary['seconds'] / 3600:.2f}"]
        found.splits.append([split, *counts, str(summary["distinct_voices"])])
        found.lines.append(f"{split} voices: {', '.join(summary['voices']) or 'none'}")
    found.lines += topic_lines(manifest)
    found.labels = label_rows(manifest)
    found.bytes = sum((dataset.folder / name).stat().st_size for name in manifest["files"])
    for example in islice(dataset.iter_examples(), rows):
        found.examples.append([example.id, str(example.split), example.instruction, example.answer or ""])


def label_rows(manifest: Mapping[str, Any]) -> list[list[str]]:
    """Label, value, how many, share and the paper's share, of every topic and difficulty; [] without labels."""
    rows = []
    for kind, paper in PAPER.items():
        counts = manifest.get("labels", {}).get(kind, {})
        total = sum(counts.values())
        for value in [*paper, *(value for value in counts if value not in paper)] if total else []:
            count = counts.get(value, 0)
            beside = f"{paper[value]:.1f} %" if value in paper else ""
            rows.append([kind, value, f"{count:,}", f"{100 * count / total:.1f} %", beside])
    return rows


def topic_lines(manifest: Mapping[str, Any]) -> list[str]:
    """A line on the test split by topic, if there is one."""
    table = manifest.get("topics")
    if not table:
        return []
    parts = [f"{topic} {row['found']} of {row['wanted']}" for topic, row in table.items()]
    return [f"test split by topic: {', '.join(parts)}"]


def _judged_so_far(place: Path, found: Inspection) -> None:
    """What became of the candidates that a run has written, judged by its filters: nobody wrote it down yet.

    Without minimum scores, which may ask a large model, and without what a test split by topic leaves out of the rest.
    """
    recipe = load_recipe(place / "recipe.toml")
    journal = place / "data" / "drafts.jsonl"
    found.lines.append(f"candidates written so far: {count_lines(journal):,}")
    if recipe.synth is None or recipe.synth.recordings is not None:
        return  # recordings are judged by their sound, too
    try:
        leakage = ready_views(recipe).leakage
    except RbaError as error:  # its files may lie relative to another folder
        found.lines.append(f"not judged, for what they must not resemble is not here: {error.problem}")
        return
    filters = recipe.synth.filters.model_copy(update={"scorers": {}})
    acceptance = Acceptance(recipe.synth.model_copy(update={"filters": filters}), leakage)
    for draft in islice(InTurn(WHOLE).give(read_rows(journal)), MOST_JUDGED):
        if acceptance.is_full():
            break
        acceptance.add(draft)
    found.lines.append(
        f"of the first {acceptance.seen:,}: {len(acceptance.examples):,} of {acceptance.wanted:,} accepted"
    )
    _add_drops(acceptance.causes, acceptance.dropped, found)


def _drops(folder: Path, dataset: Dataset | None, found: Inspection) -> None:
    """Causes with the first texts that fell to each, from the manifest, and the views that no voice could make."""
    if dataset is not None:
        _add_drops(Counter(dataset.manifest.get("dropped", {})), dataset.manifest.get("dropped_texts", {}), found)
    for reason, views in unspoken(folder).items():
        found.drops.append([f"unspoken: {reason}", f"{len(views):,}", " | ".join(views[:VIEWS_PER_CAUSE])])


def _add_drops(causes: Counter[str], texts: Mapping[str, Sequence[str]], found: Inspection) -> None:
    for cause, count in causes.most_common():
        found.drops.append([cause, f"{count:,}", " | ".join(map(_short, texts.get(cause, [])))])


def unspoken(folder: Path) -> dict[str, list[str]]:
    """Reason -> the views that no voice could make, the commonest first; empty where the stage's journal is not."""
    lost: dict[str, list[str]] = {}
    for row in read_rows(folder / "unspoken.jsonl"):
        lost.setdefault(row["reason"], []).append(f"{row['id']} by {row['voice']}")
    return dict(sorted(lost.items(), key=lambda entry: -len(entry[1])))


def _short(text: Any, width: int = 70) -> str:
    """One line of at most `width` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"
