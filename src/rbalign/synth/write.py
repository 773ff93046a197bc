"""Magpie in chunks: candidates by index, so that any worker, batch size or restart writes the same texts.

A draft is what the teacher wrote for one candidate index: {"id", "text", "stop"} and, where the text could become an
example, {"answer", "answer_stop"}. It is a pure function of (seed, index, recipe, teacher).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from rbalign.assets import model_folder
from rbalign.config.sections import Sampling, SynthConfig, TeacherConfig
from rbalign.keys import Key
from rbalign.rundir.workers import worker_pool
from rbalign.synth.filters import drop_cause
from rbalign.types import Example, StopReason

Draft = dict[str, Any]


def draft_id(index: int) -> str:
    """Candidate 123 -> "000123"."""
    return f"{index:06d}"


def write_drafts(teacher: Any, config: SynthConfig, seed: int, indices: Sequence[int]) -> list[Draft]:
    """Sample instructions for these candidate indices, and answer those that could be accepted."""
    keys = [Key(seed, "instruction", example=draft_id(i)) for i in indices]
    written = teacher.write_instructions(keys, _params(teacher, config.instruction), config.system)
    drafts: list[Draft] = [
        {"id": key.example, "text": w.text, "stop": str(w.stop)} for key, w in zip(keys, written, strict=True)
    ]
    wanted = [i for i, w in enumerate(written) if config.answers and _worth_an_answer(w, config)]
    answers = teacher.answer(
        [written[i].text for i in wanted],
        [keys[i].at(stage="answer") for i in wanted],
        _params(teacher, config.answer),
        config.answer_system,
    )
    for i, answer in zip(wanted, answers, strict=True):
        drafts[i] |= {"answer": answer.text, "answer_stop": str(answer.stop)}
    return drafts


def write_references(
    teacher: Any, config: SynthConfig, seed: int, examples: Sequence[Example]
) -> Iterator[tuple[str, str]]:
    """(id, text): an independent teacher sample for each example, with another key than its answer's."""
    for start in range(0, len(examples), config.batch_size):
        batch = examples[start : start + config.batch_size]
        keys = [Key(seed, "reference", example=example.id) for example in batch]
        texts = [example.instruction for example in batch]
        written = teacher.answer(texts, keys, _params(teacher, config.answer), config.answer_system)
        yield from ((example.id, w.text) for example, w in zip(batch, written, strict=True))


def write_many(
    teacher: TeacherConfig, config: SynthConfig, seed: int, chunks: Iterator[Sequence[int]], workers: int
) -> Generator[list[Draft], None, None]:
    """Chunks of drafts as worker processes finish them, in any order; close the iterator to stop.

    One thread a worker: decode steps are many small products, and two threads that meet at a barrier after each lose
    more than they gain (measured: 2 x 140 tokens a second against 120 to 230, the latter when another process ran).
    """
    pool = worker_pool(workers)
    flying: set[Future[list[Draft]]] = set()
    try:
        while True:
            while len(flying) < workers + 1 and (chunk := next(chunks, None)) is not None:
                flying.add(pool.submit(_write_chunk, teacher, config, seed, list(chunk)))
            if not flying:
                return
            done, flying = wait(flying, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(wait=True, kill_workers=True)


_TEACHERS: dict[str, Any] = {}
"""The one teacher of this process, by its model's name."""


def open_teacher(config: TeacherConfig) -> Any:
    """The recipe's teacher, loaded once in a process."""
    if config.model not in _TEACHERS:
        from rbalign.lm.load import load_lm
        from rbalign.teacher.local import LocalTeacher

        _TEACHERS[config.model] = LocalTeacher(load_lm(model_folder(config.model), name=config.model))
    return _TEACHERS[config.model]


def _write_chunk(teacher: TeacherConfig, config: SynthConfig, seed: int, indices: list[int]) -> list[Draft]:
    import torch

    torch.set_num_threads(1)
    return write_drafts(open_teacher(teacher), config, seed, indices)


def _worth_an_answer(written: Any, config: SynthConfig) -> bool:
    if config.sentences:
        return bool(written.text and written.stop is StopReason.END)
    return drop_cause(written.text, written.stop, config.filters) is None


def _params(teacher: Any, sampling: Sampling) -> Any:
    return teacher.params(sampling.temperature, sampling.top_p, sampling.max_new_tokens)
