"""What a model is asked and how: one task with its data and clips, and the settings that all tasks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from rbalign.config.sections import Sampling
from rbalign.errors import UsageError
from rbalign.eval.tasks.clips import Clips, clips, of_dataset, planned
from rbalign.eval.tasks.files import local_copy
from rbalign.eval.tasks.items import TaskData, load
from rbalign.eval.tasks.registry import Task
from rbalign.eval.tasks.smoke import smoke_set
from rbalign.stages import smoke
from rbalign.types import Split

Reference = Literal["text", "own-reading", "teacher", "cascade", "self-cascade"]
REFERENCES: tuple[Reference, ...] = get_args(Reference)
GREEDY = Sampling(temperature=0.0, max_new_tokens=128)


@dataclass(frozen=True)
class Settings:
    """How a model is asked and scored."""

    sampling: Sampling = GREEDY
    seed: int = 0
    limit: int | None = None
    """Instructions of each task; None asks all."""
    split: str = "test"
    """Of dataset folders."""
    beside: str = ""
    """An instruction written beside every clip that has none of its own."""
    references: tuple[Reference, ...] = ()
    judge: str | None = None
    voice: str | None = None
    """Speech to speech: says the answers, for the independent ASR to hear."""
    workers: int = 0
    batch_size: int = 8
    """Clips that a process answers at once: what a crash can lose. Any value gives the same answers."""


@dataclass(frozen=True)
class Wanted:
    """What the command line says. Small: it goes to worker processes, which read the clips themselves."""

    model: str
    tasks: tuple[str, ...]
    data: Mapping[str, str]
    """Task -> place."""
    output: Path
    settings: Settings = Settings()
    system: str | None = None
    teacher: str | None = None
    """Who answers as the reference `teacher`; None: whoever taught the run."""


@dataclass(frozen=True)
class Exam:
    """One task with its data."""

    task: Task
    place: str
    """What `--data` said."""
    content: str
    """Hash of all of its data, whatever the limit."""
    data: TaskData
    """The items that are asked."""
    clips: Clips

    @property
    def units(self) -> int:
        """Instructions."""
        return len({item.unit for item in self.data.items})

    @property
    def folder_name(self) -> str:
        """Of the task's results."""
        return self.task.name.replace(":", "-")

    def responses(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Predictions in the order of the data: null for a failed item and for one whose clip cannot be had."""
        answers = {row["id"]: row for row in rows}
        for item in self.data.asked:
            if item.id in self.clips.silent:
                yield {"id": item.id, "response": None, "error": self.clips.silent[item.id]}
            elif (row := answers.get(self.clips.played[item.id].id)) is not None:
                failure = {"error": row["error"]} if row["error"] else {}
                yield {"id": item.id, "response": None if row["error"] else row["answer"], **failure}


def exam_of(task: Task, place: str | None, settings: Settings) -> Exam:
    """A task with its data, checked; clips of a set that ships are planned and not spoken. UsageError without data."""
    place = task.ships if place is None else place
    if place is None:
        raise UsageError(f"{task.name} needs its data, with the clips", f"--data {task.name}=FOLDER: {task.place}")
    if task.kind == "translation" and not (settings.beside or task.smoke):
        raise UsageError(
            f"a clip of {task.name} does not say that it is to be translated",
            '--beside "Translate this into German."',
        )
    folder = local_copy(place, task)
    whole = load(task, folder, settings.split)
    asked = whole.first(settings.limit)
    if task.smoke:
        played = planned(smoke_set(task.smoke), asked.asked, settings.beside)
    else:
        played = clips(task, folder, asked.asked, settings.split, settings.beside)
    return Exam(task, place, whole.content, asked, played)


def spoken(exam: Exam, settings: Settings) -> Exam:
    """The exam with the clips of a set that ships; what this machine has not spoken yet is spoken now."""
    data = smoke.speak(exam.task.smoke, exam.units)
    return replace(exam, clips=of_dataset(data, exam.data.asked, Split.TEST, settings.beside))
