"""Two arms, or two scored files, instruction by instruction: from what is on the disk alone. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rbalign.errors import UsageError, unknown
from rbalign.eval.metrics import METRICS, raised
from rbalign.eval.results import comparison_row, rounded
from rbalign.eval.score import load_rows
from rbalign.eval.stats import Bootstrap
from rbalign.eval.table import Table
from rbalign.eval.tasks.corpus import METRICS as METRICS_OF_A_CORPUS
from rbalign.eval.tasks.corpus import CorpusMetric
from rbalign.eval.tasks.sheet import PERCENT
from rbalign.keys import Key

SCORES = ".scores.jsonl"
WIN = "win"
LOWER_IS_BETTER = {"retracted_said", "retracted_answered"}
"""Scores of answers to corrections; every other one is better when higher."""


@dataclass(frozen=True, slots=True)
class ArmScores:
    """An arm (all its seeds) or a reference in a run folder."""

    run: Path
    arm: str

    def rows(self, task: str) -> list[dict[str, Any]]:
        """Score rows of a task, seeds one after the other."""
        return load_rows(folder / f"{task}{SCORES}" for folder in self.folders())

    def folders(self) -> list[Path]:
        """`eval/ARM` or every `eval/ARM-sSEED`; naming one seed takes that seed."""
        exact = self.run / "eval" / self.arm
        if exact.is_dir():
            return [exact]
        pattern = re.compile(rf"{re.escape(self.arm)}-s\d+")
        return sorted(path for path in (self.run / "eval").glob("*") if pattern.fullmatch(path.name))

    def tasks(self) -> set[str]:
        """Tasks that have scores."""
        return {path.name.removesuffix(SCORES) for folder in self.folders() for path in folder.glob(f"*{SCORES}")}


def arms_of(run: Path) -> list[str]:
    """Arms and references that a run has scores of, seeds pooled under one name."""
    names = {re.sub(r"-s\d+$", "", path.parent.name) for path in (run / "eval").glob(f"*/*{SCORES}")}
    return sorted(names)


def named_arm(run: Path, arm: str) -> ArmScores:
    """The arm of that name, or UsageError with the ones that are there."""
    found = ArmScores(run, arm)
    if not arms_of(run):
        raise UsageError(f"{run} has no scores under eval/", "give the folder of a run whose eval is finished")
    if not found.tasks():
        raise unknown(f"arm of {run}", arm, arms_of(run))
    return found


def compare_arms(left: ArmScores, right: ArmScores, *, resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """left - right for every task and metric that both have, over the instructions that both answered.

    Rows: task, metric, difference, ci_low, ci_high, n, p, wins, losses, ties (instructions whose score went up,
    down, neither), sign_p. Raises UsageError if they share no instruction.
    """
    rows = [
        row for task in sorted(left.tasks() & right.tasks()) for row in _one_task(left, right, task, resamples, seed)
    ]
    if not rows:
        raise UsageError(
            f"{left.arm} and {right.arm} share no scored instruction", "compare runs that evaluated the same dataset"
        )
    return rows


def _one_task(left: ArmScores, right: ArmScores, task: str, resamples: int, seed: int) -> Iterator[dict[str, Any]]:
    mine, theirs = left.rows(task), right.rows(task)
    shared = sorted({row["example"] for row in mine} & {row["example"] for row in theirs})
    if not shared:
        return
    ours, others = Table(shared, mine), Table(shared, theirs)
    boot = Bootstrap(len(shared), resamples, Key(seed, "bootstrap").generator())
    for name, metric in METRICS.items():
        if metric.higher_is_better is not None and name in ours.metrics() and name in others.metrics():
            found = comparison_row(boot.compare(ours.values(name), others.values(name)))
            yield {"task": task, "metric": name, **found}


@dataclass(frozen=True, slots=True)
class Flip:
    """A sample that scores otherwise in the second file, or under the second arm, than in the first."""

    id: str
    metric: str
    before: float
    after: float
    responses: tuple[str | None, str | None]


def arm_flips(left: ArmScores, right: ArmScores) -> list[Flip]:
    """Samples that score otherwise under `left` than under `right` by a headline metric, of each arm's first seed;
    greatest change first."""
    found = []
    for task in sorted(left.tasks() & right.tasks()):
        (ours, said), (theirs, said_before) = (_first_seed(one, task) for one in (left, right))
        for key in ours.keys() & theirs.keys():
            for metric in (name for name, one in METRICS.items() if one.headline):
                after, before = ours[key].get(metric), theirs[key].get(metric)
                if after != before and after is not None and before is not None:
                    texts = (said_before.get(key), said.get(key))
                    found.append(Flip(key, f"{task} {metric}", before, after, texts))
    return _greatest_first(found)


def _first_seed(arm: ArmScores, task: str) -> tuple[dict[str, dict[str, float | None]], dict[str, str | None]]:
    """Sample's id -> its scores, and its answer."""
    folder = arm.folders()[0]
    scores = {row["id"]: row["scores"] for row in load_rows([folder / f"{task}{SCORES}"])}
    return scores, {row["id"]: row["answer"] for row in load_rows([folder / f"{task}.jsonl"])}


def _greatest_first(flips: list[Flip]) -> list[Flip]:
    return sorted(flips, key=lambda flip: (-abs(flip.after - flip.before), flip.id, flip.metric))


def compare_scored(
    left: Mapping[str, Any], right: Mapping[str, Any], *, resamples: int = 10_000, seed: int = 0
) -> tuple[list[dict[str, Any]], list[Flip]]:
    """left - right of two scored files (`eval.tasks.scored`), over the instructions of one task; and what changed.

    A row for each metric and part: as `compare_arms`, with `effect`, `unit` (the figures' own: rates are in percent,
    cosines and chrF are not), `lower_is_better` and `optimised` (one side's training raises it). BLEU and chrF++ are of
    the corpus, their wins are sentences'. Wins over different opponents, or in the eyes of different judges, are left
    out. Raises UsageError for other tasks or other data: the items would not be the same.
    """
    for name, key in (("task", left["task"]), ("content", left["data"]["content"])):
        other = right["task"] if name == "task" else right["data"]["content"]
        if key != other:
            raise UsageError(f"the files are of two {name}s, {key} and {other}", "score both on the same task and data")
    a, b = ({sample["id"]: sample for sample in scored["samples"]} for scored in (left, right))
    shared = sorted(a.keys() & b.keys())
    if not shared:
        raise UsageError("the files share no sample", "score both on the same task and data")
    metrics = {name for key in shared for name in a[key]["scores"]}
    if WIN in metrics and _contest(left) != _contest(right):
        metrics.remove(WIN)
    rows, flips = [], []
    for metric in sorted(metrics):
        unit = next((figure["unit"] for figure in left["figures"] if figure["metric"] == metric), PERCENT)
        said = {
            "unit": unit,
            "lower_is_better": metric in LOWER_IS_BETTER,
            "optimised": any(optimised(one, metric) for one in (left, right)),
        }
        known = [key for key in shared if None not in (_score(a, key, metric), _score(b, key, metric))]
        if not known:
            continue
        for part in _parts(a[key]["part"] for key in known):
            own = [key for key in known if part in ("", a[key]["part"])]
            found = _difference(a, b, own, metric, resamples, seed)
            if unit == PERCENT:
                found |= {name: None if found[name] is None else rounded(100 * found[name]) for name in _SPAN}
            rows.append({"metric": metric, "part": part, **said, **found})
        flips += [
            Flip(key, metric, before, after, (b[key]["response"], a[key]["response"]))
            for key in known
            if (before := _score(b, key, metric)) != (after := _score(a, key, metric))
            and before is not None
            and after is not None
        ]
    return rows, _greatest_first(flips)


def _difference(
    a: Mapping[str, Any], b: Mapping[str, Any], keys: Sequence[str], metric: str, resamples: int, seed: int
) -> dict[str, Any]:
    """One metric over one set of samples, an instruction's own ones together."""
    units: dict[str, list[str]] = {}
    for key in keys:
        units.setdefault(a[key]["unit"], []).append(key)
    boot = Bootstrap(len(units), resamples, Key(seed, "bootstrap").generator())
    ours, theirs = (
        np.array([np.mean([one[key]["scores"][metric] for key in own]) for own in units.values()]) for one in (a, b)
    )
    found = boot.compare(ours, theirs)
    row = comparison_row(found)
    statistics = [
        np.array([np.sum([one[key]["statistics"][metric] for key in own], axis=0) for own in units.values()])
        for one in (a, b)
        if metric in METRICS_OF_A_CORPUS
    ]
    if statistics:
        corpus = CorpusMetric(metric)
        draws = corpus.draws(boot, statistics[0]) - corpus.draws(boot, statistics[1])
        whole = boot.estimate(draws, len(units))
        row |= {"difference": rounded(whole.value), "ci_low": rounded(whole.low), "ci_high": rounded(whole.high)}
        return row | {"p": rounded(boot.p_value(draws))}
    return row


def optimised(scored: Mapping[str, Any], metric: str, part: str = "") -> bool:
    """Whether what answered was trained to raise this score or figure of the file."""
    own = scored.get("answered", {}).get("optimised", ())
    return raised(own, metric, part, scored.get("judge", {}).get("name", ""), scored.get("scorer", ""))


def _contest(scored: Mapping[str, Any]) -> tuple[Any, Any]:
    """Whose answers were beaten, and who said so."""
    return scored.get("against", {}).get("predictions"), scored.get("judge", {}).get("protocol")


def _score(samples: Mapping[str, Any], key: str, metric: str) -> float | None:
    value: float | None = samples[key]["scores"].get(metric)
    return value


def _parts(found: Iterable[str]) -> list[str]:
    """All together, then each part where there are several."""
    parts = sorted(set(found))
    return ["", *parts] if len(parts) > 1 else [""]


_SPAN = ("difference", "ci_low", "ci_high")
