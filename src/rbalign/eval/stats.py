"""Intervals and tests, numpy only. The resampled unit is the instruction, with all its views, samples and seeds.

Input is always one number (or one row) per instruction: the mean over its views, samples and seeds. NaN marks an
instruction that has no score; it leaves the mean, never becomes zero, and callers count it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
BLOCK = 2_000_000
"""Draws that are in memory as 64-bit numbers at once: 16 MB for each of a few arrays."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its percentile interval over resampled instructions."""

    value: float
    low: float
    high: float
    n: int
    """Instructions that have a score."""

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired difference between two arms over the same instructions."""

    difference: Estimate
    p: float
    """Two-sided bootstrap p-value of the mean difference; at least 2 / (resamples + 1)."""
    wins: int
    losses: int
    ties: int
    sign_p: float
    """Exact two-sided sign test over instructions, ties left out."""
    effect: float = math.nan
    """Mean of the differences over their standard deviation (Cohen's d of paired values); NaN where they are equal."""


class Bootstrap:
    """Resamples of n instructions, drawn once and shared by every statistic, so that differences stay paired.

    Memory: resamples x n bytes, twice that from 256 instructions: for 10,000 x 10,000 200 MB. All else is done in
    blocks of resamples; the draws do not depend on the size of a block.
    """

    def __init__(self, n: int, resamples: int, generator: np.random.Generator) -> None:
        self.n, self.resamples = n, resamples
        # How often an instruction is drawn: at most n times.
        self.counts = np.zeros((resamples, n), dtype=np.uint8 if n < 256 else np.uint16)
        for start, stop in self._blocks():
            rows = stop - start
            picks = generator.integers(0, max(n, 1), size=(rows, n)) + (np.arange(rows) * n)[:, None]
            self.counts[start:stop] = np.bincount(picks.ravel(), minlength=rows * n).reshape(rows, n)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of resamples that hold about BLOCK draws each."""
        rows = max(1, BLOCK // max(self.n, 1))
        return ((start, min(start + rows, self.resamples)) for start in range(0, self.resamples, rows))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sums of columns in each resample: (n,) or (n, m) -> (1 + B,) or (1 + B, m); entry 0 is the sample's own."""
        values = np.asarray(values, dtype=np.float64)
        out = np.empty((1 + self.resamples, *values.shape[1:]))
        out[0] = values.sum(axis=0)
        for start, stop in self._blocks():
            out[1 + start : 1 + stop] = self.counts[start:stop].astype(np.float64) @ values
        return out

    def means(self, values: np.ndarray) -> np.ndarray:
        """Mean of each column in each resample: (n,) or (n, m) -> (1 + B,) or (1 + B, m); entry 0 is the sample's own.

        NaN entries carry no weight; a resample without any scored instruction gives NaN.
        """
        values = np.asarray(values, dtype=np.float64)
        scored = ~np.isnan(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.sums(np.where(scored, values, 0.0)) / self.sums(scored.astype(np.float64)))

    def estimate(self, draws: np.ndarray, n: int) -> Estimate:
        """Percentile interval of a statistic: draws (1 + B,), entry 0 its value on the sample itself."""
        usable = draws[1:][np.isfinite(draws[1:])]
        if not len(usable) or not np.isfinite(draws[0]):
            return Estimate(math.nan, math.nan, math.nan, n)
        low, high = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(float(draws[0]), float(low), float(high), n)

    def mean(self, values: np.ndarray) -> Estimate:
        """The mean over instructions: values (n,)."""
        return self.estimate(self.means(values), int((~np.isnan(values)).sum()))

    def ratio(self, numerators: np.ndarray, denominators: np.ndarray) -> Estimate:
        """Sum over sum, for corpus-level rates such as WER: errors (n,) over words (n,)."""
        both = np.where(np.isnan(numerators) | np.isnan(denominators), np.nan, 1.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = self.means(numerators * both) / self.means(denominators * both)
        return self.estimate(draws, int((both == 1.0).sum()))

    def worst_column(self, values: np.ndarray, *, higher_is_better: bool = True) -> tuple[Estimate, int]:
        """The worst column's mean and which column it is: values (n, m), for example one column a voice.

        The worst is looked for again in every resample, so the interval covers the choice, too.
        """
        means = self.means(values)
        worst = np.nanmin(means, axis=1) if higher_is_better else np.nanmax(means, axis=1)
        which = int(np.nanargmin(means[0]) if higher_is_better else np.nanargmax(means[0]))
        return self.estimate(worst, int((~np.isnan(values)).any(axis=1).sum())), which

    def compare(self, ours: np.ndarray, theirs: np.ndarray) -> Comparison:
        """Paired difference ours - theirs over instructions that both have scores for: (n,), (n,)."""
        gaps = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
        draws = self.means(gaps)
        known = gaps[~np.isnan(gaps)]
        wins, losses = int((known > 0).sum()), int((known < 0).sum())
        difference = self.estimate(draws, len(known))
        ties = len(known) - wins - losses
        return Comparison(
            difference, self.p_value(draws), wins, losses, ties, sign_test(wins, losses), effect_size(known)
        )

    def p_value(self, draws: np.ndarray) -> float:
        """Two-sided: how often resamples of a difference, draws (1 + B,), cross zero; at least 2 / (B + 1)."""
        usable = draws[1:][np.isfinite(draws[1:])]
        if not len(usable):
            return 1.0
        tail = min(int((usable <= 0).sum()), int((usable >= 0).sum()))
        return min(1.0, 2 * (tail + 1) / (len(usable) + 1))

    def gap_closed(self, arm: np.ndarray, base: np.ndarray, text: np.ndarray) -> Estimate | None:
        """(m_arm - m_base) / (m_text - m_base), a ratio of means over the same instructions: each (n,).

        None unless the interval of m_text - m_base excludes zero: without a gap there is nothing to close.
        """
        known = ~(np.isnan(arm) | np.isnan(base) | np.isnan(text))
        mask = np.where(known, 1.0, np.nan)
        whole = self.means((text - base) * mask)
        if not known.any() or not self.estimate(whole, int(known.sum())).excludes_zero:
            return None
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.estimate(self.means((arm - base) * mask) / whole, int(known.sum()))


def effect_size(differences: np.ndarray) -> float:
    """Mean over standard deviation (n - 1); NaN where that is not defined."""
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return float(differences.mean()) / spread if spread > 0 else math.nan


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided binomial p-value of wins against losses at even odds; 1.0 without either."""
    trials = wins + losses
    term = tail = 1
    for k in range(min(wins, losses)):  # whole binomial coefficients, each from the one before it
        term = term * (trials - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << trials))


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment (1979): valid for any dependence between the tests. Order is kept."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = running
    return adjusted
