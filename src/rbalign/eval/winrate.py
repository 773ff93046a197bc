"""Win rate against a named opponent, and the same at equal length. No torch.

An item's label is soft: the mean of a judge's preference in both orders of showing, so that what a judge gives for the
place alone cancels. With x = tanh((opponent's characters - own characters) / sd of that difference), the model of
length is P(win) = sigmoid(theta + phi x), fitted as the most probable (theta, phi) under a normal prior on phi; the
length-controlled win rate is sigmoid(theta), P at equal length (after AlpacaEval 2, arXiv 2404.04475, without its
difficulty term, which is tied to its 805 prompts).

The prior's mean is that of 200 published AlpacaEval 2 coefficients, its precision 0.2 n: on 58 models it missed the
official number by 2.3 points on average, the free fit by 6.6. It is the taste of LLM judges and serves them alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rbalign.eval.stats import Bootstrap, Estimate

PRIOR_MEAN = -1.5
PRIOR_PRECISION = 0.2
"""Of the prior on phi, for each item."""
FARTHEST = 15.0
"""Bound of theta: where every item is won, the most probable theta is infinite. sigmoid(15) is 1 - 3e-7."""
STEPS = 100


@dataclass(frozen=True, slots=True)
class LengthFit:
    """The most probable parameters, and x of every item."""

    theta: float
    phi: float
    x: np.ndarray

    @property
    def win_rate(self) -> float:
        """P(win) at equal length."""
        return float(sigmoid(np.array(self.theta)))


def sigmoid(z: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-z)) without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * z)))


def fit(
    labels: np.ndarray,
    own: np.ndarray,
    others: np.ndarray,
    *,
    mean: float = PRIOR_MEAN,
    precision: float = PRIOR_PRECISION,
) -> LengthFit:
    """Maximise sum(y log p + (1 - y) log(1 - p)) - precision n (phi - mean)^2 / 2: Newton steps, halved if too long.

    labels: (n,) in 0..1; own, others: (n,) characters. Where all differences are equal, phi is the prior's mean.
    """
    x = _length_term(own, others)
    weight = precision * len(labels)

    def value(theta: float, phi: float) -> float:
        z = theta + phi * x
        return float((labels * z - np.logaddexp(0.0, z)).sum() - 0.5 * weight * (phi - mean) ** 2)

    theta, phi = 0.0, mean
    best = value(theta, phi)
    for _ in range(STEPS):
        step = _newton(labels, x, theta, phi, weight, mean)
        size = 1.0
        while size > 1e-6:
            ahead = (float(np.clip(theta + size * step[0], -FARTHEST, FARTHEST)), phi + size * step[1])
            if (reached := value(*ahead)) > best:
                break
            size /= 2
        else:
            break
        gained, best, (theta, phi) = reached - best, reached, ahead
        if gained < 1e-12 * max(1.0, abs(best)):
            break
    return LengthFit(theta, phi, x)


def length_controlled(
    boot: Bootstrap, labels: np.ndarray, own: np.ndarray, others: np.ndarray
) -> tuple[Estimate, LengthFit]:
    """P(win) at equal length with its interval over resampled items, and the fit.

    A resample takes one Newton step from the whole sample's optimum instead of a fit of its own (it is second-order
    exact, and 10,000 resamples are then one product); sd stays the sample's.
    """
    found = fit(labels, own, others)
    p = sigmoid(found.theta + found.phi * found.x)
    residual, spread = labels - p, p * (1 - p)
    parts = np.stack([residual, residual * found.x, spread, spread * found.x, spread * found.x**2], axis=1)
    g_theta, g_phi, h_tt, h_tp, h_pp = boot.means(parts).T
    g_phi = g_phi - PRIOR_PRECISION * (found.phi - PRIOR_MEAN)
    h_pp = h_pp + PRIOR_PRECISION
    determinant = np.maximum(h_tt * h_pp - h_tp**2, 1e-12)
    thetas = np.clip(found.theta + (h_pp * g_theta - h_tp * g_phi) / determinant, -FARTHEST, FARTHEST)
    thetas[0] = found.theta
    return boot.estimate(sigmoid(thetas), len(labels)), found


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What a judge said of items shown in both orders: preference for our answer, None where it said nothing usable."""

    first: Sequence[float | None]
    """Ours was shown first."""
    second: Sequence[float | None]
    """Ours was shown second."""

    def labels(self) -> np.ndarray:
        """(n,) soft labels; an order without a usable verdict is a tie, so that a mirror of the match mirrors them."""
        orders = [[0.5 if one is None else one for one in order] for order in (self.first, self.second)]
        return np.asarray(np.array(orders, dtype=np.float64).reshape(2, -1).mean(axis=0))

    @property
    def unparsed(self) -> int:
        """Verdicts that could not be read, of two an item."""
        return sum(one is None for one in [*self.first, *self.second])

    def agreement(self) -> float | None:
        """Share of items that both orders judge alike, among those with two verdicts; None without any."""
        both = [one == other for one, other in zip(self.first, self.second, strict=True) if None not in (one, other)]
        return sum(both) / len(both) if both else None


def _length_term(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    gaps = np.asarray(others, dtype=np.float64) - np.asarray(own, dtype=np.float64)
    spread = float(gaps.std()) if len(gaps) else 0.0
    return np.asarray(np.tanh(gaps / spread)) if spread > 0 else np.zeros_like(gaps)


def _newton(
    labels: np.ndarray, x: np.ndarray, theta: float, phi: float, weight: float, mean: float
) -> tuple[float, float]:
    p = sigmoid(theta + phi * x)
    spread = p * (1 - p)
    g_theta, g_phi = float((labels - p).sum()), float(((labels - p) * x).sum() - weight * (phi - mean))
    h_tt, h_tp, h_pp = float(spread.sum()), float((spread * x).sum()), float((spread * x**2).sum() + weight)
    determinant = h_tt * h_pp - h_tp**2
    if not math.isfinite(determinant) or determinant <= 1e-12:
        return 0.0, 0.0
    return (h_pp * g_theta - h_tp * g_phi) / determinant, (h_tt * g_phi - h_tp * g_theta) / determinant
