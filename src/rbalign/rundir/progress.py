"""Progress on stderr: a bar with the time left on a terminal, one plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol, TextIO

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_COUNTS = 2.0


class Advance(Protocol):
    """Says that n more are done."""

    def __call__(self, n: int = 1) -> None:
        """Count n more."""


Show = Callable[[int, str, int, str], AbstractContextManager[Advance]]
"""(total, label, done, unit) -> how far a loop is, for as long as it runs."""
_instead: ContextVar[Show | None] = ContextVar("instead", default=None)
"""Who is told instead of whoever sits at this process' stderr; of each thread its own."""


@contextmanager
def progress(total: int, label: str, done: int = 0, unit: str = "") -> Iterator[Advance]:
    """Show how far a loop is. `done` were there before (a resume) and do not count for the speed."""
    shown = _instead.get() or (_bar if sys.stderr.isatty() else _lines)
    with shown(total, label, done, unit) as advance:
        yield advance


@contextmanager
def silent() -> Iterator[None]:
    """Show and note nothing in the block: of several processes that do the same, one tells."""
    with _shown_by(_none):
        yield


@contextmanager
def counted(tell: Callable[[str, int, int], None], clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """In the block `tell(unit, done, total)` hears how far each loop is, every few seconds and at its end; nothing is
    shown or noted: who reads what several processes tell shows it as one."""

    @contextmanager
    def show(total: int, label: str, done: int, unit: str) -> Iterator[Advance]:
        last = clock()

        def advance(n: int = 1) -> None:
            nonlocal done, last
            done += n
            if clock() - last >= SECONDS_BETWEEN_COUNTS:
                last = clock()
                tell(unit, done, total)

        tell(unit, done, total)
        yield advance
        tell(unit, done, total)

    with _shown_by(show):
        yield


@contextmanager
def _shown_by(show: Show) -> Iterator[None]:
    before = _instead.set(show)
    try:
        yield
    finally:
        _instead.reset(before)


def note(line: str) -> None:
    """One line beside the progress, on stderr."""
    if _instead.get() is not None:
        return
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Seconds for people: 8 s, 4 min, 1 h 05 min."""
    if seconds < 90:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def _none(total: int, label: str, done: int, unit: str) -> Iterator[Advance]:
    yield lambda n=1: None


@contextmanager
def _bar(total: int, label: str, done: int, unit: str) -> Iterator[Advance]:
    from rich import progress as rich
    from rich.console import Console

    text, left = rich.TextColumn("{task.description}"), rich.TextColumn("left")
    counts = (rich.BarColumn(), rich.MofNCompleteColumn(), rich.TextColumn(unit))
    columns = (text, *counts, rich.TimeElapsedColumn(), left, rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, completed=done)
        yield lambda n=1: bar.advance(task, n)


@contextmanager
def _lines(
    total: int,
    label: str,
    done: int,
    unit: str,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    stream = stream or sys.stderr
    start = last = clock()
    count = done

    def say(tail: str) -> None:
        stream.write(f"{label}: {count}/{total}{' ' + unit if unit else ''}{tail}\n")
        stream.flush()

    def advance(n: int = 1) -> None:
        nonlocal count, last
        count += n
        now = clock()
        if now - last >= SECONDS_BETWEEN_LINES and count < total:
            last = now
            say(f", {duration((now - start) / max(count - done, 1) * (total - count))} left")

    yield advance
    say(f" in {duration(clock() - start)}")
