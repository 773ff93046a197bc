"""`rba synth RECIPE --engine ray`: the shards of `stages/synth_shards.py` as actors of Ray Data, the merges in between.

Ray decides where a shard is made and starts an actor again that died; nothing else. What a shard writes goes to its
own folder, which all machines see, so that Ray carries numbers of shards and no data; a shard that lost its actor goes
on where its journals end, and the dataset is that of the local engine, whatever dies.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbalign.config.recipe import Recipe
from rbalign.errors import RbaError, RunError, ServiceError, UsageError
from rbalign.rundir.files import atomic_write
from rbalign.rundir.progress import counted, progress
from rbalign.rundir.run import LockedError, RunDir
from rbalign.stages.synth_merge import TooFewTextsError, merge, parts_in
from rbalign.stages.synth_outside import config_of
from rbalign.stages.synth_shards import (
    CLIPS,
    SHARDS,
    TEXTS,
    Say,
    merged_texts,
    refuse_recordings,
    run_shard,
    whole_stage,
)
from rbalign.synth.parts import MOST_PARTS, Part

Work = Callable[[Recipe, Path, Part, float | None], None]
"""What an actor does for a part; `run_shard` unless a test puts fakes under it. Must be picklable."""
TRIES = 4
"""Of a shard whose actor dies, in each round: memory that is too small once is mostly too small for ever."""
WATCH_SECONDS = 2.0
LOCKED_SECONDS = 120.0
"""How long an actor waits for a part that another one holds: what a machine that is gone has locked on a disk of others
is free after a minute or two."""
STORE_BYTES = 100_000_000
"""Of a cluster that is started here. Ray takes a third of the memory otherwise, for data that it does not carry."""
MARK, STATE = ".round", ".state.json"
"""In the folder of shards: which round of which start it is. In a shard's: how far it is in that round."""
COUNTED = {TEXTS: "accepted", CLIPS: "clips"}
"""Round -> the unit of what most of its time goes into."""


def synth_on_ray(
    recipe: Recipe, runs: Path, shards: int | None = None, say: Say = lambda line: None, work: Work = run_shard
) -> None:
    """Make the dataset by actors of a Ray cluster, going on where an earlier start stopped.

    shards: those that are there if it is None, else one for each core.
    Raises UsageError if Ray is not installed, the error of a shard if one cannot go on; the others' work is kept.
    """
    run = RunDir.look(runs.absolute(), recipe)
    if whole_stage(run, recipe, begin=False).done:
        say("synth: finished before, skipped")
        return
    refuse_recordings(recipe)
    with cluster() as cores:
        crew = Crew.of(recipe, run.folder, shards, cores, work)
        say(f"on Ray: {len(crew.parts)} shards, {crew.at_once} at once")
        surplus = None
        while merged_texts(crew.folder, recipe) is None:
            crew.make(TEXTS, surplus)
            try:
                merge(recipe, crew.runs)
            except TooFewTextsError as error:
                surplus = error.surplus
                say(f"{error.problem}; all write on, with a surplus of {surplus:g}")
        crew.make(CLIPS)
        merge(recipe, crew.runs, say)


@contextmanager
def cluster() -> Iterator[list[int]]:
    """The cores of every machine of the cluster: one that is connected, the one of RAY_ADDRESS, or this machine alone
    for as long as the block runs."""
    ray = _ray()
    connected = ray.is_initialized()
    if not connected:
        _connect(ray)
    try:
        yield [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    finally:
        if not connected:
            ray.shutdown()


def _ray() -> Any:
    """The package with its data part."""
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--engine ray needs Ray, and {error.name} is not installed",
            'pip install "rbalign[ray]", or leave the option out: the local engine makes the same dataset',
        ) from None
    return ray


def _connect(ray: Any) -> None:
    """Nothing is reported to Ray's makers, no page is served, and what actors say stays in Ray's own logs."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = os.environ.get("RAY_ADDRESS")
    own = {} if address else {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    stop = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **own)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"at RAY_ADDRESS={address}" if address else "on this machine"
        raise ServiceError(
            f"no Ray cluster {where}: {error}", "look with `ray status`; without RAY_ADDRESS one is started here"
        ) from error
    finally:  # Ray puts sys.exit in its place, and `rba` stops by the blocks that it is in
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, stop)


@dataclass(frozen=True, slots=True)
class Crew:
    """The parts of a recipe, and how many actors make them at once."""

    recipe: Recipe
    folder: Path
    """Of all shards, in the run's."""
    parts: Sequence[Part]
    cores: int
    """Of each actor."""
    at_once: int
    work: Work

    @classmethod
    def of(cls, recipe: Recipe, run: Path, shards: int | None, cores: Sequence[int], work: Work) -> Crew:
        """A core for each actor, or as many as [synth] workers says. UsageError for what the cluster cannot give."""
        each = config_of(recipe).workers or 1
        room = sum(machine // each for machine in cores)
        if not room:
            raise UsageError(
                f"[synth] workers is {each}, and the machines of the Ray cluster have {max(cores, default=0)} cores",
                f"give --synth.workers 1 to {max([1, *cores])}, or a cluster with larger machines",
            )
        folder = run / SHARDS
        parts = parts_of(recipe, folder, shards, room)
        section = config_of(recipe).model_copy(update={"workers": each})
        with_workers = recipe.model_copy(update={"synth": section})
        return cls(with_workers, folder, parts, each, min(room, len(parts)), work)

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.folder.parent.parent

    def make(self, round_: str, surplus: float | None = None) -> None:
        """Let actors make a round of every part. Raises the first error of one."""
        import ray.data
        from ray.data import ActorPoolStrategy, DataContext

        mark = f"{round_} {platform.node()} {os.getpid()} {time.time_ns()}"
        atomic_write(self.folder / MARK, mark)
        task = Task(self.recipe, self.runs, len(self.parts), surplus, Path.cwd(), mark, self.work)
        for handler in logging.getLogger("ray.data").handlers:
            if handler.name == "console":  # what ends the run is raised; Ray's files in /tmp/ray keep the rest
                handler.setLevel(logging.CRITICAL)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1_000_000  # what Ray keeps room for of each result, which is a line
        rows = [{"number": part.number} for part in self.parts]
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            ShardMaker,
            fn_constructor_args=(task,),
            compute=ActorPoolStrategy(size=self.at_once, max_tasks_in_flight_per_actor=1),
            num_cpus=self.cores,
        )
        with watched(self.folder, self.parts, round_, mark):
            for row in made.iter_rows():
                if row["error"]:
                    raise pickle.loads(row["error"])


def parts_of(recipe: Recipe, folder: Path, shards: int | None, room: int) -> list[Part]:
    """The parts that were begun, or as many as are asked for or fit. UsageError if others are asked for."""
    texts = merged_texts(folder, recipe)
    if texts is not None:
        of = int(texts.manifest["shards"])
    elif any(Part.named(path.name) for path in folder.glob("*-of-*")):
        of = len(parts_in(folder))
    else:
        of = shards or min(room, MOST_PARTS)
    if shards not in (None, of):
        raise UsageError(
            f"--shards {shards}: {folder} was begun with {of}",
            f"leave the option out or give {of}, or delete the folder and make all anew",
        )
    return [Part(number, of) for number in range(1, of + 1)]


@dataclass(frozen=True, slots=True)
class Task:
    """What every actor of a round is told."""

    recipe: Recipe
    runs: Path
    of: int
    surplus: float | None
    here: Path
    """The driver's working folder: files of a recipe may be named relative to it."""
    mark: str
    work: Work


class ShardMaker:
    """An actor: makes one part after the other."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        """Make the part of a number. An error with a cure comes back as such: Ray would wrap it in tracebacks."""
        try:
            self._make(Part(int(row["number"]), self.task.of))
        except RbaError as error:
            return {"error": pickle.dumps(error)}
        return {"error": b""}

    def _make(self, part: Part) -> None:
        task = self.task
        shards = task.runs / task.recipe.name / SHARDS
        _check_shared(shards / MARK, task)
        os.chdir(task.here)
        state = _state(shards, part, task.mark)
        state["tries"] += 1
        place = shards / part.name / STATE

        def tell(unit: str, done: int, total: int) -> None:
            state["counts"][unit] = done / total if total else 1.0
            atomic_write(place, json.dumps(state))

        if state["tries"] > TRIES:
            raise RunError(
                f"shard {part} lost {TRIES} actors, which mostly means that memory ran out",
                "start again, it goes on where it stopped; with a larger --synth.workers fewer run at once",
            )
        atomic_write(place, json.dumps(state))
        with counted(tell):
            self._work(part)
        for unit in COUNTED.values():  # of a part that was finished before nothing was counted
            tell(unit, 1, 1)

    def _work(self, part: Part) -> None:
        task, start = self.task, time.monotonic()
        while True:
            try:
                return task.work(task.recipe, task.runs, part, task.surplus)
            except LockedError:
                if time.monotonic() - start > LOCKED_SECONDS:
                    raise
                time.sleep(1.0)


def _check_shared(mark: Path, task: Task) -> None:
    """RunError where a machine has another folder of that name than the driver, or none."""
    try:
        shared = mark.read_text(encoding="utf-8") == task.mark and task.here.is_dir()
    except OSError:
        shared = False
    if not shared:
        raise RunError(
            f"{platform.node()} does not see {mark.parent} as the driver does, or not {task.here}",
            "start where all machines of the cluster see the same files, or give such a place with --runs DIR",
        )


def _state(shards: Path, part: Part, mark: str) -> dict[str, Any]:
    """How far a part is in a round: tries, and the share of what was counted by unit."""
    try:
        state = json.loads((shards / part.name / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        state = {}
    return state if state.get("mark") == mark else {"mark": mark, "tries": 0, "counts": {}}


@contextmanager
def watched(shards: Path, parts: Sequence[Part], round_: str, mark: str) -> Iterator[None]:
    """While the block waits, show how far all parts are together, with the time left."""
    shown, ended = 0, threading.Event()
    label = f"{len(parts)} shards make {round_}"

    def percent() -> int:
        done = sum(_state(shards, part, mark)["counts"].get(COUNTED[round_], 0.0) for part in parts)
        return int(100 * done / len(parts))

    with progress(100, label, unit="%") as advance:

        def look() -> None:
            nonlocal shown
            if (now := percent()) > shown:
                advance(now - shown)
                shown = now

        def watch() -> None:
            while not ended.wait(WATCH_SECONDS):
                look()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            look()
