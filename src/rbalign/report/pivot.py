"""Looking things up in results.json: the page's tables and figures ask here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

REFERENCES = ("text", "cascade", "self-cascade")
LABELS = {
    "chrf": "chrF",
    "wordllama": "similarity (WordLlama)",
    "similarity": "similarity (MiniLM)",
    "similarity-answer": "similarity to y_ref",
    "teacher-likelihood": "teacher likelihood",
    "qa": "QA accuracy",
    "flip-rate": "QA flip rate",
    "nll": "NLL of y_ref",
    "wer": "WER of heard",
    "tokens": "tokens",
    "truncated": "cut off",
    "surprisal": "own surprisal",
    "echo": "request's words",
    "failed": "failed",
}
TABLE_ORDER = tuple(LABELS)
UNITS = {"chrf": "0 to 1", "wordllama": "cosine", "similarity": "cosine", "qa": "share right", "tokens": "tokens"}
"""Units of what figures show."""
CURVES = {
    "loss": ("loss", "nats"),
    "single_loss": ("loss of single", "nats"),
    "group_loss": ("loss of group", "nats"),
    "grpo_loss": ("loss of grpo", "no unit"),
    "opd_loss": ("loss of opd", "nats"),
    "ce_loss": ("loss of ce", "nats"),
    "margin": ("margin", "nats"),
    "reward": ("reward", "scorer's scale"),
    "kl": ("KL", "nats a token"),
    "gradient_norm": ("gradient norm", "no unit"),
    "grad_norm": ("gradient norm", "no unit"),
    "length_difference": ("length difference", "tokens"),
}
"""Training quantities worth a figure: how they are called, and their unit."""
READING = "open-text"
"""The task in which an arm reads what it otherwise hears: what alignment gave reading did not close the gap."""
SIMILARITIES = {"wordllama": ("wordllama", "WordLlama"), "similarity": ("minilm", "MiniLM")}
"""Metrics that are a cosine -> their embedder, in consistency's names and for people; nobody's reward first."""
HEADLINES = ("chrf", "wordllama", "qa")
LOWER_IS_BETTER = {"nll", "wer", "flip-rate"}


@dataclass(frozen=True)
class Results:
    """results.json with questions asked of it."""

    value: Mapping[str, Any]

    @property
    def rows(self) -> Sequence[Row]:
        """Every result row."""
        found: Sequence[Row] = self.value.get("rows", ())
        return found

    @property
    def comparisons(self) -> Sequence[Row]:
        """Every paired comparison."""
        found: Sequence[Row] = self.value.get("comparisons", ())
        return found

    def arms(self) -> list[str]:
        """Subjects in the order of the file, base first and the references last."""
        names = list(dict.fromkeys(row["arm"] for row in self.rows))
        middle = [name for name in names if name != "base" and name not in REFERENCES]
        return [n for n in ("base",) if n in names] + middle + [n for n in reversed(REFERENCES) if n in names]

    def trained(self) -> list[str]:
        """Arms that were trained."""
        return [name for name in self.arms() if name != "base" and name not in REFERENCES]

    def find(self, arm: str, metric: str, task: str | None = None) -> Row | None:
        """The pooled row of an arm; where one seed is all there is, that row."""
        own = [r for r in self.rows if r["arm"] == arm and r["metric"] == metric and task in (None, r["task"])]
        own = own if task else [row for row in own if "-" not in row["task"]]
        return next((row for row in own if row["seed"] is None), own[0] if own else None)

    def shown(self, arm: str, task: str, metric: str) -> Row | None:
        """The main table's row behind a cell; base reads as the text LLM does, for it is the same weights."""
        if task == READING and arm in ("base", "text"):
            return self.find("text", metric, "open")
        return self.find(arm, metric, task)

    def similarity(self) -> str | None:
        """The first similarity that open answers were measured with."""
        return next((metric for metric in SIMILARITIES if any(r["task"] == "open" for r in self._all(metric))), None)

    def facets(self) -> dict[tuple[str, str], str]:
        """(task, metric) -> label: sides of the similarity that the main table shows, too."""
        metric = self.similarity()
        if metric is None:
            return {}
        embedder, short = SIMILARITIES[metric]
        sides = {
            (READING, metric): "own reading",
            ("open-wrong-audio", metric): "wrong audio",
            ("open", f"{metric}/worst-voice"): "worst voice",
            ("open", f"consistency:{embedder}/headline"): "consistency",
        }
        present = {(row["task"], row["metric"]) for row in self.rows}
        return {pair: f"{what} ({short})" for pair, what in sides.items() if pair in present}

    def columns(self) -> list[tuple[str, str]]:
        """(task, metric) of the main table's columns, headlines first, sides of the similarity last."""
        present = {(row["task"], row["metric"]) for row in self.rows}
        # Length, cuts and failures of open answers stand for all; the same columns of qa would repeat them.
        order = [(t, m) for m in TABLE_ORDER for t in ("open", "qa", "nll") if (t, m) in present]
        seen: set[str] = set()
        kept = [(t, m) for t, m in order if not (m in seen or seen.add(m))]  # type: ignore[func-returns-value]
        quiet = {("open", "failed")} if not any(row["value"] for row in self._all("failed")) else set()
        return [pair for pair in kept if pair not in quiet] + list(self.facets())

    def _all(self, metric: str) -> list[Row]:
        return [row for row in self.rows if row["metric"] == metric]

    def voices(self, metric: str) -> dict[str, dict[str, Row]]:
        """Voice -> arm -> row."""
        found: dict[str, dict[str, Row]] = {}
        for row in self.rows:
            if row["metric"].startswith(f"{metric}/voice:") and (row["seed"] is None or row["seed"] >= 0):
                found.setdefault(row["voice"], {}).setdefault(row["arm"], row)
        return dict(sorted(found.items()))

    def embedders(self) -> list[str]:
        """Embedders that consistency was measured with, the one that is nobody's reward first."""
        names = {r["metric"].split(":")[1].split("/")[0] for r in self.rows if r["metric"].startswith("consistency:")}
        return sorted(names, key=lambda name: (name == "minilm", name))


def label(metric: str) -> str:
    """A metric's name for people."""
    return LABELS.get(metric, metric)


def axis(metric: str) -> str:
    """A metric's name and unit, for an axis."""
    return f"{label(metric)}, {UNITS[metric]}" if metric in UNITS else label(metric)


def lower_is_better(row: Row) -> bool:
    """Of a comparison, which says so itself where its metric's name does not."""
    return bool(row.get("lower_is_better", row["metric"] in LOWER_IS_BETTER))


def digits(metric: str) -> int:
    """Digits after the point; a metric in percent is called so: `accuracy, %`."""
    return {"tokens": 1, "characters": 0, "updates": 0}.get(metric, 1 if metric.endswith("%") else 3)


def show(value: float | None, metric: str = "") -> str:
    """A number for a table; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits(metric)}f}"


def signed(row: Row) -> str:
    """`+0.031 (+0.004 to +0.058)`: a comparison's difference and interval."""
    places = digits(row["metric"])
    difference, low, high = (f"{row[name]:+.{places}f}" for name in ("difference", "ci_low", "ci_high"))
    return f"{difference} ({low} to {high})"
