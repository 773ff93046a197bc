"""Win rates: soft labels that mirror, a length model that agrees with an outside optimiser, intervals that cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from rbalign.eval.stats import Bootstrap
from rbalign.eval.winrate import PRIOR_MEAN, PRIOR_PRECISION, Verdicts, fit, length_controlled, sigmoid

verdict = st.sampled_from([0.0, 0.5, 1.0, None])


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=seed))


def match(generator, n, theta, phi=PRIOR_MEAN, longer=40.0):
    """Labels of a match whose judge likes length as the prior says; own answers are longer by `longer` on average."""
    others = generator.normal(200, 60, n)
    own = others + generator.normal(longer, 80, n)
    gaps = others - own
    chance = sigmoid(theta + phi * np.tanh(gaps / gaps.std()))
    orders = generator.random((2, n)) < chance
    return orders.mean(axis=0), own, others


def test_labels_by_hand():
    told = Verdicts([1.0, 0.0, 0.5, None, None], [1.0, 1.0, 0.0, 1.0, None])
    assert told.labels().tolist() == [1.0, 0.5, 0.25, 0.75, 0.5]
    assert told.unparsed == 3
    assert told.agreement() == pytest.approx(1 / 3)
    assert Verdicts([None], [1.0]).agreement() is None


@given(st.lists(st.tuples(verdict, verdict), max_size=12))
def test_labels_mirror_when_the_sides_change(orders):
    """The opponent's view of the same judgements: our preference first is 1 - theirs second."""

    def turned(one):
        return None if one is None else 1.0 - one

    first, second = [a for a, _ in orders], [b for _, b in orders]
    ours = Verdicts(first, second).labels()
    theirs = Verdicts([turned(b) for b in second], [turned(a) for a in first]).labels()
    assert np.allclose(ours + theirs, 1.0)


def test_fit_by_hand_without_length():
    """All lengths equal: phi is the prior's mean and P at equal length the mean label."""
    labels = np.array([1.0, 1.0, 1.0, 0.0])
    found = fit(labels, np.full(4, 9.0), np.full(4, 9.0))
    assert found.phi == PRIOR_MEAN
    assert found.theta == pytest.approx(math.log(3), abs=1e-6)
    assert found.win_rate == pytest.approx(0.75)


@pytest.mark.parametrize("seed", range(4))
def test_fit_is_the_optimum_that_scipy_finds(seed):
    labels, own, others = match(rng(seed), 120, theta=0.6)
    gaps = others - own
    x = np.tanh(gaps / gaps.std())

    def loss(at):
        z = at[0] + at[1] * x
        prior = 0.5 * PRIOR_PRECISION * len(x) * (at[1] - PRIOR_MEAN) ** 2
        return float(np.logaddexp(0, z).sum() - (labels * z).sum() + prior)

    outside = minimize(loss, [0.0, 0.0], method="BFGS", options={"gtol": 1e-8}).x
    found = fit(labels, own, others)
    assert (found.theta, found.phi) == pytest.approx(tuple(outside), abs=1e-4)


def test_length_alone_wins_nothing_at_equal_length():
    """Two equal models, one of them longer: the raw win rate says 65 %, at equal length it is about 50."""
    labels, own, others = match(rng(5), 4000, theta=0.0, longer=60.0)
    assert labels.mean() > 0.6
    assert fit(labels, own, others).win_rate == pytest.approx(0.5, abs=0.03)


def test_interval_covers_and_one_step_is_a_refit():
    covered = 0
    for seed in range(200):
        generator = rng(100 + seed)
        arrays = match(generator, 150, theta=0.5)
        estimate, _ = length_controlled(Bootstrap(150, 400, generator), *arrays)
        covered += estimate.low <= 1 / (1 + math.exp(-0.5)) <= estimate.high
    # The prior holds phi at its true mean here, and two orders an item are counted as one label.
    assert 0.9 <= covered / 200 <= 1.0
    labels, own, others = match(rng(7), 150, theta=0.5)
    boot = Bootstrap(150, 200, rng(8))
    estimate, _ = length_controlled(boot, labels, own, others)
    refits = []
    for counts in boot.counts:
        picked = np.repeat(np.arange(150), counts)
        refits.append(fit(labels[picked], own[picked], others[picked]).win_rate)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(refits, [0.025, 0.975])), abs=0.01)


def test_mirrored_match_has_the_mirrored_rate():
    labels, own, others = match(rng(3), 80, theta=0.4)
    assert fit(1 - labels, others, own).win_rate == pytest.approx(1 - fit(labels, own, others).win_rate, abs=1e-6)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.integers(0, 9000), st.integers(0, 9000)),
        min_size=1,
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
def test_total_bounded_and_blind_to_order(rows, random):
    arrays = [np.array(column, dtype=float) for column in zip(*rows, strict=True)]
    estimate, found = length_controlled(Bootstrap(len(rows), 50, rng()), *arrays)
    assert 0 <= estimate.low <= estimate.high <= 1
    assert 0 <= estimate.value <= 1
    random.shuffle(rows)
    other = fit(*(np.array(column, dtype=float) for column in zip(*rows, strict=True)))
    assert other.win_rate == pytest.approx(found.win_rate, abs=1e-5)


def test_all_won_is_all_won():
    own, others = np.array([10.0, 20.0, 30.0]), np.array([12.0, 8.0, 31.0])
    assert fit(np.ones(3), own, others).win_rate > 0.999
    assert fit(np.zeros(3), own, others).win_rate < 0.001
