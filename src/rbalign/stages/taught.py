"""The reference `teacher` of `rba eval --model`: who wrote the training data, reading the same requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rbalign.assets import model_folder
from rbalign.config.endpoints import FREE
from rbalign.config.load import load_teacher_endpoint
from rbalign.config.sections import Sampling, TeacherConfig
from rbalign.errors import UsageError
from rbalign.eval.collect import Answered
from rbalign.eval.items import Item
from rbalign.rundir.files import stable_hash
from rbalign.types import StopReason

if TYPE_CHECKING:
    from rbalign.teacher.base import Teacher

CALLS_IN_FLIGHT = 4
"""Requests of a batch for each slot of a teacher's server: slots wait for the batch's last one."""


def teacher_named(given: str | None, own: TeacherConfig | None) -> TeacherConfig:
    """The teacher behind `--teacher` (an asset, a folder, or a server's FILE.toml), or a run's own.

    UsageError where there is none.
    """
    if given is not None:
        path = Path(given).expanduser()
        if path.suffix == ".toml":
            return TeacherConfig(endpoint=load_teacher_endpoint(path))
        return TeacherConfig(model=given)
    if own is None:
        raise UsageError(
            "--references teacher: this model does not say who taught it",
            "give --teacher with an asset's name, a model folder, or a server's FILE.toml",
        )
    return own


def teacher_digest(config: TeacherConfig) -> str:
    """Names the teacher: a server by what it is asked, a local one by its weights."""
    from rbalign.lm.load import folder_digest

    if config.endpoint is not None:
        return stable_hash({key: value for key, value in config.endpoint.model_dump().items() if key not in FREE})[:16]
    return folder_digest(model_folder(config.model))[:16]


@dataclass(frozen=True)
class TeacherAnswerer:
    """Answers written requests under the system prompt of the model that it is held beside."""

    teacher: Teacher
    sampling: Sampling
    seed: int
    system: str | None

    def answer(self, items: Sequence[Item]) -> list[Answered]:
        """See `Answerer`."""
        asked = self.sampling
        params = self.teacher.params(asked.temperature, asked.top_p, asked.max_new_tokens)
        words, keys = [item.written() for item in items], [item.key(self.seed) for item in items]
        return [
            Answered("", "error", text, error="the teacher's server gave no answer")
            if one.stop == StopReason.FAILED
            else Answered(one.text, str(one.stop), text)
            for one, text in zip(self.teacher.answer(words, keys, params, self.system), words, strict=True)
        ]


@contextmanager
def open_for_answers(config: TeacherConfig) -> Iterator[tuple[Teacher, int]]:
    """The teacher, and how many requests are best given it at once; 0: as many as any other model here."""
    from rbalign.synth.write import close_teacher, open_teacher
    from rbalign.teacher.base import require

    teacher: Teacher = open_teacher(config)
    try:
        require(teacher, frozenset({"chat"}), "--references teacher")
        yield teacher, CALLS_IN_FLIGHT * config.endpoint.concurrency if config.endpoint else 0
    finally:
        close_teacher(config)
