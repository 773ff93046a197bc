"""What makes killed and resumed equal to uninterrupted: keyed order, complete checkpoints, journals cut back."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rbalign.errors import DataError, UsageError
from rbalign.keys import Key
from rbalign.rundir.files import atomic_write, sha256_file
from rbalign.rundir.journal import read_rows

STATE_FILE = "trainer_state.json"
SUMS_FILE = "sha256.json"
"""The SHA-256 of every other file of a checkpoint, by name; written after all of them."""
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
    faults: dict[Path, str] = {}
    whole = None
    for path in sorted(folder.glob("checkpoint-*"), key=_number, reverse=True):
        fault = _fault(path)
        if fault is None:
            whole = path
            break
        faults[path] = fault
    goes_on = f"going on from {whole.name}" if whole else "starting over, there is no other"
    for path, fault in faults.items():
        say(f"{path} is not whole ({fault}): {goes_on}")
    return whole


@contextmanager
def saving(checkpoint: Path, writes: bool, everyone: Callable[[], None]) -> Iterator[None]:
    """The block writes a checkpoint, which gets its checksums when it is whole.

    writes: whether this process does; everyone: waits for the others, which put files of their own into it.
    Raises DataError if the disk refuses; what is torn is then gone, and the checkpoints before it stand.
    """
    try:
        if writes:
            # One that was passed over may stand here: half new, half old it must not look whole. State goes first.
            for name in (STATE_FILE, SUMS_FILE):
                (checkpoint / name).unlink(missing_ok=True)
        yield
    except Exception as error:
        reason = _refusal(error)
        if reason is None:
            raise
        if writes and _fault(checkpoint) is not None:
            shutil.rmtree(checkpoint, ignore_errors=True)
        raise _no_room(checkpoint, reason) from error
    everyone()
    if writes:
        sums = {path.relative_to(checkpoint).as_posix(): sha256_file(path) for path in _files(checkpoint)}
        atomic_write(checkpoint / SUMS_FILE, json.dumps(sums, indent=1) + "\n")


def _refusal(error: Exception) -> str | None:
    """What the disk said, whichever library was writing; None if it was not the disk."""
    from safetensors import SafetensorError

    text = str(error)
    if isinstance(error, OSError):
        return error.strerror or text
    if isinstance(error, SafetensorError) and "I/O error: " in text:
        return text.partition("I/O error: ")[2].partition(" (os error")[0]
    # torch.save tells neither the call nor its errno, only that its zip is shorter than it should be.
    return "the disk took only a part" if isinstance(error, RuntimeError) and "inline_container" in text else None


def _no_room(checkpoint: Path, reason: str) -> DataError:
    """The disk's refusal in one line: what was to be written, what there is, and where training goes on."""
    before = last_checkpoint(checkpoint.parent)
    needs = f"it needs about {sum(file.stat().st_size for file in _files(before)) / 1e6:.1f} MB, " if before else ""
    free = shutil.disk_usage(checkpoint.parent).free / 1e6
    goes_on = f"goes on from {before.name}" if before else "starts over, there is no checkpoint yet"
    return DataError(
        f"cannot save {checkpoint}: {reason} ({needs}{free:.1f} MB are free)",
        f"free some disk space and start again: training {goes_on}",
    )


def stopped_early(checkpoint: Path, patience: int) -> bool:
    """Whether validation had ended the training that wrote this checkpoint; `patience` 0 never does."""
    state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    counted = state["stateful_callbacks"].get("EarlyStoppingCallback", {}).get("attributes", {})
    return 0 < patience <= int(counted.get("early_stopping_patience_counter", 0))


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _files(checkpoint: Path) -> list[Path]:
    """All files of a checkpoint but its checksums; FSDP and DeepSpeed put some into folders."""
    return [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != SUMS_FILE]


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or with the best one before it, whose weights its training ends with."""
    # The state is the last file of transformers' own, so a torn save has none.
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        if state.get("global_step") != _number(checkpoint):
            return f"{STATE_FILE} is of step {state.get('global_step')}"
    except (OSError, ValueError):
        return f"{STATE_FILE} is missing or torn"
    fault = _wrong_sum(checkpoint) if (checkpoint / SUMS_FILE).is_file() else _torn(checkpoint)
    best = Path(state.get("best_model_checkpoint") or checkpoint).name
    if fault is None and best != checkpoint.name:
        fault = _fault(checkpoint.with_name(best))
        return fault and f"its best, {best}: {fault}"
    return fault


def _wrong_sum(checkpoint: Path) -> str | None:
    """The first file that is not what was written."""
    try:
        sums = json.loads((checkpoint / SUMS_FILE).read_text(encoding="utf-8"))
        for name, expected in sums.items():
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            if sha256_file(checkpoint / name) != expected:
                return f"{name} has another SHA-256 than when it was written"
    except (OSError, ValueError, AttributeError):
        return f"{SUMS_FILE} is torn, or a file cannot be read"
    return None


def _torn(checkpoint: Path) -> str | None:
    """The first file that is short or, zipped, changed: all that can be seen without checksums."""
    from safetensors import SafetensorError, safe_open

    for path in _files(checkpoint):
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
