"""From score rows to results.json: values with intervals, gaps closed, consistency, paired comparisons. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rbalign.eval import consistency
from rbalign.eval.metrics import METRICS, Metric, headlines
from rbalign.eval.stats import Bootstrap, Comparison, Estimate, holm
from rbalign.eval.table import Rows, Table, answer_vectors
from rbalign.keys import Key

SCHEMA = 1
TEXT, BASE = "text", "base"
DISTILLED = ("sft", "kd", "sft-matched", "kd-matched")
"""The supervised baselines: at the data of the RBA arms, and at their compute."""
SIDES = {"open-text": "open", "qa-text": "qa", "open-wrong-audio": "open", "qa-wrong-audio": "qa"}
"""Tasks that show an arm under another input, and the task that they stand beside."""

Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, slots=True)
class Subject:
    """An arm or a reference. `seeds` lists its training seeds: () for what was not trained."""

    name: str
    seeds: tuple[int, ...] = ()
    optimised: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Evidence:
    """All that results are computed from. Keys are (subject, seed, task); seed None for what was not trained."""

    subjects: Sequence[Subject]
    examples: Mapping[str, Sequence[str]]
    """Ids of the instructions of each task, failed ones included: the denominators."""
    scores: Mapping[tuple[str, int | None, str], Rows]
    answers: Mapping[tuple[str, int | None, str], Rows] = field(default_factory=dict)
    """Answer rows of the task `open`, for consistency."""
    embedders: Mapping[str, Embed] = field(default_factory=dict)
    protocols: Mapping[str, str] = field(default_factory=dict)
    """How each task was decoded, in one line."""

    def table(self, subject: Subject, task: str, seed: int | None = None) -> Table:
        """Rows of one seed, or of all seeds together."""
        seeds: tuple[int | None, ...] = (seed,) if seed is not None else subject.seeds or (None,)
        rows = [row for s in seeds for row in self.scores.get((subject.name, s, task), ())]
        return Table(self.examples.get(task, ()), rows)

    def tasks(self) -> list[str]:
        """Tasks in the order of `examples`."""
        return list(self.examples)


def build(evidence: Evidence, *, resamples: int, seed: int) -> dict[str, Any]:
    """results.json as a value: `rows`, `comparisons` and what they rest on."""
    boots = {
        task: Bootstrap(len(ids), resamples, Key(seed, "bootstrap").generator())
        for task, ids in evidence.examples.items()
    }
    report = _Rows(evidence, boots)
    for subject in evidence.subjects:
        for task in evidence.tasks():
            report.subject(subject, task)
        report.steadiness(subject)
    report.gaps()
    return {
        "schema": SCHEMA,
        "unit": "instruction, with all its views, samples and seeds",
        "interval": f"95 % percentile bootstrap, {resamples} resamples of instructions",
        "rows": report.rows,
        "comparisons": [*compare_all(evidence, boots), *report.steadier()],
    }


class _Rows:
    """Collects result rows in reading order."""

    def __init__(self, evidence: Evidence, boots: Mapping[str, Bootstrap]) -> None:
        self.evidence, self.boots = evidence, boots
        self.rows: list[dict[str, Any]] = []
        self._draws: dict[tuple[str, str], np.ndarray] = {}
        """(subject, embedder) -> resamples of its consistency headline, seeds averaged."""

    def add(
        self, subject: Subject, task: str, metric: str, estimate: Estimate | None, reference: str, **more: Any
    ) -> None:
        """One row; `seed` defaults to the subject's only seed, None where several are pooled."""
        value, low, high, n = (
            (estimate.value, estimate.low, estimate.high, estimate.n) if estimate else (None, None, None, 0)
        )
        seed = subject.seeds[0] if len(subject.seeds) == 1 else None
        self.rows.append(
            {
                "arm": subject.name,
                "task": task,
                "metric": metric,
                "value": rounded(value),
                "ci_low": rounded(low),
                "ci_high": rounded(high),
                "n": n,
                "reference": reference,
                "protocol": self.evidence.protocols.get(task, ""),
                "optimised": not subject.optimised.isdisjoint({metric, metric.split("/")[0], metric.split("@")[-1]}),
                "seed": seed,
                **more,
            }
        )

    def subject(self, subject: Subject, task: str) -> None:
        """Every metric of one subject on one task: pooled, then by seed where there are several, then by voice."""
        table = self.evidence.table(subject, task)
        if not table:
            return
        boot = self.boots[task]
        for name in (name for name in METRICS if name in table.metrics()):
            reference = METRICS[name].reference
            self.add(subject, task, name, boot.mean(table.values(name)), reference, unscored=table.unscored(name))
            if len(subject.seeds) > 1:
                for seed in subject.seeds:
                    values = self.evidence.table(subject, task, seed).values(name)
                    self.add(subject, task, name, boot.mean(values), reference, seed=seed)
            if METRICS[name].headline and task not in SIDES and subject.name != TEXT:
                self._voices(subject, task, METRICS[name], table)
        if task.startswith("qa"):
            self._questions(subject, task, table)
        self._heard(subject, task, table)

    def _voices(self, subject: Subject, task: str, metric: Metric, table: Table) -> None:
        voices, values = table.voices(), table.by_voice(metric.name)
        if len(voices) < 2:
            return
        boot = self.boots[task]
        worst, which = boot.worst_column(values, higher_is_better=metric.higher_is_better is not False)
        self.add(subject, task, f"{metric.name}/worst-voice", worst, metric.reference, voice=voices[which])
        for column, voice in enumerate(voices):
            name = f"{metric.name}/voice:{voice}"
            self.add(subject, task, name, boot.mean(values[:, column]), metric.reference, voice=voice)

    def _questions(self, subject: Subject, task: str, table: Table) -> None:
        """Accuracy where the text LLM is right (what hearing costs), and how often voices disagree."""
        boot, reference = self.boots[task], METRICS["qa"].reference
        text = next((one for one in self.evidence.subjects if one.name == TEXT), None)
        known = self.evidence.table(text, "qa").values("qa") if text else np.full(table.n, np.nan)
        if len(known) == table.n and (known == 1).any() and subject.name != TEXT:
            kept = np.where(known == 1, table.values("qa"), np.nan)
            self.add(subject, task, "qa/where-text-right", boot.mean(kept), reference)
        if task == "qa" and not np.isnan(table.flips()).all():
            self.add(subject, task, "flip-rate", boot.mean(table.flips()), METRICS["flip-rate"].reference)

    def _heard(self, subject: Subject, task: str, table: Table) -> None:
        """Corpus-level WER, and the voice in which it is highest."""
        errors, words = table.word_errors()
        if task in SIDES or np.isnan(errors).all():
            return
        boot, reference = self.boots[task], METRICS["wer"].reference
        self.add(subject, task, "wer", boot.ratio(errors, words), reference)
        rates = {voice: boot.ratio(*table.word_errors(voice)) for voice in table.voices()}
        worst = max(rates, key=lambda voice: rates[voice].value)
        self.add(subject, task, "wer/worst-voice", rates[worst], reference, voice=worst)

    def steadiness(self, subject: Subject) -> None:
        """Consistency of each seed: headline, raw cosine, floor and ceiling under each embedder."""
        for name, embed in self.evidence.embedders.items():
            parts = [self._one_seed(subject, seed, embed) for seed in subject.seeds or (None,)]
            if all(part is not None for part in parts):
                self._draws[subject.name, name] = np.mean([part.draws for part in parts if part], axis=0)
            for seed, part in zip(subject.seeds or (None,), parts, strict=True):
                if part is None:
                    continue
                note = "" if part.headline else "not defined: resampling is no closer than another instruction"
                pieces = {"headline": part.headline, "raw": part.raw, "floor": part.floor, "ceiling": part.ceiling}
                for piece, estimate in pieces.items():
                    metric = f"consistency:{name}/{piece}"
                    self.add(subject, "open", metric, estimate, "own answers", seed=seed, note=note)

    def _one_seed(self, subject: Subject, seed: int | None, embed: Embed) -> consistency.Consistency | None:
        answers = self.evidence.answers.get((subject.name, seed, "open"), ())
        if not answers:
            return None
        kept, views, repeats = answer_vectors(self.evidence.examples["open"], answers, embed)
        if len(kept) < 2:
            return None
        whole = self.boots["open"]
        boot = whole if len(kept) == whole.n else Bootstrap(len(kept), whole.resamples, Key(0, "kept").generator())
        return consistency.measure(boot, views, repeats)

    def steadier(self) -> list[dict[str, Any]]:
        """Differences in the consistency headline between arms, paired by resample; never a headline claim."""
        named = {subject.name: subject for subject in self.evidence.subjects}
        found = []
        for ours in (subject for subject in self.evidence.subjects if subject.seeds):
            for theirs in (named[name] for name in rivals(ours.name) if name in named):
                for embedder in self.evidence.embedders:
                    both = [self._draws.get((one.name, embedder)) for one in (ours, theirs)]
                    if both[0] is None or both[1] is None or np.isnan([both[0][0], both[1][0]]).any():
                        continue
                    boot, metric = self.boots["open"], f"consistency:{embedder}"
                    gap = both[0] - both[1]
                    value = Comparison(boot.estimate(gap, boot.n), boot.p_value(gap), 0, 0, 0, 1.0)
                    sides = {"task": "open", "metric": metric, "a": ours.name, "b": theirs.name}
                    flags = {"p_holm": None, "headline": False, "higher_is_better": True}
                    tainted = metric in ours.optimised | theirs.optimised
                    found.append({**sides, **comparison_row(value), **flags, "optimised": tainted})
        return found

    def gaps(self) -> None:
        """Gap closed by every subject, under every metric that has a direction."""
        named = {subject.name: subject for subject in self.evidence.subjects}
        if TEXT not in named or BASE not in named:
            return
        for task in (task for task in self.evidence.tasks() if task not in SIDES):
            base, text = (self.evidence.table(named[name], task) for name in (BASE, TEXT))
            for subject in self.evidence.subjects:
                table = self.evidence.table(subject, task)
                if subject.name in (TEXT, BASE) or not table:
                    continue
                for name in table.metrics():
                    if METRICS[name].higher_is_better is not None and name in text.metrics():
                        arrays = (table.values(name), base.values(name), text.values(name))
                        closed = self.boots[task].gap_closed(*arrays)
                        note = "" if closed else "no gap to close: the interval of text - base holds 0"
                        self.add(subject, task, f"gap-closed@{name}", closed, "text - base", note=note)


def compare_all(evidence: Evidence, boots: Mapping[str, Bootstrap]) -> list[dict[str, Any]]:
    """Paired differences that the claims rest on; headline ones between trained arms are Holm-adjusted together."""
    named = {subject.name: subject for subject in evidence.subjects}
    trained = [subject for subject in evidence.subjects if subject.seeds]
    found: list[dict[str, Any]] = []
    for ours in trained:
        for theirs in (named[name] for name in rivals(ours.name) if name in named):
            found += _pairs(evidence, boots, (ours, ""), (theirs, ""))
        if TEXT in named:
            found += _pairs(evidence, boots, (ours, "-text"), (named[TEXT], ""))
    for subject in [*trained, *([named[BASE]] if BASE in named else [])]:
        found += _pairs(evidence, boots, (subject, ""), (subject, "-wrong-audio"))
    for left, right in ((TEXT, BASE), (TEXT, "self-cascade"), ("self-cascade", BASE), ("cascade", BASE)):
        if left in named and right in named:
            found += _pairs(evidence, boots, (named[left], ""), (named[right], ""))
    family = [row for row in found if row["headline"]]
    for row, adjusted in zip(family, holm([row["p"] for row in family]), strict=True):
        row["p_holm"] = rounded(adjusted)
    return found


def rivals(arm: str) -> tuple[str, ...]:
    """Whom an arm is compared with. kd - sft says all that sft - kd would, which would inflate the adjustment."""
    if arm in DISTILLED:
        return (BASE, "sft") if arm == "kd" else (BASE,)
    return (BASE, *DISTILLED)


def _pairs(
    evidence: Evidence, boots: Mapping[str, Bootstrap], ours: tuple[Subject, str], theirs: tuple[Subject, str]
) -> list[dict[str, Any]]:
    """One comparison per task and metric that both sides have. A side is a subject and a suffix of the task."""
    (left, left_side), (right, right_side) = ours, theirs
    rows = []
    for task in (task for task in evidence.tasks() if task not in SIDES):
        a, b = evidence.table(left, task + left_side), evidence.table(right, task + right_side)
        shared = [name for name in METRICS if name in a.metrics() and name in b.metrics()] if a and b else []
        for name in (name for name in shared if METRICS[name].higher_is_better is not None):
            optimised = (name in left.optimised, name in right.optimised)
            claim = bool(left.seeds) and left.name != right.name and not (left_side or right_side)
            found = boots[task].compare(a.values(name), b.values(name))
            rows.append(
                {
                    "task": task,
                    "metric": name,
                    "a": left.name + left_side,
                    "b": right.name + right_side,
                    **comparison_row(found),
                    "p_holm": None,
                    "headline": claim and METRICS[name].headline and not any(optimised),
                    "optimised": any(optimised),
                    "higher_is_better": METRICS[name].higher_is_better,
                }
            )
    return rows


def comparison_row(found: Comparison) -> dict[str, Any]:
    """A comparison as JSON values."""
    return {
        "difference": rounded(found.difference.value),
        "ci_low": rounded(found.difference.low),
        "ci_high": rounded(found.difference.high),
        "n": found.difference.n,
        "p": rounded(found.p),
        "wins": found.wins,
        "losses": found.losses,
        "ties": found.ties,
        "sign_p": rounded(found.sign_p),
        "effect": rounded(found.effect),
    }


def rounded(value: float | None) -> float | None:
    """Six digits after the point; None for what is not a number."""
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


def headline_metrics(results: Mapping[str, Any]) -> list[str]:
    """Headline metrics that these results hold."""
    return headlines(row["metric"] for row in results["rows"])
