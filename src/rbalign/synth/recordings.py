"""Recordings with transcripts, as the source of kind = "s2tt": local copies of FLEURS, CoVoST, Common Voice, your own.

Two layouts: the audiofolder of `datasets` (metadata.jsonl or metadata.csv with `file_name` and the transcript), or
NAME.txt beside NAME.wav. Where the path of every recording names a split (train, validation or dev, test), that is its
split; where none does, instructions are dealt to the splits in an order drawn by key.

Recordings of one transcript are the views of one example, as voices are elsewhere.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from rbalign.audio.io import Limits, audio_seconds, read_audio, to_flac
from rbalign.data.shards import RATE
from rbalign.errors import DataError, UsageError, unknown
from rbalign.keys import Key
from rbalign.rundir.files import sha256_file, stable_hash
from rbalign.types import Example, Split, View, ViewSpec
from rbalign.voices.pool import SpeakFailure, SpeakJob

HUMAN = "human"
"""The engine of recordings."""
SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff"})
METADATA = ("metadata.jsonl", "metadata.csv")
FILE_NAME = "file_name"
SPLITS = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "validation": Split.VALIDATION,
    "valid": Split.VALIDATION,
    "val": Split.VALIDATION,
    "dev": Split.VALIDATION,
    "test": Split.TEST,
    "testing": Split.TEST,
    "eval": Split.TEST,
}
"""Folders in a recording's path that name its split, as the `datasets` library reads them."""


@dataclass(frozen=True, slots=True)
class Said:
    """A transcript and the recordings of it."""

    id: str
    text: str
    split: Split | None
    """None: the source has no splits."""
    files: tuple[str, ...]
    """Below the source's folder, sorted."""


def voice_name(split: str) -> str:
    """The voice of all recordings of a split: nobody says who speaks, and a voice belongs to one split."""
    return f"recorded-{split}"


class Recordings:
    """A source folder: what is said in it, in the order in which it is taken, and its clips."""

    def __init__(self, folder: Path, column: str, seed: int, max_seconds: float) -> None:
        """Reads the transcripts, no audio. UsageError for a folder without any, DataError for a damaged list."""
        self._folder, self._seed, self._max_seconds = folder, seed, max_seconds
        found = read_transcripts(folder, column)
        splits = {_split_of(name) for name in found}
        if None in splits and len(splits) > 1:
            stray = next(name for name in found if _split_of(name) is None)
            raise UsageError(
                f"{folder}: some recordings lie in folders of a split, {stray} does not",
                f"name a split in every path ({', '.join(SPLITS)}), or in none",
            )
        groups: dict[tuple[Split | None, str], list[str]] = {}
        for name, text in found.items():
            groups.setdefault((_split_of(name), text), []).append(name)
        self._said = {said.id: said for said in (_said(*key, files) for key, files in groups.items())}

    def pools(self) -> list[tuple[tuple[Split, ...], list[Said]]]:
        """Which splits are filled from what, each in an order drawn by key; test comes first, as everywhere."""
        every = (Split.TEST, Split.VALIDATION, Split.TRAIN)
        drawn = sorted(self._said.values(), key=lambda said: Key(self._seed, "recording", example=said.id).digest())
        if any(said.split is None for said in drawn):
            return [(every, drawn)]
        return [((split,), [said for said in drawn if said.split is split]) for split in every]

    def problem(self, said: Said) -> str | None:
        """Why none of the recordings can be used, by their headers; None if one can."""
        problems = [self._problem(name) for name in said.files]
        return None if None in problems else next(problem for problem in problems if problem)

    def views(self, examples: Iterable[Example]) -> dict[str, list[View]]:
        """The views of examples by split, without audio: one for each recording."""
        splits: dict[str, list[View]] = {}
        for example in examples:
            spec = ViewSpec(voice_name(example.split), seed=self._seed)
            own = self._said[example.id].files
            splits.setdefault(example.split, []).extend(
                View(example.id, index, example.split, spec, 0.0) for index in range(len(own))
            )
        return splits

    def clips(self, views: Sequence[View], spoken: Mapping[str, str]) -> Iterator[tuple[View, SpeakFailure | None]]:
        """Each view with its recording, 16 kHz and mono; one that cannot be used comes with its reason."""
        for view in views:
            name = self._said[view.example_id].files[view.index]
            problem = self._problem(name)
            try:
                samples = read_audio(self._folder / name, rate=RATE) if problem is None else None
            except DataError as error:
                samples, problem = None, _unreadable(error, self._folder / name)
            if samples is None:
                yield view, SpeakFailure(SpeakJob.of(view, spoken), str(problem))
            else:
                yield replace(view, seconds=len(samples) / RATE, flac=to_flac(samples, RATE)), None

    def _problem(self, name: str) -> str | None:
        path = self._folder / name
        try:
            seconds = audio_seconds(path, limits=Limits(max_seconds=float("inf")))
        except DataError as error:
            return _unreadable(error, path)
        return f"recording longer than {self._max_seconds:g} s" if seconds > self._max_seconds else None


def read_transcripts(folder: Path, column: str) -> dict[str, str]:
    """Path below `folder` -> transcript, one line each, sorted by path.

    Raises UsageError if the folder or the column is not there, DataError for a list that cannot be read or that names
    a file outside the folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", "set [synth.s2tt] source to a folder of recordings")
    lists = [path for name in METADATA for path in sorted(folder.rglob(name))]
    found: dict[str, str] = {}
    for path in lists:
        below = PurePosixPath(path.parent.relative_to(folder).as_posix())
        for number, row in enumerate(_rows(path), start=1):
            if FILE_NAME not in row:
                raise DataError(f"{path}: row {number} has no {FILE_NAME}", "name the clip of every row there")
            if column not in row:
                raise unknown(f"column in row {number} of {path}", column, row, "set [synth.s2tt] column")
            name = PurePosixPath(str(row[FILE_NAME]))
            if name.is_absolute() or ".." in name.parts:
                raise DataError(f"{path}: {name} lies outside the folder", "list only clips below it")
            found[str(below / name)] = " ".join(str(row[column] or "").split())
    if not lists:
        for path in (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES):
            beside = path.with_suffix(".txt")
            if beside.is_file():
                found[path.relative_to(folder).as_posix()] = " ".join(_text(beside).split())
    if not found:
        raise UsageError(
            f"{folder} holds no recording with a transcript",
            f"put {' or '.join(METADATA)} into it ({FILE_NAME}, {column}), or NAME.txt beside NAME.wav",
        )
    return dict(sorted(found.items()))


def source_hash(folder: Path) -> str:
    """Of what `Recordings` reads: transcripts by content, clips by name and size, for they may be gigabytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed: list[list[Any]] = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        if path.name in METADATA or path.suffix == ".txt":
            listed.append([name, sha256_file(path)])
        elif path.suffix.lower() in SUFFIXES:
            listed.append([name, path.stat().st_size])
    return stable_hash(listed)


def _said(split: Split | None, text: str, files: Sequence[str]) -> Said:
    return Said(f"recorded-{stable_hash([split, text])[:12]}", text, split, tuple(files))


def _split_of(name: str) -> Split | None:
    """The split that the nearest folder names."""
    parts = reversed(PurePosixPath(name).parts[:-1])
    return next((SPLITS[part.lower()] for part in parts if part.lower() in SPLITS), None)


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".csv":
        yield from csv.DictReader(_text(path).splitlines(keepends=True))
        return
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {number} is no JSON object", "mend that line")
            yield row


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "save it as UTF-8") from None


def _unreadable(error: DataError, path: Path) -> str:
    """The reason without the path, which is nobody's business in a dataset card."""
    return f"recording unreadable: {error.problem.replace(str(path), 'it')}"
