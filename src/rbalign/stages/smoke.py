"""The smoke sets' clips: spoken once on this machine, by a fixed key, and kept below RBA_HOME.

smoke/SET-CONTENT/   a dataset folder like any other, which grows with the greatest limit
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rbalign.assets import home
from rbalign.data.dataset import MANIFEST, Dataset
from rbalign.eval.tasks.smoke import smoke_set
from rbalign.rundir.run import lock_folder
from rbalign.stages.speaking import speak_shards
from rbalign.types import Split, View

EXAMPLES_PER_SHARD = 5


def smoke_folder(name: str) -> Path:
    """Where the clips of a set are kept; other texts or voices have another folder."""
    return home() / "smoke" / f"{name}-{smoke_set(name).content}"


def unspoken(name: str, examples: int) -> int:
    """How many clips that the first `examples` instructions need are not there yet."""
    views = smoke_folder(name) / "views"
    return sum(
        len(planned)
        for number, planned in _shards(name, examples).items()
        if not (views / f"{Split.TEST}-{number:05d}.parquet").is_file()
    )


def speak(name: str, examples: int) -> Dataset:
    """The clips of the first `examples` instructions at least; what is missing is spoken now."""
    folder, whole = smoke_folder(name), smoke_set(name)
    if unspoken(name, examples) or not (folder / MANIFEST).is_file():
        lock = lock_folder(folder, "start again when it is done")
        try:
            meta = {"kind": "smoke", "set": name, "content": whole.content}
            speak_shards(folder, meta, whole.examples, _shards(name, examples), f"speak {name}")
        finally:
            lock.release()
    return Dataset.open(folder)


def _shards(name: str, examples: int) -> dict[int, Sequence[View]]:
    """Number -> views, of whole shards: a limit of 12 has 15 instructions spoken."""
    whole = smoke_set(name)
    place = {example.id: number for number, example in enumerate(whole.examples)}
    shards: dict[int, list[View]] = {}
    for view in whole.views:
        number = place[view.example_id] // EXAMPLES_PER_SHARD
        if number * EXAMPLES_PER_SHARD < examples:
            shards.setdefault(number, []).append(view)
    return dict(shards)
