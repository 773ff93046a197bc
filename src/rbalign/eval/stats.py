"""Intervals and tests, numpy only. The resampled unit is the instruction, with all its views, samples and seeds.

Input is always one number (or one row) per instruction: the mean over its views, samples and seeds. NaN marks an
instruction that has no score; it leaves the mean, never becomes zero, and callers count it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

LEVEL = 0.95


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


class Bootstrap:
    """Resamples of n instructions, drawn once and shared by every statistic, so that differences stay paired.

    Memory: resamples x n float32, for 2,000 x 1,000 that is 8 MB.
    """

    def __init__(self, n: int, resamples: int, generator: np.random.Generator) -> None:
        self.n, self.resamples = n, resamples
        picks = generator.integers(0, max(n, 1), size=(resamples, n)) + (np.arange(resamples) * n)[:, None]
        self.counts = np.bincount(picks.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float32)

    @cached_property
    def _everyone(self) -> np.ndarray:
        return np.ones((1, self.n), dtype=np.float32)

    def means(self, values: np.ndarray) -> np.ndarray:
        """Mean of each column in each resample: (n,) or (n, m) -> (1 + B,) or (1 + B, m); entry 0 is the sample's own.

        NaN entries carry no weight; a resample without any scored instruction gives NaN.
        """
        values = np.asarray(values, dtype=np.float64)
        scored = ~np.isnan(values)
        filled = np.where(scored, values, 0.0)
        weights = np.concatenate([self._everyone, self.counts])
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((weights @ filled) / (weights @ scored.astype(np.float64)))

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
        return Comparison(
            difference, self.p_value(draws), wins, losses, len(known) - wins - losses, sign_test(wins, losses)
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


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided binomial p-value of wins against losses at even odds; 1.0 without either."""
    trials = wins + losses
    tail = sum(math.comb(trials, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / (1 << trials))


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment (1979): valid for any dependence between the tests. Order is kept."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = running
    return adjusted
