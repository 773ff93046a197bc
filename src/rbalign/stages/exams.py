"""What a model is asked and how: one task with its data and clips, and the settings that all tasks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from rbalign.config.sections import ReportConfig, Sampling
from rbalign.errors import UsageError
from rbalign.eval.tasks.clips import Clips, clips, of_dataset, planned
from rbalign.eval.tasks.files import local_copy
from rbalign.eval.tasks.items import TaskData, load
from rbalign.eval.tasks.prompts import Prompts, asked_with, played_with, read_prompts
from rbalign.eval.tasks.registry import DOWIS, Task, tasks
from rbalign.eval.tasks.smoke import smoke_set
from rbalign.rundir.files import stable_hash
from rbalign.stages import smoke
from rbalign.types import Split

Reference = Literal["text", "own-reading", "teacher", "cascade", "self-cascade"]
REFERENCES: tuple[Reference, ...] = get_args(Reference)
SPOKEN = "-spoken"
"""After the name of whoever's answers were said by a voice."""
GREEDY = Sampling(temperature=0.0, max_new_tokens=128)


def folder_of(task: str) -> str:
    """Of a task's results, in the folder of an evaluation."""
    return task.replace(":", "-")


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
class SpokenPrompts:
    """Which prompts of DOWIS all tasks are asked with."""

    place: str
    """A local copy, or `hf:`."""
    task: str
    language: str = "en"

    def read(self) -> Prompts:
        """See `eval.tasks.prompts`."""
        return read_prompts(local_copy(self.place, tasks()[DOWIS]), self.task, self.language)


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
    prompts: SpokenPrompts | None = None
    baselines: tuple[Path, ...] = ()
    """Folders of other models' evaluations, which this one is compared with."""
    page: ReportConfig = field(default_factory=ReportConfig)
    """How many instructions of each task the page shows."""
    answers_only: bool = False
    """Predictions are written, no scores."""


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
    prompts: Prompts | None = None
    plain: Exam | None = None
    """With `prompts`: the task as it is without them."""

    @property
    def units(self) -> int:
        """Instructions."""
        return len({item.unit for item in self.data.items})

    @property
    def folder_name(self) -> str:
        """Of the task's results."""
        return folder_of(self.task.name)

    def responses(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Predictions in the order of the data: null for a failed item and for one whose clip cannot be had."""
        answers = {row["id"]: row for row in rows}
        for item in self.data.asked:
            if item.id in self.clips.silent:
                yield {"id": item.id, "response": None, "error": self.clips.silent[item.id]}
            elif (row := answers.get(self.clips.played[item.id].id)) is not None:
                failure = {"error": row["error"]} if row["error"] else {}
                yield {"id": item.id, "response": None if row["error"] else row["answer"], **failure}


def exam_of(task: Task, place: str | None, settings: Settings, prompts: Prompts | None = None) -> Exam:
    """A task with its data, checked; clips of a set that ships are planned and not spoken. UsageError without data.

    With `prompts` every item is asked in each of their styles, in writing and spoken.
    """
    place = task.ships if place is None else place
    if place is None:
        raise UsageError(f"{task.name} needs its data, with the clips", f"--data {task.name}=FOLDER: {task.place}")
    if task.kind == "translation" and not (settings.beside or task.smoke or prompts):
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
    plain = Exam(task, place, whole.content, asked, played)
    return plain if prompts is None else _prompted(plain, prompts)


def spoken(exam: Exam, settings: Settings) -> Exam:
    """The exam with the clips of a set that ships; what this machine has not spoken yet is spoken now."""
    data = smoke.speak(exam.task.smoke, exam.units)
    plain = exam.plain or exam
    made = replace(plain, clips=of_dataset(data, plain.data.asked, Split.TEST, settings.beside))
    return made if exam.prompts is None else _prompted(made, exam.prompts)


def _prompted(plain: Exam, prompts: Prompts) -> Exam:
    content = stable_hash([plain.content, prompts.content, prompts.language, prompts.task])[:16]
    data = asked_with(plain.task, plain.data, prompts)
    clips = played_with(plain.data, plain.clips, prompts)
    return Exam(plain.task, plain.place, content, data, clips, prompts, plain)
