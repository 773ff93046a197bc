"""What makes killed and resumed equal to uninterrupted: keyed order, complete checkpoints, journals cut back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rbalign.errors import UsageError
from rbalign.keys import Key
from rbalign.rundir.files import atomic_write
from rbalign.rundir.journal import read_rows

STATE_FILE = "trainer_state.json"


def keyed_order(names: Sequence[str], updates: int, per_update: int, seed: int) -> list[int]:
    """Places of the examples that each update takes, update by update: (updates * per_update,).

    Every epoch permutes all examples by key and leaves out the last few that fill no update, other ones each time.
    """
    per_epoch = len(names) // per_update
    if updates and not per_epoch:
        raise UsageError(
            f"{len(names)} usable training examples are fewer than examples_per_update = {per_update}",
            "make more with [synth] train, or lower examples_per_update",
        )
    places: list[int] = []
    for epoch in range(-(-updates // per_epoch) if updates else 0):
        key = Key(seed, "order", update=epoch)
        shuffled = sorted(range(len(names)), key=lambda place: key.at(example=names[place]).digest())
        places += shuffled[: per_epoch * per_update]
    return places[: updates * per_update]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: its state file is written last, so it must parse."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        try:
            state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if state.get("global_step") == int(path.name.rpartition("-")[2]):
            return path
    return None


def cut_back(path: Path, update: int) -> None:
    """Drop a journal's rows of later updates than `update`: they will be made again."""
    if path.is_file():
        kept = [row for row in read_rows(path) if row["update"] <= update]
        lines = (json.dumps(row, ensure_ascii=False, separators=(", ", ": ")) for row in kept)
        atomic_write(path, "".join(line + "\n" for line in lines))
