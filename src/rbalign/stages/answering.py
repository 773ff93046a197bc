"""Who answers in `rba eval`: one speech policy in this process, or one in each of several worker processes.

Decoding is some 400 small products a token. Two threads that meet after each of them are hardly faster than one, and
far slower as soon as anything else runs; two processes of one thread each give twice as much (dev/LOG.md).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice, product
from typing import TYPE_CHECKING, Any, Protocol

from loky.process_executor import BrokenProcessPool

from rbalign.config.recipe import Recipe
from rbalign.config.sections import EvalConfig
from rbalign.errors import RunError
from rbalign.eval.collect import AnswerBatches, Answered, Answerer, Batch, answer_batch, in_turn
from rbalign.eval.items import Item, wrong_audio
from rbalign.eval.schedule import Spoken, Work
from rbalign.rundir.run import RunDir
from rbalign.rundir.workers import threads_each, worker_pool
from rbalign.stages.arms import arm_name, final_folder

if TYPE_CHECKING:
    from rbalign.speechlm.base import Policy

IN_FLIGHT = 2
"""Batches for each worker: one to answer, one that waits."""
WORKER_BYTES = 3 << 30
"""A worker's memory with the embedded models and batches of 64; all workers together may take half of the machine's."""


class Answers(Protocol):
    """Whoever answers several kinds of work with one model in memory."""

    def answerer(self, work: Work) -> Answerer:
        """Who does this work."""
        ...


Reopen = Callable[[], tuple[Answers, Sequence[Work]]]
"""Called in a worker: what it answers with, and every piece of work there is. Must be picklable."""


class Answering:
    """One policy and everyone who answers with it; the arms' weights are put on it one after the other."""

    def __init__(self, recipe: Recipe, run: RunDir, config: EvalConfig, spoken: tuple[Spoken, Spoken]) -> None:
        """`spoken`: instructions and questions."""
        self.recipe, self.run, self.config, self.spoken = recipe, run, config, spoken
        self._policy: Policy | None = None
        self._weights = ""
        self._last: tuple[Work, Answerer] | None = None

    @property
    def policy(self) -> Policy:
        """The speech LLM, loaded once."""
        if self._policy is None:
            from rbalign.stages.policy import open_policy

            self._policy = open_policy(self.recipe, self.run, share=True)
        return self._policy

    def answerer(self, work: Work) -> Answerer:
        """Whoever does this work; the one before is forgotten."""
        if self._last is None or self._last[0] is not work:
            arm, seed = subject_and_seed(work.folder, self.recipe)
            if seed is not None and self._weights != work.folder:
                self.policy.load(final_folder(self.run, arm, seed))
                self._weights = work.folder
            self._last = work, self._new(work, base=seed is None)
        return self._last[1]

    def _new(self, work: Work, base: bool) -> Answerer:
        from rbalign.eval import answerers

        settings = decoding(self.config, work)
        params = self.policy.params(settings["temperature"], settings["top_p"], settings["max_new_tokens"])
        common: dict[str, Any] = {"policy": self.policy, "params": params, "seed": self.recipe.seed, "base": base}
        match work.source:
            case "loss" | "text-loss":
                return answerers.ReferenceLoss(self.policy, base, text=work.source == "text-loss")
            case "text":
                return answerers.TextAnswerer(**common)
            case "self-cascade":
                return answerers.TextAnswerer(**common, transcribe=self.policy.heard)
            case "cascade":
                return answerers.TextAnswerer(**common, transcribe=whisper())
            case "wrong-audio":
                return answerers.SpeechAnswerer(**common, clip_of=self._wrong_clip(work))
        return answerers.SpeechAnswerer(**common, hear=self._hears(base))

    def _hears(self, base: bool) -> bool:
        """Whether the transcript is worth keeping: arms with a frozen adapter hear what base hears."""
        trained = self.recipe.align is not None and self.recipe.align.train_adapter
        return (base or trained) and self.policy.has_transcript

    def _wrong_clip(self, work: Work) -> Any:
        clips = wrong_audio(work.items, self.spoken[work.kind == "qa"].clips())
        return lambda item: clips[item.id]


def arm_folders(recipe: Recipe) -> dict[str, tuple[str, int]]:
    """Folder names of the trained arms -> the arm and its seed."""
    align = recipe.align
    return {arm_name(*one): one for one in product(align.arms, align.seeds)} if align else {}


def subject_and_seed(folder: str, recipe: Recipe) -> tuple[str, int | None]:
    """The arm and its seed; base and the references have none."""
    return arm_folders(recipe).get(folder, (folder, None))


def decoding(config: EvalConfig, work: Work) -> dict[str, Any]:
    """How an answer is decoded: it stands in every row."""
    chosen = config.sampling.model_dump()
    if work.source in ("loss", "text-loss"):
        return {**chosen, "task": "y_ref"}
    return {**chosen, "temperature": 0.0, "top_p": 1.0} if work.greedy else chosen


def whisper() -> Any:
    """The independent ASR as a function of views."""
    from rbalign.asr.whisper import Transcriber
    from rbalign.audio.io import read_audio

    # In a worker the variable says how much of the machine is its own; a user's may be a list ("4,2").
    threads = os.environ.get("OMP_NUM_THREADS", "")
    listener = Transcriber(workers=int(threads) if threads.isdecimal() else os.cpu_count() or 1)
    return lambda views: list(listener.transcribe_many(read_audio(view.flac) for view in views))


@contextmanager
def answering(
    here: Callable[[], Answers], reopen: Reopen, workers: int, option: str = "--eval.workers"
) -> Iterator[Callable[[int, Work], AnswerBatches]]:
    """A function (number, work) -> who answers its batches: this process for one worker, else a pool of them.

    `option` is what the command line calls `workers`.
    """
    if workers == 1:
        yield lambda _, work: in_turn(here().answerer(work))
        return
    with worker_pool(workers, threads_each(workers)) as pool:
        yield lambda number, _: _in_pool(pool, reopen, number, IN_FLIGHT * workers, option)


def _in_pool(pool: Any, reopen: Reopen, number: int, window: int, option: str) -> AnswerBatches:
    def answered(batches: Sequence[Sequence[Item]]) -> Iterator[Batch]:
        waiting = iter(batches)
        flying: deque[tuple[Sequence[Item], Future[tuple[list[Answered], float]]]] = deque()
        try:
            while True:
                for batch in islice(waiting, window - len(flying)):
                    ids = [item.id for item in batch]
                    flying.append((batch, pool.submit(_answer_in_worker, reopen, number, ids)))
                if not flying:
                    return
                items, future = flying.popleft()
                yield items, *future.result()
        except BrokenProcessPool as error:
            raise RunError(
                "an answering process died, which mostly means that memory ran out",
                f"start again with {option} 1: what is answered is kept",
            ) from error

    return answered


_opened: list[tuple[Answers, Sequence[Work]]] = []
"""In a worker: what it answers with, for as long as it lives."""


def _answer_in_worker(reopen: Reopen, number: int, ids: Sequence[str]) -> tuple[list[Answered], float]:
    if not _opened:
        _opened.append(reopen())
    mine, everything = _opened[0]
    items = {item.id: item for item in everything[number].items}
    _, answers, seconds = answer_batch(mine.answerer(everything[number]), [items[one] for one in ids])
    return answers, seconds
