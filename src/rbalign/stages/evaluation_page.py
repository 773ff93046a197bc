"""An evaluation beside others: whose figures they are, how the answers differ by instruction, what the page shows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbalign.errors import UsageError
from rbalign.eval.paired import compare_scored, optimised
from rbalign.eval.results import rounded
from rbalign.eval.stats import holm
from rbalign.eval.tasks.items import TaskItem
from rbalign.eval.tasks.scored import Scored, read_scored
from rbalign.report.benchmarks import Evaluated, Question, TaskAnswers
from rbalign.stages.exams import REFERENCES, SPOKEN, Exam, folder_of

SUMMARY = "evaluation.json"
OF_A_MODEL = ("own-reading", "self-cascade")
"""References that differ from model to model."""
FIRST = ("win", "chrf++")
"""Scores that are a task's headline wherever they are; else it is the task's first."""


@dataclass(frozen=True)
class Evaluation:
    """What one call of `rba eval --model` found."""

    folder: Path
    summary: dict[str, Any]
    scored: Mapping[str, Mapping[str, Scored]]
    """Task -> who -> the scored file."""

    @property
    def name(self) -> str:
        """Of the model."""
        return str(self.summary["model"]["name"])

    def covers(self, limit: int | None) -> bool:
        """Whether as many instructions were asked."""
        own = self.summary["limit"]
        return own is None or (limit is not None and limit <= own)


def read_summary(folder: Path, cure: str) -> dict[str, Any]:
    """evaluation.json of a folder. UsageError, which `cure` ends, where it is something else."""
    try:
        found: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        [(figure["task"], figure["model"]) for figure in found["figures"]]
        found["model"]["name"], found["model"]["digest"], found["limit"]
    except (OSError, ValueError, LookupError, TypeError):
        raise UsageError(f"{folder} is not what `rba eval --model` wrote", cure) from None
    return found


def read_evaluation(folder: Path) -> Evaluation:
    """A folder of `rba eval --model`. UsageError for anything else, or where a file of it is gone."""
    summary = read_summary(folder, "give the folders of --output")
    files = dict.fromkeys((figure["task"], figure["model"]) for figure in summary["figures"])
    scored: dict[str, dict[str, Scored]] = {}
    for task, who in files:
        scored.setdefault(task, {})[who] = read_scored(folder / folder_of(task) / f"{who}.json")
    return Evaluation(folder, summary, scored)


def side_by_side(own: Evaluation, baselines: Sequence[Evaluation]) -> dict[str, dict[str, Scored]]:
    """Who -> task -> scored file: the model, the models of `baselines` on the same data, references last.

    A reference that several folders have is taken from the first, but for those that are a model's own (`self-cascade
    of NAME`); models of one name are told apart by their folder.
    """
    found: dict[str, dict[str, Scored]] = {own.name: {}}
    for place, one in enumerate((own, *baselines)):
        where = ""
        if place and one.name in found:
            where = f" of {one.folder.name}"
            where = where if one.name + where not in found else f" of {one.folder}"
        for task, scored in one.scored.items():
            for who, file in scored.items():
                if task in own.scored and file["data"]["content"] == _content(own, task):
                    called = _called(who, one.name, where) if place else who
                    found.setdefault(called, {}).setdefault(task, file)
    return dict(sorted(found.items(), key=lambda pair: _reference(pair[0].partition(" of ")[0]) in REFERENCES))


def _called(who: str, name: str, where: str) -> str:
    """What a baseline's answers stand under: `where` where its name is taken."""
    if _reference(who) in OF_A_MODEL:
        return f"{who} of {name}{where}"
    return who if _reference(who) in REFERENCES else who + where


def _reference(who: str) -> str:
    """Answers that a voice said are the same reference's."""
    return who.removesuffix(SPOKEN)


def _content(own: Evaluation, task: str) -> str:
    return str(next(iter(own.scored[task].values()))["data"]["content"])


def compared(name: str, models: Mapping[str, Mapping[str, Scored]]) -> list[dict[str, Any]]:
    """`name` minus every other model, by task, metric and part: see `compare_scored`. p_holm is Holm's adjustment over
    the headlines: of each task and pair one, over all parts together, which neither side was trained to raise."""
    rows = []
    for other, files in models.items():
        for task, theirs in files.items():
            ours = models[name].get(task)
            if other == name or ours is None:
                continue
            found = compare_scored(ours, theirs)[0]
            both = {row["metric"] for row in found if not row["optimised"]}
            first = _headline(name for name in _scores(ours) if name in both)
            rows += [
                {"a": name, "b": other, "task": task, **row, "headline": (row["metric"], row["part"]) == (first, "")}
                for row in found
            ]
    tested = [row for row in rows if row["headline"]]
    adjusted = holm([row["p"] for row in tested])
    for row in rows:
        row["p_holm"] = None
    for row, value in zip(tested, adjusted, strict=True):
        row["p_holm"] = rounded(value)
    return rows


def _scores(*files: Scored) -> Iterator[str]:
    """Names of samples' scores, a task's own first."""
    return (name for one in files for sample in one["samples"] for name in sample["scores"])


def _headline(metrics: Iterable[str]) -> str:
    """Of a task's scores the one that speaks for it."""
    names = list(metrics)
    return next((name for name in FIRST if name in names), names[0] if names else "")


def figures_of(name: str, scored: Scored) -> list[dict[str, Any]]:
    """A scored file's figures, with whose they are and whether its training raises them."""
    return [
        {"model": name, **one, "optimised": optimised(scored, one["metric"], one["part"])} for one in scored["figures"]
    ]


def page_of(own: Evaluation, models: Mapping[str, Mapping[str, Scored]], exams: Sequence[Exam]) -> Evaluated:
    """What the page shows."""
    figures = [figure for name, files in models.items() for one in files.values() for figure in figures_of(name, one)]
    scored = {task: next(iter(files.values())) for task, files in own.scored.items()}
    return Evaluated(
        own.name,
        own.summary["model"]["what"],
        list(models),
        {task: one["title"] for task, one in scored.items()},
        figures,
        own.summary["comparisons"],
        list(_method(own, scored)),
        [_answers(exam, models) for exam in exams if exam.task.name in scored],
    )


def _method(own: Evaluation, scored: Mapping[str, Scored]) -> Iterator[tuple[str, str]]:
    summary = own.summary
    sampling = ", ".join(f"{name} {value}" for name, value in summary["sampling"].items())
    yield "model", f"{summary['model']['what']}; digest {summary['model']['digest']}; rbalign {summary['rbalign']}"
    yield "system prompt", summary["system"] or "none"
    yield "answers", f"{sampling}, seed {summary['seed']}"
    yield "instructions", "all" if summary["limit"] is None else f"the first {summary['limit']} of each task"
    for task, one in scored.items():
        yield task, f"{one['rule']} {one['interval']}."
        for protocol in dict.fromkeys(figure["protocol"] for figure in one["figures"]):
            yield f"{task}, protocol", protocol


def _answers(exam: Exam, models: Mapping[str, Mapping[str, Scored]]) -> TaskAnswers:
    task = exam.task.name
    files = {name: own[task] for name, own in models.items() if task in own}
    answers = {name: {sample["id"]: sample for sample in one["samples"]} for name, one in files.items()}
    questions = [_question(item, exam) for item in exam.data.items]
    return TaskAnswers(task, questions, answers, _headline(_scores(*files.values())))


def _question(item: TaskItem, exam: Exam) -> Question:
    played = exam.clips.played.get(item.id)
    said = played.written() if played else item.request
    targets = {"reference": item.reference, "accepted": " | ".join(item.aliases), "retracted": item.retracted}
    return Question(
        item.id, item.unit, item.part, said, {k: v for k, v in targets.items() if v}, played.view if played else None
    )
