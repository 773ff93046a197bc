"""Score rows as arrays: one number per instruction, the mean over its views and seeds. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rows = Sequence[Mapping[str, Any]]


class Table:
    """All score rows of one arm (any number of seeds) on one task.

    Instructions stand in the order of `examples`; the order of rows never matters. Only sample 0 of a view counts,
    so that an instruction's voices weigh alike; further samples serve consistency alone.
    """

    def __init__(self, examples: Sequence[str], rows: Rows) -> None:
        self.examples = list(examples)
        self._rows = sorted((row for row in rows if row["sample"] == 0), key=lambda row: (row["example"], row["view"]))
        self._place = {example: i for i, example in enumerate(self.examples)}
        self._rows = [row for row in self._rows if row["example"] in self._place]

    def metrics(self) -> list[str]:
        """Names of the metrics that any row has a score for."""
        return sorted({name for row in self._rows for name, value in row["scores"].items() if value is not None})

    def __bool__(self) -> bool:
        return bool(self._rows)

    def values(self, metric: str) -> np.ndarray:
        """(n,) float64: each instruction's mean; NaN where nothing is scored."""
        return _means([(self._place[row["example"]], row["scores"].get(metric)) for row in self._rows], self.n)

    def unscored(self, metric: str) -> int:
        """Answers without a score for the metric."""
        return sum(row["scores"].get(metric) is None for row in self._rows)

    def voices(self) -> list[str]:
        """Every voice of these rows, sorted."""
        return sorted({row["voice"] for row in self._rows})

    def by_voice(self, metric: str) -> np.ndarray:
        """(n, voices) float64 in the order of `voices()`; NaN where a voice did not say the instruction."""
        columns = []
        for voice in self.voices():
            own = [row for row in self._rows if row["voice"] == voice]
            columns.append(_means([(self._place[row["example"]], row["scores"].get(metric)) for row in own], self.n))
        return np.stack(columns, axis=1) if columns else np.zeros((self.n, 0))

    def word_errors(self, voice: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Errors and words of what was heard, summed by instruction: (n,), (n,); NaN where nothing was heard."""
        errors, words = np.full(self.n, np.nan), np.full(self.n, np.nan)
        for row in self._rows:
            if row["wer"] is not None and voice in (None, row["voice"]):
                place = self._place[row["example"]]
                errors[place] = np.nan_to_num(errors[place]) + row["wer"][0]
                words[place] = np.nan_to_num(words[place]) + row["wer"][1]
        return errors, words

    def flips(self, metric: str = "qa") -> np.ndarray:
        """(n,) `flip_rate` of each instruction over its voices."""
        return np.array([flip_rate(marks) for marks in self.by_voice(metric)])

    @property
    def n(self) -> int:
        """Instructions."""
        return len(self.examples)


def flip_rate(marks: np.ndarray) -> float:
    """Share of pairs of right-or-wrong marks (K,) that differ; NaN entries left out, NaN below two marks."""
    known = marks[~np.isnan(marks)]
    pairs = len(known) * (len(known) - 1) / 2
    return float(known.sum() * (len(known) - known.sum()) / pairs) if pairs else float("nan")


def _means(pairs: Sequence[tuple[int, float | None]], n: int) -> np.ndarray:
    sums, counts = np.zeros(n), np.zeros(n)
    for place, value in pairs:
        if value is not None:
            sums[place] += value
            counts[place] += 1
    with np.errstate(invalid="ignore"):
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def answer_vectors(
    examples: Sequence[str], answers: Rows, embed: Any
) -> tuple[list[str], list[np.ndarray], list[np.ndarray]]:
    """For consistency: instructions with two or more voices, their answers' vectors by voice, and on one audio.

    `embed` maps texts to unit vectors (N, D). Rows of several seeds must be measured seed by seed: answers of two
    models to one clip are not resamples. Repeats are the samples of the one view that has several.
    """
    vectors = embed([row["answer"] for row in answers])
    voices: dict[str, dict[int, int]] = defaultdict(dict)
    samples: dict[tuple[str, int], dict[int, int]] = defaultdict(dict)
    for i, row in enumerate(answers):
        samples[row["example"], row["view"]][row["sample"]] = i
        if row["sample"] == 0:
            voices[row["example"]][row["view"]] = i
    kept = [example for example in examples if len(voices[example]) > 1]
    repeated = {example: places for (example, _), places in samples.items() if len(places) > 1}
    width = vectors.shape[1] if len(answers) else 1
    return (
        kept,
        [vectors[[place for _, place in sorted(voices[example].items())]] for example in kept],
        [
            vectors[[place for _, place in sorted(repeated.get(example, {}).items())]].reshape(-1, width)
            for example in kept
        ],
    )
