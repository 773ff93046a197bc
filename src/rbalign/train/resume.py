"""What makes killed and resumed equal to uninterrupted: keyed order, complete checkpoints, journals cut back."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rbalign.errors import UsageError
from rbalign.keys import Key
from rbalign.rundir.files import atomic_write
from rbalign.rundir.journal import read_rows

STATE_FILE = "trainer_state.json"
ZIPPED = (".bin", ".pt", ".pth")
"""What torch.save writes: a zip, which has a checksum of each of its parts."""


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


def last_checkpoint(folder: Path, say: Callable[[str], None] = lambda line: None) -> Path | None:
    """The newest checkpoint whose files are all whole; `say` hears why a newer one is passed over."""
    found = sorted(folder.glob("checkpoint-*"), key=_number, reverse=True)
    for path in found:
        fault = _fault(path)
        if fault is None:
            return path
        say(f"{path} is not whole ({fault}): going on from the checkpoint before it")
    return None


def stopped_early(checkpoint: Path, patience: int) -> bool:
    """Whether validation had ended the training that wrote this checkpoint; `patience` 0 never does."""
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    counted = state["stateful_callbacks"].get("EarlyStoppingCallback", {}).get("attributes", {})
    return 0 < patience <= int(counted.get("early_stopping_patience_counter", 0))


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files. Its state is written last, so a torn save has none."""
    from safetensors import SafetensorError, safe_open

    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        if state.get("global_step") != _number(checkpoint):
            return f"{STATE_FILE} is of step {state.get('global_step')}"
    except (OSError, ValueError):
        return f"{STATE_FILE} is missing or torn"
    for path in sorted(checkpoint.iterdir()):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix in ZIPPED:
                with zipfile.ZipFile(path) as parts:
                    torn = parts.testzip()
                if torn is not None:
                    return f"{path.name} has a wrong checksum at {torn}"
        except (OSError, SafetensorError, zipfile.BadZipFile):
            return f"{path.name} is torn"
    return None


def cut_back(path: Path, update: int) -> None:
    """Drop a journal's rows of later updates than `update`: they will be made again."""
    if path.is_file():
        kept = [row for row in read_rows(path) if row["update"] <= update]
        lines = (json.dumps(row, ensure_ascii=False, separators=(", ", ": ")) for row in kept)
        atomic_write(path, "".join(line + "\n" for line in lines))
