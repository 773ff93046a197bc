"""`rba inspect DATASET --page DIR`: instructions to read, clips to hear, and what an independent ASR hears."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from rbalign.asr.whisper import Transcriber
from rbalign.audio.io import read_audio
from rbalign.config.languages import KNOWN_TO_WHISPER
from rbalign.data.dataset import Dataset
from rbalign.errors import DataError, UsageError
from rbalign.report import dataset as report
from rbalign.report import document, samples
from rbalign.rundir.journal import read_rows
from rbalign.rundir.progress import progress
from rbalign.stages.named import NamedDataset
from rbalign.stages.synth import HEARD
from rbalign.text.normalise import word_errors
from rbalign.types import Example, View

Hear = Callable[[np.ndarray], str]


def write_page(named: NamedDataset, folder: Path, rows: int, hear: Hear | None = None) -> Path:
    """The page of `rows` instructions, drawn by key, with all their clips; returns its index.html.

    What synth heard is taken from its journal; other clips are transcribed by `hear` (default: Whisper base), if it
    knows the language. UsageError where `folder` holds something else.
    """
    if folder.exists() and not (folder / document.INDEX).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds something that is no page", "give another --page DIR")
    manifest = named.dataset.manifest
    examples, words = _read(named.dataset, rows)
    views = _views(named.dataset, examples)
    heard = dict(_known(named.dataset.folder / HEARD, views))
    language = named.languages[0]
    if language in KNOWN_TO_WHISPER:
        heard |= _heard(examples, views, heard, hear or Transcriber(language=language).transcribe, language)
    splits = manifest["splits"].items()
    facts = [f"{split}: {one['examples']:,} instructions, {one['views']:,} clips" for split, one in splits]
    shown = report.Shown(
        named.name, facts, manifest.get("dropped", {}), words, examples, views, heard, list(_method(named))
    )
    return report.build(folder, shown)


def _read(dataset: Dataset, rows: int) -> tuple[list[Example], dict[str, list[int]]]:
    """The drawn examples, and the words of every instruction and answer."""
    ids, words = [], {"instruction": [], "answer": []}  # type: tuple[list[str], dict[str, list[int]]]
    for example in dataset.iter_examples():
        ids.append(example.id)
        words["instruction"].append(len(example.instruction.split()))
        if example.answer:
            words["answer"].append(len(example.answer.split()))
    by_id = dataset.by_id()
    return [by_id[one] for one in samples.drawn(ids, rows)], words


def _views(dataset: Dataset, examples: Sequence[Example]) -> dict[str, list[View]]:
    """Example's id -> its clips; their audio stays on the disk."""
    found: dict[str, list[View]] = {example.id: [] for example in examples}
    for view in dataset.iter_views():
        if view.example_id in found:
            found[view.example_id].append(view)
    return found


def _known(journal: Path, views: Mapping[str, Sequence[View]]) -> Iterator[tuple[str, report.Heard]]:
    """What synth heard of these clips: the last try of each, in the voice that stayed."""
    voices = {view.id: view.spec.voice for own in views.values() for view in own}
    for row in read_rows(journal):
        view = row["id"].rpartition("#")[0]
        if voices.get(view) == row["voice"]:
            yield view, report.Heard(row["heard"], row["errors"], row["words"])


def _heard(
    examples: Iterable[Example],
    views: Mapping[str, Sequence[View]],
    known: Mapping[str, report.Heard],
    hear: Hear,
    language: str,
) -> dict[str, report.Heard]:
    """What the ASR hears of every other clip, held against what the voice was given to say."""
    asked = [(view, view.said or one.spoken) for one in examples for view in views[one.id] if view.id not in known]
    found = {}
    with progress(len(asked), "hear clips", unit="clips") as advance:
        for view, said in asked:
            try:
                text = hear(read_audio(view.flac))
                found[view.id] = report.Heard(text, *word_errors(said, text, language))
            except DataError:  # damaged, or nothing in it: the page shows that there is nothing
                pass
            advance(1)
    return found


def _method(named: NamedDataset) -> Iterator[tuple[str, str]]:
    manifest = named.dataset.manifest
    yield "content hash", str(manifest["content_hash"])
    for key in ("kind", "teacher", "translator", "seed"):
        if key in manifest:
            yield key, str(manifest[key])
    for split, one in manifest["splits"].items():
        yield f"{split} voices", ", ".join(one["voices"]) or "none"
    yield "heard by", "Whisper base, greedy; errors after Whisper's normaliser, as in the read-back of synth"
