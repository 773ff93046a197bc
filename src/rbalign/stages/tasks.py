"""`rba score --task NAME --data FOLDER FILE`: predictions made anywhere, scored by a public benchmark's own rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbalign.assets import home
from rbalign.config.load import load_judge
from rbalign.errors import DataError, UsageError, unknown
from rbalign.eval.judges import LlmJudge, PairwiseJudge, ReferenceJudge
from rbalign.eval.predictions import FORMAT, read_responses
from rbalign.eval.tasks.files import local_copy, origin
from rbalign.eval.tasks.items import TaskData, load
from rbalign.eval.tasks.measure import Rules, measure
from rbalign.eval.tasks.prompts import Prompts, asked_with, measure_with
from rbalign.eval.tasks.recognition import Recognition, recognition
from rbalign.eval.tasks.registry import Task, task_named
from rbalign.eval.tasks.scored import as_scored, markdown, read_scored
from rbalign.eval.tasks.sheet import Responses, Sheet
from rbalign.remote.client import Client
from rbalign.rundir.files import atomic_write, sha256_file
from rbalign.scorers import build as build_scorer

RESAMPLES = 10_000
OFFLINE = {"chrf": "chrf", "minilm": "similarity", "wordllama": "similarity"}
"""Judges that need no key: what they are called, and the scorer that holds both answers against the reference."""


@dataclass(frozen=True)
class Prompted:
    """A task's own items, and the prompts that they were asked with."""

    plain: TaskData
    prompts: Prompts


@dataclass(frozen=True)
class Asked:
    """What is to be scored, checked; nothing is written yet."""

    task: Task
    data: TaskData
    file: Path
    responses: Responses
    scorer: str
    judge: str | None
    against: Path | None
    opponent: Responses | None
    out: Path
    origin: str
    """Where the data is from."""
    prompted: Prompted | None = None
    """With it the ids of `data` name style and mode."""
    left_unasked: int = 0
    """Instructions beyond a limit."""

    def counted(self) -> list[str]:
        """What there is and what is missing, in words."""
        lines = _counted(self.file, Sheet(self.task, self.data, self.responses, 0))
        if self.against is not None and self.opponent is not None:
            lines += _counted(self.against, Sheet(self.task, self.data, self.opponent, 0))
        if self.data.left_out:
            lines.append(f"{self.data.left_out} items have no reference: left out")
        if self.left_unasked:
            units = len({item.unit for item in self.data.items})
            lines.append(f"only the first {units} of {units + self.left_unasked} instructions are asked")
        return lines


def read(
    name: str,
    place: str,
    file: Path,
    *,
    against: Path | None = None,
    scorer: str | None = None,
    judge: str | None = None,
    split: str = "test",
    limit: int | None = None,
    out: Path | None = None,
    again: bool = False,
    prompts: Prompts | None = None,
) -> Asked:
    """Check task, data, predictions and what they are held against. Asks no judge, writes nothing.

    `limit` asks only the first instructions of the data, as `rba eval --model --limit` does.
    """
    task = task_named(name)
    chosen = scorer or task.scorers[0]
    if chosen not in task.scorers:
        raise unknown(f"scorer of {task.name}", chosen, task.scorers)
    _check_against(task, against)
    _check_judge(task, chosen, judge)
    whole = load(task, local_copy(place, task), split)
    plain = whole.first(limit)
    data = plain if prompts is None else asked_with(task, plain, prompts)
    target = out or file.with_name(f"{file.stem}.{task.name.replace(':', '-')}.json")
    _check_out(target, again)
    opponent = None if against is None else _responses(task, data, against)
    unasked = len({item.unit for item in whole.items}) - len({item.unit for item in data.items})
    told = _responses(task, data, file)
    source = origin(place, task)
    asked = None if prompts is None else Prompted(plain, prompts)
    return Asked(task, data, file, told, chosen, judge, against, opponent, target, source, asked, unasked)


def score(asked: Asked, resamples: int = RESAMPLES, heard: Recognition | None = None, **told: Any) -> dict[str, Any]:
    """Score, and write the result as JSON and Markdown; it as a value.

    `heard`: where the responses are what an ASR heard of spoken answers. `told`: what else it says of the answers.
    """
    sheet = Sheet(asked.task, asked.data, asked.responses, resamples)
    more: dict[str, Any] = {"predictions": sha256_file(asked.file), "scorer": asked.scorer, **told}
    if asked.against is not None:
        more["against"] = {"name": asked.against.stem, "predictions": sha256_file(asked.against)}
    with _judge(asked.judge) as judge:
        rules = Rules(asked.scorer, judge, asked.opponent, asked.against.stem if asked.against else "")
        if asked.prompted is None:
            measure(sheet, rules)
        else:
            measure_with(sheet, asked.prompted.plain, asked.prompted.prompts, lambda own: measure(own, rules))
        if judge is not None:
            more["judge"] = {"name": judge.name, "protocol": judge.protocol}
            if isinstance(judge, LlmJudge):
                more["judge"]["requests"] = judge.counts
    if heard is not None:
        for figure in sheet.figures:
            figure["protocol"] += f"; {heard.protocol}"
        recognition(sheet, heard)
    sheet.notes += asked.counted()
    if sheet.unparsed:
        sheet.notes.append(f"{sheet.unparsed} judgements could not be read or were never given; they are counted")
    scored = as_scored(sheet, asked.file.stem, asked.origin, **more)
    atomic_write(asked.out, json.dumps(scored, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    atomic_write(asked.out.with_suffix(".md"), markdown(scored))
    return scored


def _counted(file: Path, sheet: Sheet) -> list[str]:
    counts = sheet.counts()
    lines = [f"{file.name}: {counts['answered']} of {counts['items']} items have a response"]
    if counts["missing"] or counts["failed"]:
        lines.append(
            f"{file.name}: {counts['missing']} missing, {counts['failed']} failed: both stay in the denominator"
        )
    if counts["passed_over"]:
        lines.append(f"{file.name}: {counts['passed_over']} responses to items that are not asked: passed over")
    return lines


def _responses(task: Task, data: TaskData, file: Path) -> Responses:
    known = {item.id for item in data.asked} | data.passed_over
    allowed = f"ids of {task.name} are {task.ids}; the first is {data.items[0].id!r}"
    found = read_responses(file, known, allowed, "check --task and --data")
    if not found:
        raise DataError(f"{file} holds no prediction", FORMAT)
    return {name: one.text for name, one in found.items()}


def _check_against(task: Task, against: Path | None) -> None:
    if against is not None and not task.against:
        raise UsageError(f"{task.name} takes no --against", "score both files, then `rba compare A.json B.json`")
    if against is None and task.kind == "preference":
        raise UsageError(f"{task.name} is a comparison", f"give --against FILE.jsonl: {task.against}")


def _check_judge(task: Task, scorer: str, judge: str | None) -> None:
    offline = ", ".join(OFFLINE)
    if task.kind == "preference" and judge is None:
        raise UsageError(f"{task.name} needs a judge", f"give --judge JUDGE.toml, or offline one of {offline}")
    if judge is None:
        return
    compares = task.kind in ("preference", "open")
    if not compares and judge in OFFLINE:
        raise UsageError(f"--judge {judge} compares two answers, which {task.name} does not", "give --judge JUDGE.toml")
    if not compares and task.kind != "constraints" and scorer != "judge":
        raise UsageError(f"--judge beside --scorer {scorer}, which asks none", "give --scorer judge, or no --judge")
    if judge not in OFFLINE and not judge.endswith(".toml"):
        raise unknown("judge", judge, OFFLINE, "or a file JUDGE.toml with url and model; see docs/protocols.md")


def _check_out(out: Path, again: bool) -> None:
    """What is there already is overwritten only if it is such a result, and only when asked to."""
    for path in (out, out.with_suffix(".md")):
        if path.exists() and not again:
            raise UsageError(f"{path} is there already", "--again scores anew; --out OTHER.json keeps both")
    if out.suffix != ".json":
        raise UsageError(f"--out {out} does not end with .json", "the page beside it ends with .md")
    if out.exists():
        read_scored(out)


@contextmanager
def _judge(given: str | None) -> Iterator[PairwiseJudge | None]:
    if given is None:
        yield None
    elif given in OFFLINE:
        resources = {} if given == "chrf" else {"embedder": given}
        yield ReferenceJudge(given, build_scorer(OFFLINE[given], against="reference", **resources))
    else:
        config = load_judge(Path(given))
        judge = LlmJudge(config, Client(config, home()))
        try:
            yield judge
        finally:
            judge.close()
