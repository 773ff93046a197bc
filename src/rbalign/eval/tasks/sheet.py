"""What all kinds of tasks share: who answered what, one value an instruction, figures with interval and protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rbalign.eval.results import rounded
from rbalign.eval.stats import Bootstrap, Estimate
from rbalign.eval.tasks.items import TaskData, TaskItem
from rbalign.eval.tasks.registry import Task
from rbalign.keys import Key

Status = Literal["answered", "missing", "failed"]
Responses = Mapping[str, str | None]
"""Id -> response; None where the model that was asked failed."""

PERCENT = "%"


@dataclass
class Sheet:
    """One file of responses to a task's items, and the figures made of them."""

    task: Task
    data: TaskData
    responses: Responses
    resamples: int
    seed: int = 0
    figures: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Item's id -> metric -> its own score."""
    extra: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Item's id -> what else its sample says."""
    draws: dict[str, np.ndarray] = field(default_factory=dict)
    """Headline metric -> (1 + B,) its value and its resamples, for what is made of several sheets."""
    notes: list[str] = field(default_factory=list)
    unparsed: int = 0
    """Judgements that could not be read, or were never given."""
    _boots: dict[tuple[str, int], Bootstrap] = field(default_factory=dict)

    def beside(self, responses: Responses) -> Sheet:
        """Another file's responses to the same items, with the same resamples: differences stay paired."""
        return Sheet(self.task, self.data, responses, self.resamples, self.seed, _boots=self._boots)

    def status(self, item: TaskItem) -> Status:
        """Whether there is an answer; an empty string is one."""
        if item.id not in self.responses:
            return "missing"
        return "failed" if self.responses[item.id] is None else "answered"

    def text(self, item: TaskItem) -> str:
        """The answer; empty where there is none."""
        return self.responses.get(item.id) or ""

    def bootstrap(self, part: str, n: int) -> Bootstrap:
        """Resamples of a part's instructions: the same ones for every statistic and every file of responses."""
        if (part, n) not in self._boots:
            generator = Key(self.seed, "task", example=f"{self.task.kind} {part}").generator()
            self._boots[part, n] = Bootstrap(n, self.resamples, generator)
        return self._boots[part, n]

    def put(self, item: TaskItem, metric: str, value: float | None) -> None:
        """An item's own score."""
        self.scores.setdefault(item.id, {})[metric] = value

    def by_unit(self, items: Sequence[TaskItem], metric: str, units: Sequence[str] | None = None) -> np.ndarray:
        """(n,) mean score of each instruction in the order of `units`, by default all of these items'; NaN unscored."""
        own: dict[str, list[float]] = {}
        for item in items:
            value = self.scores[item.id][metric]
            own.setdefault(item.unit, []).extend([] if value is None else [value])
        order = sorted(own) if units is None else units
        return np.array([float(np.mean(own[unit])) if own.get(unit) else np.nan for unit in order])

    def headline(self, metric: str, values: np.ndarray) -> Estimate:
        """The mean over instructions, values (n,), whose resamples are kept."""
        boot = self.bootstrap("", len(values))
        self.draws[metric] = boot.means(values)
        return boot.estimate(self.draws[metric], int((~np.isnan(values)).sum()))

    def figure(
        self, metric: str, part: str, estimate: Estimate | None, protocol: str, unit: str = PERCENT, **more: Any
    ) -> None:
        """A row of the result; rates are shown in percent. None: left open, with `note` for the reason."""
        scale = 100.0 if unit == PERCENT else 1.0
        value, low, high, n = (
            (estimate.value * scale, estimate.low * scale, estimate.high * scale, estimate.n)
            if estimate
            else (None, None, None, 0)
        )
        self.figures.append(
            {
                "task": self.task.name,
                "metric": metric,
                "part": part,
                "value": rounded(value),
                "ci_low": rounded(low),
                "ci_high": rounded(high),
                "n": n,
                "unit": unit,
                "protocol": f"{self.task.name}, data {self.data.content}; {protocol}",
                **more,
            }
        )

    def counts(self) -> dict[str, int]:
        """The denominator and what is in it."""
        states = [self.status(item) for item in self.data.items]
        asked = {item.id for item in self.data.asked}
        return {
            "items": len(states),
            "answered": states.count("answered"),
            "missing": states.count("missing"),
            "failed": states.count("failed"),
            "unparsed": self.unparsed,
            "left_out": self.data.left_out,
            "passed_over": sum(name not in asked for name in self.responses),
        }

    def samples(self) -> list[dict[str, Any]]:
        """One row an item, in the order of their ids."""
        return [
            {
                "id": item.id,
                "unit": item.unit,
                "part": item.part,
                "status": self.status(item),
                "response": self.responses.get(item.id),
                "scores": {name: rounded(value) for name, value in self.scores.get(item.id, {}).items()},
                **self.extra.get(item.id, {}),
            }
            for item in sorted(self.data.items, key=lambda item: item.id)
        ]
