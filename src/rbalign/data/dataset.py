"""Datasets on disk: written shard by shard, resumable after any crash, and read without loading the audio.

FOLDER/examples-NNNNN.jsonl         one instruction in each row
FOLDER/views/SPLIT-NNNNN.parquet    clips (see shards.py), about 1,000 in each
FOLDER/manifest.json                written last: its presence says that the dataset is whole
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rbalign.data.shards import RATE, encode_shard, read_shard
from rbalign.errors import DataError
from rbalign.rundir.files import atomic_write, sha256_file, stable_hash
from rbalign.types import Example, View

MANIFEST = "manifest.json"
FORMAT = 1
VIEWS_PER_SHARD = 250
"""About 16 MB and, with Kokoro, six minutes: few enough to lose in a crash; a million clips are four thousand files."""

_SHARD_NAME = re.compile(r"(?P<split>.+)-(?P<number>\d{5})\.parquet")


class DatasetWriter:
    """Writes a dataset folder; opening an existing one goes on where it stopped.

    Every add_examples and commit_views is on disk as a whole when it returns, or not at all.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any]) -> None:
        """meta: what the manifest says about the origin, JSON: at least `teacher` and `recipe` (its hash)."""
        self._folder = Path(folder)
        self._meta = dict(meta)
        self._examples = {example.id: example for example in _read_examples(self._folder)}

    def add_examples(self, examples: Iterable[Example]) -> None:
        """Append examples as one file. Known ids are skipped; a known id with other content is a DataError."""
        fresh: dict[str, Example] = {}
        for example in examples:
            known = self._examples.get(example.id) or fresh.get(example.id)
            if known is None:
                fresh[example.id] = example
            elif stable_hash(asdict(known)) != stable_hash(asdict(example)):
                raise DataError(f"example {example.id!r} is already there with other content", "give it another id")
        if not fresh:
            return
        self._reopen()
        number = len(_example_files(self._folder))
        rows = [json.dumps(asdict(example), ensure_ascii=False, allow_nan=False) for example in fresh.values()]
        atomic_write(self._folder / f"examples-{number:05d}.jsonl", "".join(row + "\n" for row in rows))
        self._examples.update(fresh)

    def committed(self, split: str) -> set[int]:
        """Numbers of the shards of a split that are on disk: a resumed stage skips them."""
        return {number for name, number, _ in _view_files(self._folder) if name == split}

    def commit_views(self, split: str, shard_index: int, views: Sequence[View]) -> None:
        """Write one shard. DataError if it is already committed or holds a view of another split."""
        if shard_index in self.committed(split):
            raise DataError(f"shard {shard_index} of {split} is already committed", "skip what `committed` names")
        for view in views:
            if view.split != split:
                raise DataError(f"view {view.id} belongs to {view.split!r}, not to {split!r}", "sort views by split")
        self._reopen()
        atomic_write(self._folder / "views" / f"{split}-{shard_index:05d}.parquet", encode_shard(views))

    def finish(self) -> dict[str, Any]:
        """Check the whole and write the manifest; returns it. DataError for views without example or twice there."""
        views: dict[str, View] = {}
        for split, _, path in _view_files(self._folder):
            for view in read_shard(path, split):
                example = self._examples.get(view.example_id)
                if example is None or example.split != split:
                    where = "no example" if example is None else f"an example of {example.split!r}"
                    raise DataError(f"view {view.id} in {path.name} has {where}", "delete the shard and run again")
                if view.id in views:
                    raise DataError(f"view {view.id} stands twice ({path.name})", "delete the shard and run again")
                views[view.id] = view
        manifest = {
            "format": FORMAT,
            "rate": RATE,
            **self._meta,
            "content_hash": _content_hash(self._examples.values(), views.values()),
            "splits": _summary(self._examples.values(), views.values()),
            "files": {str(path.relative_to(self._folder)): sha256_file(path) for path in _files(self._folder)},
        }
        atomic_write(self._folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        return manifest

    def _reopen(self) -> None:
        """A dataset that grows is not whole until it is finished again."""
        (self._folder / MANIFEST).unlink(missing_ok=True)


class Dataset:
    """A finished dataset, read-only."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Open a folder that DatasetWriter finished. DataError if it is not one, or a file of it is missing."""
        folder = Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"no finished dataset in {folder}", "run the stage that writes it to its end") from None
        except ValueError:
            raise DataError(f"{folder / MANIFEST} is damaged", "run the stage that wrote the dataset again") from None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise DataError(f"{folder} is not a dataset of format {FORMAT}", "write it again with this version of rba")
        missing = [name for name in manifest["files"] if not (folder / name).is_file()]
        if missing:
            raise DataError(f"dataset {folder} lacks {missing[0]}", "run the stage that wrote the dataset again")
        return cls(folder, manifest)

    @property
    def content_hash(self) -> str:
        """Names the texts and clips, whatever the order or shards they were written in."""
        return str(self.manifest["content_hash"])

    def examples(self, split: str | None = None) -> list[Example]:
        """The instructions of a split (None: all), in the order they were written."""
        return [example for example in _read_examples(self.folder) if split in (None, example.split)]

    def views(self, split: str | None = None) -> list[View]:
        """The views of a split (None: all), ordered by shard. `flac` is read from disk at each access."""
        shards = [(path, name) for name, _, path in _view_files(self.folder) if split in (None, name)]
        return [view for path, name in shards for view in read_shard(path, name)]

    def verify(self) -> None:
        """Hash every file against the manifest: DataError names the first that differs."""
        for name, expected in self.manifest["files"].items():
            if sha256_file(self.folder / name) != expected:
                raise DataError(f"{self.folder / name} is not what was written", "run the stage that wrote it again")


def _example_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("examples-*.jsonl"))


def _view_files(folder: Path) -> list[tuple[str, int, Path]]:
    """(split, shard number, path) of every committed shard, in order. Files that were being written do not match."""
    found = []
    for path in (folder / "views").glob("*.parquet"):
        match = _SHARD_NAME.fullmatch(path.name)
        if match and not path.name.startswith("."):
            found.append((match["split"], int(match["number"]), path))
    return sorted(found)


def _files(folder: Path) -> list[Path]:
    return _example_files(folder) + [path for _, _, path in _view_files(folder)]


def _read_examples(folder: Path) -> list[Example]:
    known = {field.name for field in fields(Example)}
    examples: list[Example] = []
    for path in _example_files(folder):
        # Not splitlines(): a text may hold U+2028, which is a line end there and none in JSON.
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
            try:
                row = json.loads(line)
                examples.append(Example(**{name: value for name, value in row.items() if name in known}))
            except (ValueError, TypeError, AttributeError) as error:
                raise DataError(f"{path.name} line {number} is not an example: {error}", "write it again") from None
    return examples


def _content_hash(examples: Iterable[Example], views: Iterable[View]) -> str:
    rows = [stable_hash(asdict(example)) for example in examples]
    for view in views:
        audio = hashlib.sha256(view.flac).hexdigest()
        # What was said counts only where it was not the example's text: hashes from before deliveries stay true.
        said = [] if view.said is None else [view.said, view.retracted]
        rows.append(stable_hash([view.id, view.split, asdict(view.spec), view.seconds, audio, *said]))
    return stable_hash(sorted(rows))


def _summary(examples: Iterable[Example], views: Iterable[View]) -> dict[str, dict[str, Any]]:
    """By split: examples, views, seconds of audio, and the distinct voices (other speeds are the same voice)."""
    splits: dict[str, dict[str, Any]] = {}
    empty = {"examples": 0, "views": 0, "seconds": 0.0, "voices": []}
    for example in examples:
        splits.setdefault(example.split, {**empty, "voices": []})["examples"] += 1
    for view in views:
        summary = splits[view.split]
        summary["views"] += 1
        summary["seconds"] += view.seconds
        summary["voices"] = sorted({*summary["voices"], view.spec.voice})
    for summary in splits.values():
        summary["seconds"] = round(summary["seconds"], 3)
        summary["distinct_voices"] = len(summary["voices"])
    return splits
