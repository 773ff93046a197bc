"""Recordings with transcripts, as the source of kind = "s2tt": local copies of FLEURS, CoVoST, Common Voice, your own.

Where they may lie: `synth/transcripts.py`. Where the path of every recording names a split (train, validation or dev,
test), that is its split; where none does, instructions are dealt to the splits in an order drawn by key.

Recordings of one transcript are the views of one example, as voices are elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from rbalign.audio.io import Limits, audio_seconds, read_audio, to_flac
from rbalign.data.shards import RATE
from rbalign.errors import DataError, UsageError
from rbalign.keys import Key
from rbalign.rundir.files import stable_hash
from rbalign.synth.transcripts import PARQUET, clip_of, read_transcripts
from rbalign.types import Example, Split, View, ViewSpec
from rbalign.voices.pool import SpeakFailure, SpeakJob

HUMAN = "human"
"""The engine of recordings."""
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
"""Folders in a recording's path that name its split, as the `datasets` library reads them; so does the start of a
parquet file's name, train-00000-of-00004.parquet."""


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

    def clips(
        self, views: Sequence[View], spoken: Mapping[str, str], workers: int
    ) -> Iterator[tuple[View, SpeakFailure | None]]:
        """Each view with its recording, 16 kHz and mono, in the files' order; one that cannot be used has its reason.

        By threads: decoding, resampling and FLAC are libraries' work, without the interpreter's lock.
        """
        with ThreadPoolExecutor(workers, "recording") as pool:
            yield from pool.map(partial(self._clip, spoken), sorted(views, key=self._name))

    def _clip(self, spoken: Mapping[str, str], view: View) -> tuple[View, SpeakFailure | None]:
        name = self._name(view)
        problem = self._problem(name)
        try:
            samples = read_audio(clip_of(self._folder, name), rate=RATE) if problem is None else None
        except DataError as error:
            samples, problem = None, _unreadable(error, self._folder / name)
        if samples is None:
            return view, SpeakFailure(SpeakJob.of(view, spoken), str(problem))
        return replace(view, seconds=len(samples) / RATE, flac=to_flac(samples, RATE)), None

    def _name(self, view: View) -> str:
        return self._said[view.example_id].files[view.index]

    def _problem(self, name: str) -> str | None:
        path = self._folder / name
        try:
            seconds = audio_seconds(clip_of(self._folder, name), limits=Limits(max_seconds=float("inf")))
        except DataError as error:
            return _unreadable(error, path)
        return f"recording longer than {self._max_seconds:g} s" if seconds > self._max_seconds else None


def _said(split: Split | None, text: str, files: Sequence[str]) -> Said:
    return Said(f"recorded-{stable_hash([split, text])[:12]}", text, split, tuple(files))


def _split_of(name: str) -> Split | None:
    """The split that the nearest folder names."""
    folders = [part.lower() for part in reversed(PurePosixPath(name).parts[:-1])]
    parts = [part.removesuffix(PARQUET).split("-")[0] if part.endswith(PARQUET) else part for part in folders]
    return next((SPLITS[part] for part in parts if part in SPLITS), None)


def _unreadable(error: DataError, path: Path) -> str:
    """The reason without the path, which is nobody's business in a dataset card."""
    return f"recording unreadable: {error.problem.replace(str(path), 'it')}"
