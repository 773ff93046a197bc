"""Magpie in chunks: candidates by index, so that any worker, batch size or restart writes the same texts.

A draft is what the teacher wrote for one candidate index: {"id", "text", "stop"} and, where the text could become an
example, {"answer", "answer_stop"}; of a question also {"aliases", "aliases_stop"}. It is a pure function of (seed,
index, recipe, teacher).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import Any

import numpy as np

from rbalign.assets import home, model_folder
from rbalign.config.endpoints import TeacherEndpoint
from rbalign.config.sections import Sampling, TeacherConfig
from rbalign.config.synth import Domain, SynthConfig, Writing
from rbalign.keys import Key
from rbalign.rundir.files import stable_hash
from rbalign.rundir.workers import worker_pool
from rbalign.synth.filters import answered_cause, instruction_cause
from rbalign.synth.parts import Draft, draft_id
from rbalign.synth.qa import ALIAS_SYSTEM, ALIAS_TOKENS, QUESTION_SYSTEM, alias_request
from rbalign.types import Example, StopReason


def write_drafts(teacher: Any, config: SynthConfig, seed: int, indices: Sequence[int]) -> list[Draft]:
    """Sample instructions for these candidate indices, and answer those that could be accepted."""
    keys = [Key(seed, "instruction", example=draft_id(i)) for i in indices]
    domains = [domain_of(config, seed, key.example) for key in keys]
    default = QUESTION_SYSTEM if config.kind == "qa" else None
    systems = [(domain.system if domain else config.system) or default for domain in domains]
    written = teacher.write_instructions(keys, _params(teacher, config.instruction), systems)
    drafts: list[Draft] = [
        {"id": key.example, "text": w.text, "stop": str(w.stop)} | ({"domain": domain.name} if domain else {})
        for key, w, domain in zip(keys, written, domains, strict=True)
    ]
    wanted = [i for i, w in enumerate(written) if config.answers and _worth_an_answer(w, config)]
    answers = open_teacher(config.translator) if config.translator else teacher
    answer_texts(answers, config, seed, [drafts[i] for i in wanted])
    if config.kind == "qa" and config.qa.aliases:
        _write_aliases(teacher, config, seed, [drafts[i] for i in wanted])
    return drafts


def answer_texts(teacher: Any, config: SynthConfig, seed: int, drafts: Sequence[Draft]) -> None:
    """Put the answer of the teacher (or translator), under the recipe's system prompt, into each draft."""
    answers = teacher.answer(
        [draft["text"] for draft in drafts],
        [Key(seed, "answer", example=draft["id"]) for draft in drafts],
        _params(teacher, config.answer),
        config.answer_system,
    )
    for draft, answer in zip(drafts, answers, strict=True):
        draft |= {"answer": answer.text, "answer_stop": str(answer.stop)}


def _write_aliases(teacher: Any, config: SynthConfig, seed: int, answered: Sequence[Draft]) -> None:
    """Put other ways to say an answer into the drafts whose answers may stay."""
    kept = [draft for draft in answered if answered_cause(draft, config) is None]
    written = teacher.answer(
        [alias_request(draft["text"], draft["answer"]) for draft in kept],
        [Key(seed, "aliases", example=draft["id"]) for draft in kept],
        teacher.params(0.0, 1.0, ALIAS_TOKENS),
        ALIAS_SYSTEM,
    )
    for draft, aliases in zip(kept, written, strict=True):
        draft |= {"aliases": aliases.text, "aliases_stop": str(aliases.stop)}


def domain_of(config: SynthConfig, seed: int, candidate: str) -> Domain | None:
    """The part of the mixture that a candidate comes from, by its key; None without a mixture."""
    if not config.domains:
        return None
    weights = np.array([domain.weight for domain in config.domains])
    place = Key(seed, "domain", example=candidate).generator().choice(len(weights), p=weights / weights.sum())
    return config.domains[int(place)]


def write_references(
    teacher: Any, config: SynthConfig, seed: int, examples: Sequence[Example]
) -> Iterator[tuple[str, str | None]]:
    """(id, text): an independent teacher sample for each example, with another key than its answer's.

    None where a server failed: such an example has no reference, and metrics against one leave it unscored.
    """
    for start in range(0, len(examples), config.batch_size):
        batch = examples[start : start + config.batch_size]
        keys = [Key(seed, "reference", example=example.id) for example in batch]
        texts = [example.instruction for example in batch]
        written = teacher.answer(texts, keys, _params(teacher, config.answer), config.answer_system)
        texts_or_none = (None if w.stop is StopReason.FAILED else w.text for w in written)
        yield from zip((example.id for example in batch), texts_or_none, strict=True)


def write_many(
    teacher: TeacherConfig, config: SynthConfig, seed: int, chunks: Iterator[Sequence[int]], workers: int
) -> Generator[list[Draft], None, None]:
    """Chunks of drafts as they are finished, in any order; close the iterator to stop.

    A local teacher writes in worker processes, one thread each: decode steps are many small products, and two threads
    that meet at a barrier after each lose more than they gain (measured: 2 x 140 tokens a second against 120 to 230,
    the latter when another process ran). A server is asked by threads of this process.
    """
    if teacher.endpoint is not None:
        yield from _ask_many(open_teacher(teacher), teacher.endpoint, config, seed, chunks)
        return
    with worker_pool(workers) as pool:
        yield from _finished(lambda chunk: pool.submit(_write_chunk, teacher, config, seed, chunk), workers + 1, chunks)


def _ask_many(
    teacher: Any, endpoint: TeacherEndpoint, config: SynthConfig, seed: int, chunks: Iterator[Sequence[int]]
) -> Generator[list[Draft], None, None]:
    """Chunks from a server: as many at once as keep its requests busy, and one more for the ends of the others."""
    most = -(-endpoint.concurrency // config.batch_size) + 1
    pool = ThreadPoolExecutor(most, "chunk")
    try:
        yield from _finished(lambda chunk: pool.submit(write_drafts, teacher, config, seed, chunk), most, chunks)
    finally:
        with teacher.stopping():
            pool.shutdown(wait=True, cancel_futures=True)


def _finished(
    submit: Callable[[list[int]], Future[list[Draft]]], most: int, chunks: Iterator[Sequence[int]]
) -> Generator[list[Draft], None, None]:
    """Results of chunks, `most` of them under way."""
    flying: set[Future[list[Draft]]] = set()
    while True:
        while len(flying) < most and (chunk := next(chunks, None)) is not None:
            flying.add(submit(list(chunk)))
        if not flying:
            return
        done, flying = wait(flying, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


_TEACHERS: dict[str, Any] = {}
"""The teachers of this process, by their model's name or their endpoint's hash."""
_OPENING = Lock()
"""Threads that ask a server may want a translator of this machine at once: it is loaded once."""


def open_teacher(config: TeacherConfig) -> Any:
    """The recipe's teacher, opened once in a process."""
    if config.endpoint is not None:
        name = _endpoint_name(config.endpoint)
        if name not in _TEACHERS:
            _TEACHERS[name] = _remote_teacher(config.endpoint)
        return _TEACHERS[name]
    with _OPENING:
        if config.model not in _TEACHERS:
            from rbalign.lm.load import load_lm
            from rbalign.teacher.local import LocalTeacher

            _TEACHERS[config.model] = LocalTeacher(load_lm(model_folder(config.model), name=config.model))
        return _TEACHERS[config.model]


def close_teacher(config: TeacherConfig) -> None:
    """Let go of the connections of a teacher behind a server, if it is open; local ones stay, for they cost seconds."""
    if config.endpoint is not None:
        teacher = _TEACHERS.pop(_endpoint_name(config.endpoint), None)
        if teacher is not None:
            teacher.close()


def _endpoint_name(config: TeacherEndpoint) -> str:
    return stable_hash(config.model_dump(mode="json"))


def _remote_teacher(config: TeacherEndpoint) -> Any:
    from rbalign.lm.load import load_tokenizer
    from rbalign.remote.client import Client
    from rbalign.teacher.remote import RemoteTeacher

    tokenizer = load_tokenizer(model_folder(config.template)) if config.template else None
    return RemoteTeacher(config, Client(config, home()), tokenizer)


def _write_chunk(teacher: TeacherConfig, config: SynthConfig, seed: int, indices: list[int]) -> list[Draft]:
    import torch

    torch.set_num_threads(1)
    return write_drafts(open_teacher(teacher), config, seed, indices)


def _worth_an_answer(written: Any, config: SynthConfig) -> bool:
    if config.sentences:
        return bool(written.text and written.stop is StopReason.END)
    return instruction_cause(written.text, written.stop, config) is None


def _params(teacher: Any, sampling: Sampling | Writing) -> Any:
    return teacher.params(sampling.temperature, sampling.top_p, sampling.max_new_tokens)
