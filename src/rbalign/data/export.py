"""A finished dataset in the formats of other trainers: audiofolder, ms-swift JSONL, verl parquet.

Every clip becomes a file, SPLIT/SHARD/ROW.flac, named by its place: ids may hold anything, and the `datasets` library
takes the words train, test, dev or eval in a path for a split. Beside the clips:

audiofolder     SPLIT/metadata.jsonl            a row for each clip, `file_name` relative to it
ms-swift        SPLIT-sft.jsonl                 `messages` with <audio> and the teacher's answer, `audios`
                SPLIT-grpo.jsonl                the same without the answer, which is `solution` for reward functions
verl            SPLIT.parquet                   data_source, prompt, ability, reward_model, extra_info, audios

Paths are relative to the exported folder (in metadata.jsonl to its own). The same dataset gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from rbalign.data.dataset import Dataset
from rbalign.errors import DataError, unknown
from rbalign.rundir.files import new_folder
from rbalign.rundir.progress import progress
from rbalign.types import Example, View

NO_CLIP, NO_ANSWER, TAGGED = "no voice could speak", "have no answer", "hold a placeholder such as <audio>"
"""Why examples are left out. A tag in an answer would be replaced by a clip that is not there."""

_CLUSTER = 4096
"""Bytes of the smallest file on common disks: a clip takes whole ones."""
_ROW_BYTES = 2048
"""Of text beside a clip, at most, on average."""
_ROW_GROUP = 4096
_TAG = re.compile("<(audio|image|video)>")
_LINE_ENDS = {ord(mark): f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"}
"""Line ends for str.splitlines and some readers, but none in JSON: escaped, so that a row is a line for all of them."""


@dataclass(slots=True)
class Exported:
    """What was written, and what was not."""

    folder: Path
    clips: Counter[str] = field(default_factory=Counter)
    """By split."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Examples by cause."""


class Sink(Protocol):
    """Where the rows of one format go."""

    def reason(self, example: Example) -> str | None:
        """Why an example does not fit the format, or None."""

    def add(self, clip: str, view: View, example: Example, number: int) -> None:
        """Write the rows of a clip: its path in the folder, its number in its split."""

    def finish(self) -> None:
        """Write what still waits; not called when something failed."""


def export_dataset(
    dataset: Dataset, form: str, out: Path, system: str | None = None, extra: Mapping[str, str] | None = None
) -> Exported:
    """Write the dataset to `out` in a format of FORMATS; `out` must not exist or be empty, and is whole or not there.

    system: the system prompt of the conversations (not in audiofolder). extra: texts by name, written beside.
    Memory: one shard, and 300 bytes for each example. Raises UsageError for an unknown format or a taken `out`,
    RunError if the disk has no room, DataError if the disk refuses or no example fits.
    """
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    made = Exported(out)
    with new_folder(out, _size(dataset)) as aside, ExitStack() as closing:
        sink = FORMATS[form](aside, system, closing)
        for name, clip, view, example in _fitting(dataset, sink, made):
            path = aside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(clip)
            sink.add(name, view, example, made.clips[view.split])
            made.clips[view.split] += 1
        if not made.clips:
            raise DataError(f"nothing to export: {left_out(made)}", "this format needs answered, spoken examples")
        sink.finish()
        for name, text in (extra or {}).items():
            (aside / name).write_text(text, encoding="utf-8", newline="\n")
    return made


def left_out(made: Exported) -> str:
    """For people: how many examples are not in it, and why."""
    return ", ".join(f"{count:,} examples {cause}" for cause, count in made.left_out.most_common()) or "no examples"


def _fitting(dataset: Dataset, sink: Sink, made: Exported) -> Iterator[tuple[str, bytes, View, Example]]:
    """(path, audio, view, example) of every clip that fits, shard by shard; counts the examples that are left out."""
    examples = dataset.by_id()
    waiting = set(examples)
    unfit: set[str] = set()
    with progress(_views(dataset), "export", unit="clips") as advance:
        for split, shard, views in dataset.iter_shards():
            for row, view in enumerate(views):
                example = examples[view.example_id]
                if view.example_id in waiting:
                    waiting.discard(view.example_id)
                    if (why := sink.reason(example)) is not None:
                        unfit.add(view.example_id)
                        made.left_out[why] += 1
                if view.example_id not in unfit:
                    clip = view.flac
                    yield f"{split}/{shard:05d}/{row:05d}{_suffix(clip)}", clip, view, example
                advance()
    if waiting:
        made.left_out[NO_CLIP] = len(waiting)


def _suffix(clip: bytes) -> str:
    """The name's end that fits the bytes: shipped sets hold Ogg, and tools go by the name."""
    return ".ogg" if clip.startswith(b"OggS") else ".flac"


def _size(dataset: Dataset) -> int:
    """Bytes on disk, a little too many."""
    views = _views(dataset)
    clips: int = sum((dataset.folder / name).stat().st_size for name in dataset.manifest["files"])
    return clips + views * (_CLUSTER + _ROW_BYTES)


def _views(dataset: Dataset) -> int:
    return sum(int(split["views"]) for split in dataset.manifest["splits"].values())


class _Files:
    """Text files of an exported folder, opened once each and closed at the end."""

    def __init__(self, folder: Path, closing: ExitStack) -> None:
        self._folder = folder
        self._closing = closing
        self._open: dict[str, TextIO] = {}

    def write(self, name: str, row: Mapping[str, Any]) -> None:
        """Append one JSON line."""
        if name not in self._open:
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open[name] = self._closing.enter_context(path.open("w", encoding="utf-8", newline="\n"))
        self._open[name].write(json.dumps(row, ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS) + "\n")


class AudioFolder:
    """`load_dataset("audiofolder", data_dir=OUT)`.

    Every column has one type in every row, for the types of all splits must agree: a missing text is "", and the
    labels are JSON in a string.
    """

    def __init__(self, folder: Path, system: str | None, closing: ExitStack) -> None:
        self._files = _Files(folder, closing)

    def reason(self, example: Example) -> str | None:
        """Everything fits."""
        return None

    def add(self, clip: str, view: View, example: Example, number: int) -> None:
        """One row of metadata.jsonl."""
        row = {
            "file_name": clip.removeprefix(f"{view.split}/"),
            "example_id": example.id,
            "index": view.index,
            "voice": view.spec.voice,
            "channel": view.spec.channel,
            "delivery": view.spec.delivery,
            "speed": float(view.spec.speed),
            "seed": view.spec.seed,
            "seconds": float(view.seconds),
            "instruction": example.instruction,
            "spoken": example.spoken,
            "answer": example.answer or "",
            "reference": example.reference or "",
            "labels": json.dumps(example.labels, ensure_ascii=False, sort_keys=True),
        }
        self._files.write(f"{view.split}/metadata.jsonl", row)

    def finish(self) -> None:
        """Nothing waits."""


class _Conversation:
    """What ms-swift and verl share: a spoken turn of the user, answered by the teacher."""

    def __init__(self, system: str | None) -> None:
        self._system = [{"role": "system", "content": system}] if system else []

    def reason(self, example: Example) -> str | None:
        """Unanswered examples have nothing to teach."""
        if not example.answer:
            return NO_ANSWER
        return TAGGED if _TAG.search(example.answer) else None

    def _prompt(self) -> list[dict[str, str]]:
        return [*self._system, {"role": "user", "content": "<audio>"}]


class MsSwift(_Conversation):
    """ms-swift's standard format: `swift sft --dataset train-sft.jsonl`, `swift rlhf --rlhf_type grpo ...`.

    GRPO wants no last answer and hands further columns to reward functions. DPO wants `rejected_response`, which a
    dataset of one teacher does not have: the rejected answers of RBA are the model's own.
    """

    def __init__(self, folder: Path, system: str | None, closing: ExitStack) -> None:
        super().__init__(system)
        self._files = _Files(folder, closing)

    def add(self, clip: str, view: View, example: Example, number: int) -> None:
        """One row in each of the two files."""
        answered = [*self._prompt(), {"role": "assistant", "content": example.answer}]
        self._files.write(f"{view.split}-sft.jsonl", {"messages": answered, "audios": [clip]})
        row = {
            "messages": self._prompt(),
            "audios": [clip],
            "solution": example.answer,
            "instruction": example.instruction,
            "example_id": example.id,
            "voice": view.spec.voice,
        }
        self._files.write(f"{view.split}-grpo.jsonl", row)

    def finish(self) -> None:
        """Nothing waits."""


_TEXT = pa.string()
VERL_SCHEMA = pa.schema(
    [
        ("data_source", _TEXT),
        ("prompt", pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))),
        ("ability", _TEXT),
        ("reward_model", pa.struct([("style", _TEXT), ("ground_truth", _TEXT)])),
        (
            "extra_info",
            pa.struct(
                [("split", _TEXT), ("index", pa.int64())]
                + [(name, _TEXT) for name in ("example_id", "voice", "instruction", "reference")]
            ),
        ),
        ("audios", pa.list_(_TEXT)),
    ]
)
"""verl's RLHFDataset under its default keys; `audios` are paths, as in its own example for speech."""


class Verl(_Conversation):
    """verl's RLHFDataset: `data.train_files=train.parquet`. Its reward function is yours: see docs/datasets.md."""

    def __init__(self, folder: Path, system: str | None, closing: ExitStack) -> None:
        super().__init__(system)
        self._folder = folder
        self._closing = closing
        self._waiting: dict[str, list[dict[str, Any]]] = {}
        self._writers: dict[str, Any] = {}

    def add(self, clip: str, view: View, example: Example, number: int) -> None:
        """One row; 4,096 of them become a row group."""
        topic = example.labels.get("topic")
        row = {
            "data_source": "rbalign",
            "prompt": self._prompt(),
            "ability": topic if isinstance(topic, str) else "instruction",
            "reward_model": {"style": "rule", "ground_truth": example.answer},
            "extra_info": {
                "split": view.split,
                "index": number,
                "example_id": example.id,
                "voice": view.spec.voice,
                "instruction": example.instruction,
                "reference": example.reference or "",
            },
            "audios": [clip],
        }
        rows = self._waiting.setdefault(view.split, [])
        rows.append(row)
        if len(rows) == _ROW_GROUP:
            self._write(view.split)

    def finish(self) -> None:
        """Write the last rows of every split."""
        for split, rows in self._waiting.items():
            if rows:
                self._write(split)

    def _write(self, split: str) -> None:
        if split not in self._writers:
            writer = pq.ParquetWriter(self._folder / f"{split}.parquet", VERL_SCHEMA)
            self._writers[split] = self._closing.enter_context(writer)
        self._writers[split].write_table(pa.Table.from_pylist(self._waiting[split], schema=VERL_SCHEMA))
        self._waiting[split].clear()


FORMATS: dict[str, Callable[[Path, str | None, ExitStack], Sink]] = {
    "audiofolder": AudioFolder,
    "ms-swift": MsSwift,
    "verl": Verl,
}


def data_files(form: str | None, splits: Mapping[str, Any]) -> dict[str, str]:
    """Split -> the pattern of its files, as the front matter of a dataset card names them; None: a dataset folder."""
    patterns = {
        None: "views/{}-*.parquet",
        "audiofolder": "{}/**",
        "ms-swift": "{}-sft.jsonl",
        "verl": "{}.parquet",
    }
    return {split: patterns[form].format(split) for split, table in splits.items() if table["views"]}
