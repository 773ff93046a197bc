"""`rba eval --model M --tasks T1,T2`: a model's answers to benchmarks' clips, then their scores by `stages.tasks`.

OUTPUT/evaluation.json              the model, how it answered, every figure
OUTPUT/TASK/NAME.KEY.answers.jsonl  answers (append-only), a row each; KEY names task, data, model and settings
OUTPUT/TASK/NAME.jsonl              the same as predictions: `rba score --task` takes them
OUTPUT/TASK/NAME.json, NAME.md      scores
OUTPUT/report/index.html            the page: figures, differences, samples with their clips

NAME is the model's, or a reference's: text, own-reading, teacher, cascade, self-cascade; with a voice also NAME-spoken.
Starting again goes on: what a journal holds is not asked again, whatever the limit was. Changed settings or data have
another journal.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbalign import __version__
from rbalign.assets import home
from rbalign.errors import RunError, UsageError
from rbalign.eval.collect import Answerer, collect, in_turn
from rbalign.eval.endpoint import EndpointAnswerer
from rbalign.eval.schedule import Work
from rbalign.eval.score import load_rows
from rbalign.eval.tasks.recognition import Recognition
from rbalign.eval.tasks.registry import Task, tasks_named
from rbalign.remote.client import Client
from rbalign.report import benchmarks
from rbalign.rundir.files import atomic_write, stable_hash
from rbalign.rundir.run import lock_folder
from rbalign.rundir.workers import workers_that_fit
from rbalign.stages import smoke
from rbalign.stages import tasks as scoring
from rbalign.stages.answering import WORKER_BYTES, answering, whisper
from rbalign.stages.evaluation_page import (
    SUMMARY,
    Evaluation,
    compared,
    figures_of,
    page_of,
    read_evaluation,
    read_summary,
    side_by_side,
)
from rbalign.stages.exams import SPOKEN, Exam, Settings, Wanted, exam_of, spoken
from rbalign.stages.spoken_answers import ASR, check_voice, say_and_hear
from rbalign.stages.subjects import Subject, subject_named
from rbalign.stages.taught import TeacherAnswerer, open_for_answers, teacher_digest, teacher_named

if TYPE_CHECKING:
    from rbalign.config.sections import TeacherConfig
    from rbalign.speechlm.base import Policy


@dataclass
class LocalAnswering:
    """A model in this process, and everyone who answers with it."""

    subject: Subject
    settings: Settings
    _last: tuple[Work, Answerer] | None = None

    @cached_property
    def policy(self) -> Policy:
        """Loaded at its first use."""
        assert self.subject.open is not None
        return self.subject.open()

    def answerer(self, work: Work) -> Answerer:
        """See `stages.answering.Answers`."""
        if self._last is None or self._last[0] is not work:
            self._last = work, self._new(work)
        return self._last[1]

    def _new(self, work: Work) -> Answerer:
        from rbalign.eval import answerers

        asked = self.settings.sampling
        params = self.policy.params(asked.temperature, asked.top_p, asked.max_new_tokens)
        common: dict[str, Any] = {"policy": self.policy, "params": params, "seed": self.settings.seed}
        match work.source:
            case "text":
                return answerers.TextAnswerer(**common, base=True)
            case "own-reading":
                return answerers.TextAnswerer(**common, base=self.subject.base)
            case "cascade":
                return answerers.TextAnswerer(**common, base=True, transcribe=whisper())
            case "self-cascade":
                return answerers.TextAnswerer(**common, base=True, transcribe=self.policy.heard)
        return answerers.SpeechAnswerer(**common, base=self.subject.base)


@dataclass
class ModelEvaluation:
    """One call of `rba eval --model`: who answers what, and where it is kept."""

    wanted: Wanted
    subject: Subject
    exams: Sequence[Exam]
    baselines: Sequence[Evaluation] = ()
    """Other models', read; workers, which only answer, have none."""
    names: Mapping[str, str] = field(init=False)
    """Who answers -> what of it is played or read."""

    def __post_init__(self) -> None:
        self.settings, self.output = self.wanted.settings, self.wanted.output
        self.names = {self.subject.name: "speech", **{name: name for name in self.settings.references}}
        if self.subject.endpoint is not None and "self-cascade" in self.settings.references:
            raise UsageError("a server does not say what it heard", "leave self-cascade out of --references")
        if self.subject.endpoint is not None and "own-reading" in self.settings.references:
            raise UsageError("a server is one model, heard or read", "give --references text for its own reading")
        self.teacher = self._taught_by()
        if self.settings.voice is not None:
            check_voice(self.settings.voice)
        self._refuse_another_model()

    def _taught_by(self) -> TeacherConfig | None:
        if "teacher" in self.settings.references:
            return teacher_named(self.wanted.teacher, self.subject.teacher)
        if self.wanted.teacher is not None:
            raise UsageError("--teacher without its reference", "give --references teacher")
        return None

    # Before any work

    def counted(self) -> list[list[str]]:
        """For each task and whoever answers it: instructions, items, how many are answered, without a clip, to do; for
        a set that ships first the clips that are still to be spoken."""
        rows = []
        for exam in self.exams:
            units = exam.units
            if exam.task.smoke and (clips := smoke.unspoken(exam.task.smoke, units)):
                rows.append([exam.task.name, "voices", f"{units:,}", f"{clips:,}", "", "", f"{clips:,}"])
            for name in self.names:
                done = len(self._rows(exam, name))
                counts = (units, len(exam.data.asked), done, len(exam.clips.silent), len(exam.clips.played) - done)
                rows.append([exam.task.name, name, *(f"{count:,}" for count in counts)])
        return rows

    def _refuse_another_model(self) -> None:
        if not (self.output / SUMMARY).exists():
            return
        known = read_summary(self.output, "choose another --output")["model"]
        if known["digest"] != self.subject.digest:
            raise RunError(
                f"{self.output} holds answers of {known['name']} ({known['digest']}), not of {self.subject.name} "
                f"({self.subject.digest})",
                "choose another --output; `rba compare` sets two of them side by side",
            )

    # Answers

    def run(self) -> dict[str, Any]:
        """Answer what has no answer yet, score (or leave predictions to `rba score`), and write the summary; it as a
        value."""
        lock = lock_folder(self.output, "choose another --output")
        try:
            self._write(self._summary([]))
            self.speak()
            self._answer()
            if self.settings.voice is not None:
                self._say(self.settings.voice)
            if self.wanted.answers_only:
                for exam, name in ((exam, name) for exam in self.exams for name in self.names):
                    self._predictions(exam, name, heard=False)
                return self._conclude([])
            return self._conclude([one for exam in self.exams for one in self._score(exam)])
        finally:
            lock.release()

    def speak(self) -> None:
        """Give the sets that ship their clips; what this machine has not spoken yet is spoken now."""
        self.exams = [spoken(exam, self.settings) if exam.task.smoke else exam for exam in self.exams]

    def works(self) -> list[tuple[Exam, Work]]:
        """Every journal, the model's before the references'."""
        return [
            (exam, Work(name, exam.task.name, source, list(exam.clips.played.values())))  # type: ignore[arg-type]
            for name, source in self.names.items()
            for exam in self.exams
        ]

    def _answer(self) -> None:
        todo = {
            number: (exam, work)
            for number, (exam, work) in enumerate(self.works())
            if len(self._rows(exam, work.folder)) < len(work.items)
        }
        taught = [todo.pop(number) for number, (_, work) in list(todo.items()) if work.source == "teacher"]
        if self.teacher is not None and taught:
            self._ask_teacher(self.teacher, taught)
        if not todo:
            return
        if self.subject.endpoint is not None:
            self._ask_server(list(todo.values()))
            return
        here = LocalAnswering(self.subject, self.settings)
        workers = workers_that_fit(self.settings.workers, WORKER_BYTES)
        with answering(lambda: here, partial(_reopen, self.wanted, self.subject), workers, "--workers") as answered_by:
            for number, (exam, work) in todo.items():
                self._collect(exam, work, answered_by(number, work), self.settings.batch_size, workers)

    def _ask_teacher(self, config: TeacherConfig, todo: Sequence[tuple[Exam, Work]]) -> None:
        with open_for_answers(config) as (teacher, together):
            answerer = TeacherAnswerer(teacher, self.settings.sampling, self.settings.seed, self.subject.system)
            for exam, work in todo:
                self._collect(exam, work, in_turn(answerer), together or self.settings.batch_size, 1)

    def _ask_server(self, todo: Sequence[tuple[Exam, Work]]) -> None:
        assert self.subject.endpoint is not None
        client = Client(self.subject.endpoint, home())
        listen = whisper() if "cascade" in self.settings.references else None
        try:
            for exam, work in todo:
                answerer = EndpointAnswerer(
                    self.subject.endpoint,
                    client,
                    self.settings.sampling,
                    self.settings.seed,
                    self.subject.system,
                    written=work.source == "text",
                    transcribe=listen if work.source == "cascade" else None,
                )
                self._collect(exam, work, answerer.batches, 1, 1)
        finally:
            client.close()

    def _collect(self, exam: Exam, work: Work, answer: Callable[..., Any], batch_size: int, workers: int) -> None:
        told = {"task": exam.task.name, "data": exam.content, "model": self.subject.digest, **self._asked(exam)}
        collect(
            answer,
            work.items,
            self.journal(exam, work.folder),
            told,
            batch_size=batch_size,
            label=f"{work.folder} {work.task}",
            workers=workers,
        )

    def journal(self, exam: Exam, name: str) -> Path:
        """Where one's answers to a task are kept."""
        key = [exam.task.name, exam.content, self.names[name], self.subject.digest, self._asked(exam)]
        if self.names[name] == "teacher" and self.teacher is not None:
            key.append(teacher_digest(self.teacher))
        return self.output / exam.folder_name / f"{name}.{stable_hash(key)[:12]}.answers.jsonl"

    def _say(self, voice: str) -> None:
        workers = self.settings.workers or os.cpu_count() or 1
        for exam in self.exams:
            for name in self.names:
                label = f"{name} {exam.task.name} by {voice}"
                say_and_hear(self._rows(exam, name), self.heard_journal(exam, name), voice, workers, label)

    def heard_journal(self, exam: Exam, name: str) -> Path:
        """Where the transcripts of one's spoken answers are kept."""
        written = self.journal(exam, name)
        return written.with_name(written.name.replace(".answers.", f".{self.settings.voice}-{ASR}.heard."))

    def _asked(self, exam: Exam) -> dict[str, Any]:
        own = exam.task.into or (exam.task.kind == "constraints" and exam.task.files)
        beside = "the task's own" if own else self.settings.beside
        return {**self.settings.sampling.model_dump(), "seed": self.settings.seed, "beside": beside}

    def _rows(self, exam: Exam, name: str) -> list[dict[str, Any]]:
        """One's answers to the items that are asked; a journal may hold those of a greater limit, too."""
        asked = {item.id for item in exam.clips.played.values()}
        return [row for row in load_rows([self.journal(exam, name)]) if row["id"] in asked]

    # Scores

    def _score(self, exam: Exam) -> Iterator[dict[str, Any]]:
        """Of every one who answered, the text; and, said by a voice, what was heard of it."""
        for heard in (False, True) if self.settings.voice else (False,):
            files = {name: self._predictions(exam, name, heard) for name in self.names}
            for name, file in files.items():
                against = exam.task.against and name != "text" and exam.prompts is None
                opponent = self._reading(exam, files, heard) if against else None
                if exam.task.kind == "preference" and (opponent is None or self.settings.judge is None):
                    continue  # the answers are there: `rba score --task` compares them with anyone's
                asked = scoring.read(
                    exam.task.name,
                    exam.place,
                    file,
                    against=opponent,
                    judge=self._judge(exam.task, opponent),
                    split=self.settings.split,
                    limit=self.settings.limit,
                    out=file.with_name(f"{file.stem}.json"),
                    again=True,
                    prompts=exam.prompts,
                )
                recognised = self._recognised(exam, name) if heard else None
                yield scoring.score(asked, heard=recognised, answered=self._described(exam, name))

    def _reading(self, exam: Exam, files: Mapping[str, Path], heard: bool) -> Path | None:
        """The text LLM's answers: this evaluation's, else the first baseline's that asked as much of the same data."""
        if "text" in files:
            return files["text"]
        who = f"text{SPOKEN if heard else ''}"
        for one in self.baselines:
            found = one.scored.get(exam.task.name, {}).get(who)
            if found and found["data"]["content"] == exam.content and one.covers(self.settings.limit):
                return one.folder / exam.folder_name / f"{who}.jsonl"
        return None

    def _recognised(self, exam: Exam, name: str) -> Recognition:
        rows = {row["id"]: (row["errors"], row["words"]) for row in load_rows([self.heard_journal(exam, name)])}
        found = {task: rows[item.id] for task, item in exam.clips.played.items() if item.id in rows}
        return Recognition(str(self.settings.voice), ASR, found)

    def _judge(self, task: Task, opponent: Path | None) -> str | None:
        """The judge where the task has something for it to do."""
        judge = self.settings.judge
        takes = task.kind in ("preference", "open") and opponent is not None
        return judge if takes or (task.name == "speech-ifeval" and (judge or "").endswith(".toml")) else None

    def _predictions(self, exam: Exam, name: str, heard: bool) -> Path:
        rows = self._rows(exam, name)
        if heard:
            told = {row["id"]: row for row in load_rows([self.heard_journal(exam, name)])}
            rows = [
                row if row["error"] else {**row, "answer": told[row["id"]]["heard"], "error": told[row["id"]]["error"]}
                for row in rows
            ]
        lines = [json.dumps(row, ensure_ascii=False) for row in exam.responses(rows)]
        path = self.output / exam.folder_name / f"{name}{SPOKEN if heard else ''}.jsonl"
        atomic_write(path, "".join(f"{line}\n" for line in lines))
        return path

    def _described(self, exam: Exam, name: str) -> dict[str, Any]:
        """How these answers came about, for the scores."""
        reader = self.subject.what if name == "own-reading" else self.subject.text_reference
        if self.teacher is not None and self.names[name] == "teacher":
            reader = self.teacher.author
        who = self.subject.what if name == self.subject.name else f"{name}: {reader}"
        trained = self.names[name] in ("speech", "own-reading")
        told = {"by": who, "digest": self.subject.digest, "system": self.subject.system, **self._asked(exam)}
        return told | {"optimised": sorted(self.subject.optimised) if trained else []}

    def _conclude(self, scored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Compare with everybody, write the summary and the page."""
        by_task: dict[str, dict[str, Mapping[str, Any]]] = {}
        for one in scored:
            by_task.setdefault(one["task"], {})[one["model"]] = one
        own = Evaluation(self.output, self._summary(scored), by_task)
        models = side_by_side(own, self.baselines)
        own.summary["comparisons"] = compared(own.name, models)
        self._write(own.summary)
        page = self.output / "report"
        if own.summary["figures"]:
            benchmarks.build(page, page_of(own, models, self.exams), self.wanted.page)
        else:
            shutil.rmtree(page, ignore_errors=True)  # an earlier call's, whose figures are no longer these
        return own.summary

    def _summary(self, scored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "rbalign": __version__,
            "model": {"name": self.subject.name, "what": self.subject.what, "digest": self.subject.digest},
            "system": self.subject.system,
            "sampling": self.settings.sampling.model_dump(),
            "seed": self.settings.seed,
            "limit": self.settings.limit,
            "figures": [figure for one in scored for figure in figures_of(one["model"], one)],
        }

    def _write(self, summary: Mapping[str, Any]) -> None:
        text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
        atomic_write(self.output / SUMMARY, text + "\n")


def prepare(wanted: Wanted) -> ModelEvaluation:
    """Check everything that can be refused before any work; nothing is written."""
    baselines = [read_evaluation(folder) for folder in wanted.baselines]
    return _of_subject(wanted, subject_named(wanted.model, wanted.system), baselines)


def _of_subject(wanted: Wanted, subject: Subject, baselines: Sequence[Evaluation] = ()) -> ModelEvaluation:
    prompts = wanted.prompts.read() if wanted.prompts else None
    exams = [exam_of(task, wanted.data.get(task.name), wanted.settings, prompts) for task in tasks_named(wanted.tasks)]
    return ModelEvaluation(wanted, subject, exams, baselines)


def _reopen(wanted: Wanted, subject: Subject) -> tuple[LocalAnswering, list[Work]]:
    """In a worker: the evaluation that the parent has open, for reading. Its model is hashed, or fetched, once."""
    evaluation = _of_subject(wanted, subject)
    evaluation.speak()
    return LocalAnswering(subject, wanted.settings), [work for _, work in evaluation.works()]
