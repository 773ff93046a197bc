"""Speech while the teacher still writes: a shard is spoken as soon as all its texts stand.

Only where writing leaves the cores free, the teacher behind a server: on the same cores each would take from the other
what it gains. What is spoken early is what would be spoken late: accepted examples keep their order, an
example's views depend on nothing but itself, and so the first shards of a split are known before its last text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Self, TypeVar

from rbalign.rundir.progress import note, silent
from rbalign.synth.speak import Speech, borrows_talkers
from rbalign.types import Example, View

T = TypeVar("T")
Speak = Callable[[Speech, threading.Event], object]
"""Speaks and commits; leaves by StoppedError once the event is set."""


class StoppedError(Exception):
    """Nobody waits for this speech any more."""


def until(stop: threading.Event, given: Iterable[T]) -> Iterator[T]:
    """What is given, until somebody stops it: then StoppedError."""
    for one in given:
        if stop.is_set():
            raise StoppedError
        yield one


class Ahead:
    """A thread that speaks whole shards. Leave the block, and it ends with the shard that it is at.

    An error of its own is raised in the block at the next `take`, or at its end; an error of the block's stops it.
    """

    def __init__(self, plan: Callable[[Example], Sequence[View]], speak: Speak, size: int) -> None:
        """plan: an example's views, all of one split; size: views in a shard."""
        self._plan, self._speak, self._size = plan, speak, size
        self._jobs: SimpleQueue[Speech | None] = SimpleQueue()
        self._filling: dict[str, list[View]] = {}
        self._shards: dict[str, int] = {}
        self._examples: dict[str, tuple[str, Sequence[View]]] = {}
        """Of the shards that are filling: what an example says, and all its views."""
        self._stop, self._enough = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="speak ahead", daemon=True)

    def take(self, examples: Sequence[Example]) -> None:
        """Newly accepted examples, in their order."""
        if self._failure is not None:
            raise self._failure
        for example in examples:
            self._examples[example.id] = example.spoken, (own := self._plan(example))
            for view in own:
                filling = self._filling.setdefault(view.split, [])
                filling.append(view)
                if len(filling) == self._size:
                    self._put(view.split, self._filling.pop(view.split), example.id)

    def _put(self, split: str, views: list[View], last: str) -> None:
        """A full shard; the example `last` may go on in the next one."""
        number = self._shards.get(split, 0)
        self._shards[split] = number + 1
        here = {name: self._examples[name] for name in dict.fromkeys(view.example_id for view in views)}
        for name in here:
            if name != last:
                del self._examples[name]
        if borrows_talkers(views):
            return  # from shards that do not stand yet: this one is spoken later
        spoken = {name: text for name, (text, _) in here.items()}
        around = [view for _, own in here.values() for view in own]
        self._jobs.put(Speech([(split, number, views)], spoken, {split: ()}, around))

    def _run(self) -> None:
        with silent():
            while not self._enough.is_set() and (speech := self._jobs.get()) is not None:
                try:
                    self._speak(speech, self._stop)
                except StoppedError:
                    return
                except BaseException as failure:
                    self._failure = failure
                    return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._enough.set()
        if kind is not None:
            self._stop.set()
        self._jobs.put(None)
        if kind is None and self._thread.is_alive():
            note("speak: the shard that was begun while the teacher wrote is finished first")
        self._thread.join()
        if kind is None and self._failure is not None:
            raise self._failure
