"""A run: one directory that explains itself, written by one process at a time.

    recipe.toml        every setting, defaults too; `rba run DIR/recipe.toml` goes on with the run
    environment.json   what it was made with, one entry for each environment it was worked on in
    status.json        stage -> its settings, inputs, outputs and whether it is done

A stage is keyed by its settings and by the hashes of its inputs. Done with the same key: skipped. Another key:
refused with the first field that differs. A fork is a new run that takes over the finished stages that still match.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rbalign.config.load import dump_recipe
from rbalign.config.recipe import Recipe
from rbalign.errors import DataError, RunError, UsageError
from rbalign.rundir.environment import describe
from rbalign.rundir.files import atomic_write, link_or_copy, stable_hash

# What a stage leaves behind beside the folder of its own name; a fork takes these over.
STAGE_FILES = {"synth": ("data",), "align": ("arms",), "eval": ("eval", "results.json")}


class LockedError(RunError):
    """Another process writes there."""


@dataclass(frozen=True, slots=True)
class StageHandle:
    """One stage of a run, or a part of one ("align/sft-s0"), with the settings it is keyed by."""

    run: RunDir
    name: str
    done: bool
    outputs: Mapping[str, str]
    """What the finished stage gave, name -> hash; the inputs of later stages. Empty until done."""

    def finish(self, outputs: Mapping[str, str]) -> None:
        """Record that the stage is complete; from now on it is skipped."""
        entry = self.run.status["stages"][self.name]
        entry.update(state="done", outputs=dict(outputs), finished=_now())
        self.run.write_status()


class RunDir:
    """An open run. `open` locks it for writing, `look` only reads, `follow` is for a launch's other processes; all work
    in a `with` block."""

    def __init__(self, folder: Path, recipe: Recipe, status: dict[str, Any]) -> None:
        self.folder = folder
        self.recipe = recipe
        self.status = status
        self._lock: Any = None
        self._follows = False

    @classmethod
    def open(cls, root: Path, recipe: Recipe, fork: str | None = None, *, forkable: bool = True) -> Self:
        """The run `root/NAME`, made if it is not there; NAME is the recipe's name or the fork's.

        forkable: whether `--fork` is offered where another process holds it.
        Raises RunError if another process writes to it or it was forked from elsewhere, UsageError for a bad name.
        """
        recipe, source = _named(Path(root), recipe, fork)
        folder = Path(root) / recipe.name
        lock = lock_folder(folder, "add `--fork NAME`" if forkable else None)
        try:
            run = cls(folder, recipe, _read_status(folder, source))
            run._lock = lock
            run._write_environment()
            if not run.path("recipe.toml").exists():
                run._write_recipe()
            if not run.path("status.json").exists():
                run.write_status()
        except BaseException:
            lock.release()
            raise
        return run

    @classmethod
    def look(cls, root: Path, recipe: Recipe, fork: str | None = None) -> Self:
        """The same run for reading: makes nothing, locks nothing, and cannot start or finish a stage."""
        recipe, source = _named(Path(root), recipe, fork)
        folder = Path(root) / recipe.name
        return cls(folder, recipe, _read_status(folder, source))

    @classmethod
    def follow(cls, root: Path, recipe: Recipe, fork: str | None = None) -> Self:
        """The same run for the other processes of a launch, of which the first one has it open: they enter and finish
        the stages that it does, in memory alone."""
        run = cls.look(root, recipe, fork)
        run._follows = True
        return run

    def path(self, *parts: str) -> Path:
        """A place inside the run; nothing is made."""
        return self.folder.joinpath(*parts)

    def outputs(self, stage: str) -> dict[str, str] | None:
        """What a finished stage gave, or None if it is not done."""
        entry = self.status["stages"].get(stage, {})
        return dict(entry["outputs"]) if entry.get("state") == "done" else None

    def key(self, stage: str) -> str:
        """The hash of the settings and inputs that a stage was started with."""
        return str(self.status["stages"][stage]["key"])

    @property
    def is_fork(self) -> bool:
        """Whether there is a run whose finished stages this one may take over."""
        return self.status["forked_from"] is not None

    def stage(
        self,
        name: str,
        section: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        repeat: bool = False,
        begin: bool = True,
    ) -> StageHandle:
        """Enter a stage with its settings (JSON values) and inputs (name -> hash).

        The handle says whether it is done already. Raises RunError, naming the first field that differs, if the
        stage was started with other settings or inputs; with `repeat` it begins anew instead. Without `begin` a stage
        that is not done is left as it was.
        """
        section, inputs = json.loads(json.dumps(section)), dict(inputs)
        key = stable_hash([section, inputs])
        entry = self.status["stages"].get(name) or self._take_over(name, key)
        if entry is not None and entry["key"] != key and not repeat:
            raise self._changed(name, entry, section, inputs)
        if entry is not None and entry["key"] == key and entry["state"] == "done":
            return StageHandle(self, name, True, entry["outputs"])
        if begin and (entry is None or entry["key"] != key) and (self._lock or self._follows):
            entry = {"state": "started", "key": key, "section": section, "inputs": inputs, "outputs": {}}
            self.status["stages"][name] = entry | {"started": _now()}
            if self._lock:
                self._write_recipe()
            self.write_status()
        return StageHandle(self, name, False, {})

    def reopen(self, stage: str) -> None:
        """A finished stage is begun, but not done, again."""
        if self.outputs(stage) is not None:
            self.status["stages"][stage].update(state="started", outputs={})
            self.write_status()

    def write_status(self) -> None:
        """Put status.json on the disk. Only the writer of a run may; those who follow it need not."""
        if self._follows:
            return
        if self._lock is None:
            raise RunError(f"run {self.recipe.name} was opened for reading", "open it with RunDir.open")
        atomic_write(self.path("status.json"), json.dumps(self.status, indent=2, ensure_ascii=False) + "\n")

    def close(self) -> None:
        """Let other processes write."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take_over(self, name: str, key: str) -> dict[str, Any] | None:
        """The finished stage of the run that this one was forked from, its files linked here, if its key matches."""
        source = self.status["forked_from"]
        if source is None:
            return None
        folder = self.folder.parent / source
        entry: dict[str, Any] = _read_status(folder, None)["stages"].get(name, {})
        if entry.get("state") != "done" or entry["key"] != key:
            return None
        self.status["stages"][name] = entry | {"taken_from": source}
        if self._lock is not None:
            for file in _stage_files(folder, name):
                link_or_copy(file, self.folder / file.relative_to(folder))
            self.write_status()
        return entry

    def _changed(
        self, name: str, entry: Mapping[str, Any], section: Mapping[str, Any], inputs: Mapping[str, str]
    ) -> RunError:
        stage = name.split("/")[0]
        field, old, new = next(_differences(entry["section"], section, ""), (None, None, None))
        if field is None:
            field, old, new = next(_differences(entry["inputs"], inputs, f"an input of {name}:"))
        verb = "finished" if entry["state"] == "done" else "began"
        return RunError(
            f"{field} was {_show(old)} when {name} {verb} in run {self.recipe.name}, and is now {_show(new)}",
            f"set it back, or add `--fork NAME` for a new run that keeps the finished stages before {stage}",
        )

    def _write_recipe(self) -> None:
        atomic_write(self.path("recipe.toml"), dump_recipe(self.recipe))

    def _write_environment(self) -> None:
        """Add this environment unless the newest entry equals it."""
        path, now = self.path("environment.json"), describe()
        entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        if not entries or entries[-1] != now:
            atomic_write(path, json.dumps([*entries, now], indent=2) + "\n")


_MISSING = object()


def _differences(old: Any, new: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted field, old value, new value) for all that differs, in the order of the new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        join = "" if not where else " " if where.endswith(":") else "."
        for key in [*new, *(key for key in old if key not in new)]:
            yield from _differences(old.get(key, _MISSING), new.get(key, _MISSING), f"{where}{join}{key}")
    elif old != new or type(old) is not type(new):
        yield where, old, new


def _show(value: Any) -> str:
    return "absent" if value is _MISSING else json.dumps(value, ensure_ascii=False)


def _named(root: Path, recipe: Recipe, fork: str | None) -> tuple[Recipe, str | None]:
    """The recipe under the name of its run, and the run that it is forked from."""
    if fork is None or fork == recipe.name:
        if fork is not None and not (root / fork / "status.json").exists():
            raise UsageError(f"--fork {fork} is the name of the recipe itself", "give the new run another name")
        return recipe, None
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", fork):
        raise UsageError(f"--fork {fork!r} is no name of a run", "use small letters, digits, dots and dashes")
    if not (root / recipe.name / "status.json").exists():
        raise UsageError(f"no run {root / recipe.name} to fork from", "leave --fork out, or give --runs DIR")
    return recipe.model_copy(update={"name": fork}), recipe.name


def lock_folder(folder: Path, otherwise: str | None) -> Any:
    """The writer's lock of a folder, which is made; the kernel drops it when the process ends, however it ends.

    LockedError if another process has it; `otherwise` is what else one may do than wait.
    """
    from filelock import FileLock, Timeout

    lock, writer = FileLock(folder / ".lock"), folder / ".writer"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        pid = writer.read_text() if writer.exists() else "unknown"
        cure = f"wait for it, stop it (kill {pid})" + (f", or {otherwise}" if otherwise else "")
        raise LockedError(f"{folder.name} is being written by process {pid}", cure) from None
    except OSError as error:
        raise RunError(f"cannot write in {folder}: {error.strerror}", "choose another place") from error
    writer.write_text(str(os.getpid()))
    return lock


def _read_status(folder: Path, source: str | None) -> dict[str, Any]:
    path = folder / "status.json"
    if not path.exists():
        return {"forked_from": source, "stages": {}}
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
        found, _ = status["forked_from"], status["stages"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} is not the status of a run", f"move {folder} away and start again") from None
    if source is not None and found != source:
        raise RunError(f"run {folder.name} is no fork of {source}", "choose another name for --fork")
    return dict(status)


def _stage_files(folder: Path, name: str) -> Iterator[Path]:
    """Every file that a stage, or a part of one, left in a run."""
    stage, _, part = name.partition("/")
    for top in {stage, *STAGE_FILES.get(stage, ())}:
        place = folder / top / part
        if place.is_file():
            yield place
        yield from (file for file in sorted(place.rglob("*")) if file.is_file())


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
