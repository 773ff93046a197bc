"""Do answers depend on what was asked, and not on who asked? One scale from "any instruction" to "same audio".

    headline = (cross-voice - floor) / (same-audio resampling - floor)

cross-voice: cosine between answers to one instruction in different voices; floor: between answers to different
instructions; ceiling: between fresh samples on the same audio. All at one temperature. A constant answer has raw
cosine 1 and no headline at all, because its ceiling is its floor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rbalign.eval.stats import Bootstrap, Estimate
from rbalign.scorers.consistency import to_others


@dataclass(frozen=True, slots=True)
class Consistency:
    """The headline beside its three parts. `headline` is None where ceiling - floor does not exclude zero."""

    headline: Estimate | None
    raw: Estimate
    """Cross-voice cosine, the paper's number."""
    floor: Estimate
    ceiling: Estimate
    draws: np.ndarray = field(repr=False)
    """(1 + B,) the headline's own value and its resamples; NaN where it is not defined. Arms share resamples, so a
    difference of two is paired."""


def pair_mean(vectors: np.ndarray) -> float:
    """Mean cosine over pairs of distinct rows: unit vectors (k, D) -> float; NaN below two rows."""
    return float(to_others(vectors, range(len(vectors))).mean()) if len(vectors) > 1 else float("nan")


def floor_draws(bootstrap: Bootstrap, centres: np.ndarray) -> np.ndarray:
    """Mean cosine between different instructions in the sample and in each resample: (n, D) -> (1 + B,).

    `centres` are means of unit vectors over an instruction's views, so that a dot product of two is the mean over
    all their pairs. An instruction drawn twice is never paired with itself.
    """
    weights = np.concatenate([np.ones((1, bootstrap.n), np.float32), bootstrap.counts]).astype(np.float64)
    centres = centres.astype(np.float64)
    totals = weights @ centres
    own = (centres**2).sum(axis=1)
    squares = weights**2
    pairs = weights.sum(axis=1) ** 2 - squares.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(((totals**2).sum(axis=1) - squares @ own) / pairs)


def measure(bootstrap: Bootstrap, views: list[np.ndarray], repeats: list[np.ndarray]) -> Consistency:
    """Consistency over n instructions.

    `views[i]` (K_i, D): one answer for each voice of instruction i; `repeats[i]` (S_i, D): samples on one audio of it.
    """
    cross = np.array([pair_mean(rows) for rows in views])
    same = np.array([pair_mean(rows) for rows in repeats])
    centres = np.stack([rows.mean(axis=0) for rows in views])
    cross_draws, same_draws = bootstrap.means(cross), bootstrap.means(same)
    floors = floor_draws(bootstrap, centres)
    room = bootstrap.estimate(same_draws - floors, bootstrap.n)
    known = int((~np.isnan(cross)).sum())
    draws = np.full(len(floors), np.nan)
    if room.low > 1e-6:  # float noise of a constant answerer is about 1e-8
        draws = (cross_draws - floors) / (same_draws - floors)
    return Consistency(
        bootstrap.estimate(draws, known) if room.low > 1e-6 else None,
        bootstrap.estimate(cross_draws, known),
        bootstrap.estimate(floors, len(views)),
        bootstrap.estimate(same_draws, int((~np.isnan(same)).sum())),
        draws,
    )
