"""One shard of views: a parquet file that `datasets.load_dataset("parquet")` opens as audio, read here lazily.

A shard in which some view is disfluent has two more columns, `said` and `retracted` (null where the delivery is
fluent). Every other shard is, to the byte, what it was before there were deliveries. `load_dataset` fills the two
columns with nulls for shards that lack them, if the first shard has them; else give it the `features` of one that has.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rbalign.errors import DataError
from rbalign.types import View, ViewSpec

RATE = 16_000
"""Hz of every clip in a dataset."""

ROW_GROUP = 16
"""Views read at once, about 1 MB: a shuffled walk over clips copies little more than it uses."""

_HF_FEATURES = {
    **{name: {"dtype": "string", "_type": "Value"} for name in ("example_id", "voice", "channel", "delivery")},
    **{name: {"dtype": "int64", "_type": "Value"} for name in ("index", "seed")},
    **{name: {"dtype": "float64", "_type": "Value"} for name in ("speed", "seconds")},
    "audio": {"sampling_rate": RATE, "decode": False, "_type": "Audio"},
}
"""The `datasets` library's own words for our columns. decode=False: decoding there needs torchcodec."""

_SAID = ("said", "retracted")

SCHEMA = pa.schema(
    [
        ("example_id", pa.string()),
        ("index", pa.int64()),
        ("voice", pa.string()),
        ("channel", pa.string()),
        ("delivery", pa.string()),
        ("speed", pa.float64()),
        ("seed", pa.int64()),
        ("seconds", pa.float64()),
        ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _HF_FEATURES}})},
)
SCHEMA_SAID = pa.schema(
    [*SCHEMA, *((name, pa.string()) for name in _SAID)],
    metadata={
        "huggingface": json.dumps(
            {"info": {"features": _HF_FEATURES | {name: {"dtype": "string", "_type": "Value"} for name in _SAID}}}
        )
    },
)
"""Of shards with a disfluent view."""


class StoredView(View):
    """A View whose `flac` is read from its shard at every access, and never kept. Pickles as a plain clip."""

    __slots__ = ("_read",)
    _read: Callable[[], bytes]

    @classmethod
    def lazy(cls, read: Callable[[], bytes], view: View) -> StoredView:
        """The same view with its `flac` slot left unset, so that access falls through to `__getattr__`."""
        stored = cls(view.example_id, view.index, view.split, view.spec, view.seconds, b"", view.said, view.retracted)
        object.__delattr__(stored, "flac")
        object.__setattr__(stored, "_read", read)
        return stored

    def __getattr__(self, name: str) -> bytes:
        if name == "flac":
            return self._read()
        raise AttributeError(name)


def encode_shard(views: Sequence[View]) -> bytes:
    """The parquet bytes of a shard: the same views give the same bytes. DataError for a value that does not fit."""
    rows = [
        {
            "example_id": view.example_id,
            "index": view.index,
            "voice": view.spec.voice,
            "channel": view.spec.channel,
            "delivery": view.spec.delivery,
            "speed": view.spec.speed,
            "seed": view.spec.seed,
            "seconds": view.seconds,
            "audio": {"bytes": view.flac, "path": f"{view.example_id}-{view.index}.flac"},
            "said": view.said,
            "retracted": view.retracted,
        }
        for view in views
    ]
    schema = SCHEMA if all(view.said is None for view in views) else SCHEMA_SAID
    sink = io.BytesIO()
    try:
        table = pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise DataError(f"a view does not fit the shard's columns: {error}", "see data.shards.SCHEMA") from None
    # FLAC does not shrink again, and uncompressed pages can be memory-mapped.
    pq.write_table(table, sink, row_group_size=ROW_GROUP, compression="NONE", use_dictionary=False)
    return sink.getvalue()


def read_shard(path: Path, split: str) -> list[View]:
    """The views of a shard, without their audio. Raises DataError for a file that is not such a shard."""
    try:
        stamp = path.stat().st_mtime_ns
        with _open(path) as file:
            rows = file.read(columns=[name for name in file.schema_arrow.names if name != "audio"]).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    views: list[View] = []
    for number, row in enumerate(rows):
        spec = ViewSpec(row["voice"], row["speed"], row["channel"], row["delivery"], row["seed"])
        said = {name: row.get(name) for name in _SAID}
        view = View(row["example_id"], row["index"], split, spec, row["seconds"], **said)
        views.append(StoredView.lazy(partial(_read_flac, path, stamp, number), view))
    return views


def iter_clips(path: Path) -> Iterator[bytes]:
    """The audio of a shard's views, in order; one row group is in memory. Raises DataError as `read_shard`."""
    try:
        with _open(path) as file:
            for group in range(file.num_row_groups):
                audio = file.read_row_group(group, columns=["audio.bytes"]).column("audio").combine_chunks()
                for clip in audio.field("bytes"):
                    yield clip.as_py()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _read_flac(path: Path, stamp: int, number: int) -> bytes:
    flac: bytes = _row_group(path, stamp, number // ROW_GROUP)[number % ROW_GROUP].as_py()
    return flac


@lru_cache(maxsize=8)
def _row_group(path: Path, stamp: int, group: int) -> pa.Array:
    """The audio of one row group: 8 are kept, about 8 MB, for walks in order. `stamp` tells a rewritten file."""
    try:
        with _open(path) as file:
            audio = file.read_row_group(group, columns=["audio.bytes"]).column("audio").combine_chunks()
        return audio.field("bytes")
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _open(path: Path) -> pq.ParquetFile:
    file = pq.ParquetFile(path, memory_map=True)
    if not any(file.schema_arrow.equals(schema) for schema in (SCHEMA, SCHEMA_SAID)):
        raise DataError(f"{path} is parquet, but not a shard of views", "its columns must be data.shards.SCHEMA")
    return file


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"shard {path} is damaged: {error}", "delete it and run the stage that wrote it again")
