"""Many clips by worker processes. One thread each: two workers speak twice as much as one worker with two threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from itertools import islice

import numpy as np
from loky.process_executor import BrokenProcessPool

from rbalign.errors import UsageError
from rbalign.rundir.workers import worker_pool
from rbalign.types import View
from rbalign.voices import engine

WINDOW = 4
"""Jobs in flight for each worker: enough that none waits for the next, few enough to keep clips out of memory."""


@dataclass(frozen=True, slots=True)
class SpeakJob:
    """One clip to make. `id` is the caller's; it comes back with the clip."""

    id: str
    text: str
    voice: str
    speed: float = 1.0

    @classmethod
    def of(cls, view: View, spoken: Mapping[str, str]) -> SpeakJob:
        """What says a view; `spoken`: each example's fluent text."""
        text = spoken[view.example_id] if view.said is None else view.said
        return cls(view.id, text, view.spec.voice, view.spec.speed)


@dataclass(frozen=True, slots=True)
class SpeakFailure:
    """A clip that could not be made, and why. It stands where the samples would: no job is ever lost."""

    job: SpeakJob
    reason: str


Clip = np.ndarray | SpeakFailure
_Result = tuple[str, Clip]


def speak_many(
    jobs: Iterable[SpeakJob], workers: int, open_speaker: Callable[[str], engine.Speaker] = engine.speaker
) -> Iterator[_Result]:
    """Speak jobs in worker processes; yields (id, samples) as they are ready, in any order.

    jobs: read as they are needed, so a generator may be endless.
    samples: (n,) float32 at 16 kHz, or a SpeakFailure for a job that raised or killed its worker.
    Closing the iterator early ends the workers.
    """
    if workers < 1:
        raise UsageError(f"{workers} voice workers cannot speak", "use 1 or more")
    source = iter(jobs)
    suspects: deque[SpeakJob] = deque()
    while True:
        # After a crash nobody knows which of the jobs in flight did it: each is tried alone, in a fresh process.
        if suspects:
            yield from _speak_alone(suspects.popleft(), open_speaker)
        else:
            lost = yield from _speak_until_crash(source, workers, open_speaker)
            if not lost:
                return
            suspects.extend(lost)


def _speak_until_crash(
    source: Iterator[SpeakJob], workers: int, open_speaker: Callable[[str], engine.Speaker]
) -> Generator[_Result, None, list[SpeakJob]]:
    """Stream jobs through one pool. Returns the jobs that were in flight when a worker died: none at a clean end."""
    flying: dict[Future[Clip], SpeakJob] = {}
    lost: list[SpeakJob] = []
    with worker_pool(workers) as pool:
        while not lost:
            for job in islice(source, WINDOW * workers - len(flying)):
                try:
                    flying[pool.submit(_speak, job, open_speaker)] = job
                except BrokenProcessPool:
                    lost.append(job)
            if not flying:
                return lost
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                job = flying.pop(future)
                try:
                    yield job.id, future.result()
                except BrokenProcessPool:
                    lost.append(job)
        lost.extend(flying.values())
        return lost


def _speak_alone(job: SpeakJob, open_speaker: Callable[[str], engine.Speaker]) -> Iterator[_Result]:
    with worker_pool(1) as pool:
        try:
            clip: Clip = pool.submit(_speak, job, open_speaker).result()
        except BrokenProcessPool as error:
            clip = SpeakFailure(job, f"the worker process died: {' '.join(str(error).split())[:200]}")
    yield job.id, clip


def _speak(job: SpeakJob, open_speaker: Callable[[str], engine.Speaker]) -> Clip:
    """In the worker: any exception becomes a failure with its name."""
    try:
        return open_speaker(job.voice).speak(job.text, job.voice, job.speed)
    except Exception as error:
        return SpeakFailure(job, f"{type(error).__name__}: {error}")
