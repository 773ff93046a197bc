"""Datasets on disk: written shard by shard, resumable after any crash, and read without loading the audio.

FOLDER/examples-NNNNN.jsonl         one instruction in each row
FOLDER/views/SPLIT-NNNNN.parquet    clips (see shards.py), about 1,000 in each
FOLDER/manifest.json                written last: its presence says that the dataset is whole
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rbalign.data.examples import EXAMPLES_PER_FILE, ExampleIndex, encode_examples, example_files, iter_examples
from rbalign.data.shards import RATE, encode_shard, iter_clips, read_shard
from rbalign.errors import DataError
from rbalign.rundir.files import atomic_write, sha256_file, stable_hash
from rbalign.types import Example, View

MANIFEST = "manifest.json"
FORMAT = 1
VIEWS_PER_SHARD = 250
"""About 16 MB and, with Kokoro, six minutes: few enough to lose in a crash; a million clips are four thousand files."""

_SHARD_NAME = re.compile(r"(?P<split>.+)-(?P<number>\d{5})\.parquet")
_DIGEST = 16
"""Bytes of a row's hash."""


class DatasetWriter:
    """Writes a dataset folder; opening an existing one goes on where it stopped.

    Every add_examples and commit_views is on disk as a whole when it returns, or not at all. Memory: about 250 bytes
    for each example (its id and hash); `finish` takes 180 for each view while it runs.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any]) -> None:
        """meta: what the manifest says about the origin, JSON: at least `teacher` and `recipe` (its hash)."""
        self._folder = Path(folder)
        self._meta = dict(meta)
        self._committed: dict[str, set[int]] = {}
        for split, number, _ in _view_files(self._folder):
            self._committed.setdefault(split, set()).add(number)
        self._known = {example.id: (example.split, _example_digest(example)) for example in iter_examples(self._folder)}

    def add_examples(self, examples: Iterable[Example]) -> None:
        """Append examples, in files of 10,000. Known ids are skipped; one with other content is a DataError.

        A crash between two files keeps the first; adding the same examples again adds the rest.
        """
        fresh: dict[str, Example] = {}
        digests: dict[str, bytes] = {}
        for example in examples:
            digest = _example_digest(example)
            known = digests.get(example.id) or self._known.get(example.id, (None, None))[1]
            if known is None:
                fresh[example.id], digests[example.id] = example, digest
            elif known != digest:
                raise DataError(f"example {example.id!r} is already there with other content", "give it another id")
        if not fresh:
            return
        self._reopen()
        number, rows = len(example_files(self._folder)), list(fresh.values())
        for start in range(0, len(rows), EXAMPLES_PER_FILE):
            part = rows[start : start + EXAMPLES_PER_FILE]
            atomic_write(self._folder / f"examples-{number:05d}.jsonl", encode_examples(part))
            self._known.update((example.id, (example.split, digests[example.id])) for example in part)
            number += 1

    def committed(self, split: str) -> set[int]:
        """Numbers of the shards of a split that are on disk: a resumed stage skips them."""
        return set(self._committed.get(split, ()))

    def commit_views(self, split: str, shard_index: int, views: Sequence[View]) -> None:
        """Write one shard. DataError if it is already committed or holds a view of another split."""
        if shard_index in self.committed(split):
            raise DataError(f"shard {shard_index} of {split} is already committed", "skip what `committed` names")
        for view in views:
            if view.split != split:
                raise DataError(f"view {view.id} belongs to {view.split!r}, not to {split!r}", "sort views by split")
        self._reopen()
        atomic_write(self._folder / "views" / f"{split}-{shard_index:05d}.parquet", encode_shard(views))
        self._committed.setdefault(split, set()).add(shard_index)

    def finish(self, **more: Any) -> dict[str, Any]:
        """Check the whole and write the manifest; returns it. DataError for views without example or twice there.

        `more`: what the manifest says beside the writer's `meta`, known only now.
        """
        digests = bytearray(b"".join(digest for _, digest in self._known.values()))
        summary = _Summary(split for split, _ in self._known.values())
        self._read_views(digests, summary)
        manifest = {
            "format": FORMAT,
            "rate": RATE,
            **self._meta,
            **more,
            "content_hash": _content_hash(digests),
            "splits": summary.table(),
            "files": {str(path.relative_to(self._folder)): sha256_file(path) for path in _files(self._folder)},
        }
        atomic_write(self._folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        return manifest

    def _read_views(self, digests: bytearray, summary: _Summary) -> None:
        """Check, hash and count every committed view; one shard is in memory, and all ids."""
        seen: set[str] = set()
        for split, _, path in _view_files(self._folder):
            for view, clip in zip(read_shard(path, split), iter_clips(path), strict=True):
                self._check(view, path, seen)
                seen.add(view.id)
                summary.add(view)
                digests += _view_digest(view, clip)

    def _check(self, view: View, path: Path, seen: set[str]) -> None:
        split, _ = self._known.get(view.example_id, (None, b""))
        if split != view.split:
            where = "no example" if split is None else f"an example of {split!r}"
            raise DataError(f"view {view.id} in {path.name} has {where}", "delete the shard and run again")
        if view.id in seen:
            raise DataError(f"view {view.id} stands twice ({path.name})", "delete the shard and run again")

    def _reopen(self) -> None:
        """A dataset that grows is not whole until it is finished again."""
        (self._folder / MANIFEST).unlink(missing_ok=True)


class Dataset:
    """A finished dataset, read-only. Opening reads the manifest and two listings of files, no rows."""

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
        missing = _first_missing(folder, manifest["files"])
        if missing is not None:
            raise DataError(f"dataset {folder} lacks {missing}", "run the stage that wrote the dataset again")
        return cls(folder, manifest)

    @property
    def content_hash(self) -> str:
        """Names the texts and clips, whatever the order or shards they were written in."""
        return str(self.manifest["content_hash"])

    def iter_examples(self, split: str | None = None) -> Iterator[Example]:
        """The instructions of a split (None: all), in the order they were written; one is in memory."""
        return (example for example in iter_examples(self.folder) if split in (None, example.split))

    def iter_shards(self, split: str | None = None) -> Iterator[tuple[str, int, list[View]]]:
        """(split, number, views) of every shard of a split (None: all), in order; read as they are asked for."""
        for name, number, path in _view_files(self.folder):
            if split in (None, name):
                yield name, number, read_shard(path, name)

    def iter_views(self, split: str | None = None) -> Iterator[View]:
        """The views of a split (None: all), ordered by shard; one shard is in memory.

        `flac` is read from disk at each access.
        """
        for _, _, views in self.iter_shards(split):
            yield from views

    def examples(self, split: str | None = None) -> list[Example]:
        """All of `iter_examples`: about 1 kB of memory for each."""
        return list(self.iter_examples(split))

    def views(self, split: str | None = None) -> list[View]:
        """All of `iter_views`: about 650 bytes of memory for each, without its audio."""
        return list(self.iter_views(split))

    def by_id(self) -> ExampleIndex:
        """Examples by id, read from disk at each access."""
        return ExampleIndex(self.folder)

    def verify(self) -> None:
        """Hash every file against the manifest: DataError names the first that differs."""
        for name, expected in self.manifest["files"].items():
            if sha256_file(self.folder / name) != expected:
                raise DataError(f"{self.folder / name} is not what was written", "run the stage that wrote it again")


def _view_files(folder: Path) -> list[tuple[str, int, Path]]:
    """(split, shard number, path) of every committed shard, in order. Files that were being written do not match."""
    found = []
    for path in (folder / "views").glob("*.parquet"):
        match = _SHARD_NAME.fullmatch(path.name)
        if match and not path.name.startswith("."):
            found.append((match["split"], int(match["number"]), path))
    return sorted(found)


def _files(folder: Path) -> list[Path]:
    return example_files(folder) + [path for _, _, path in _view_files(folder)]


def _first_missing(folder: Path, names: Iterable[str]) -> str | None:
    """The first name that is no file. Folders are listed once: thousands of shards need not be asked one by one."""
    there: dict[Path, set[str]] = {}
    for name in names:
        path = folder / name
        if path.parent not in there:
            there[path.parent] = set()
            if path.parent.is_dir():
                there[path.parent].update(entry.name for entry in os.scandir(path.parent) if entry.is_file())
        if path.name not in there[path.parent]:
            return name
    return None


def _example_digest(example: Example) -> bytes:
    return bytes.fromhex(stable_hash(asdict(example)))


def _view_digest(view: View, clip: bytes) -> bytes:
    audio = hashlib.sha256(clip).hexdigest()
    # What was said counts only where it was not the example's text: hashes from before deliveries stay true.
    said = [] if view.said is None else [view.said, view.retracted]
    return bytes.fromhex(stable_hash([view.id, view.split, asdict(view.spec), view.seconds, audio, *said]))


def _content_hash(digests: bytes | bytearray) -> str:
    """`stable_hash` of the sorted hex digests of all rows, without that list as one text."""
    rows = sorted(bytes(digests[start : start + _DIGEST]) for start in range(0, len(digests), _DIGEST))
    whole = hashlib.blake2b(b"[", digest_size=16)
    for number, row in enumerate(rows):
        whole.update(b'%s"%s"' % (b"," if number else b"", row.hex().encode()))
    whole.update(b"]")
    return whole.hexdigest()


class _Summary:
    """By split: examples, views, seconds of audio, and the distinct voices (other speeds are the same voice)."""

    def __init__(self, splits: Iterable[str]) -> None:
        """splits: of every example."""
        self._examples = Counter(splits)
        self._views: Counter[str] = Counter()
        self._seconds = dict.fromkeys(self._examples, 0.0)
        self._voices: dict[str, set[str]] = {split: set() for split in self._examples}

    def add(self, view: View) -> None:
        """Count one view."""
        self._views[view.split] += 1
        self._seconds[view.split] += view.seconds
        self._voices[view.split].add(view.spec.voice)

    def table(self) -> dict[str, dict[str, Any]]:
        """As the manifest has it."""
        return {
            split: {
                "examples": examples,
                "views": self._views[split],
                "seconds": round(self._seconds[split], 3),
                "voices": sorted(self._voices[split]),
                "distinct_voices": len(self._voices[split]),
            }
            for split, examples in self._examples.items()
        }
