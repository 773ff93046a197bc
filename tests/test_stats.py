"""Intervals that cover, tests that are exact, and a consistency that a constant answer cannot win."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbalign.eval import consistency
from rbalign.eval.stats import Bootstrap, holm, sign_test


def rng(seed=0):
    return np.random.Generator(np.random.Philox(key=seed))


def test_means_are_the_resampled_means():
    boot = Bootstrap(5, 50, rng())
    values = np.array([1.0, 2.0, np.nan, 4.0, 8.0])
    draws = boot.means(values)
    assert draws[0] == pytest.approx(15 / 4)
    for counts, mean in zip(boot.counts, draws[1:], strict=True):
        picked = np.repeat(values, counts.astype(int))
        assert counts.sum() == 5
        assert mean == pytest.approx(np.nanmean(picked))
    assert np.allclose(boot.means(np.stack([values, values + 1], axis=1))[:, 1], draws + 1)


@pytest.mark.parametrize(("n", "least"), [(48, 0.915), (200, 0.93)])
def test_intervals_of_the_mean_cover(n, least):
    """Skewed data (exponential): about 95 % of intervals hold the true mean; a little less when n is small."""
    covered = 0
    for seed in range(600):
        generator = rng(seed)
        estimate = Bootstrap(n, 400, generator).mean(generator.exponential(1.0, n))
        covered += estimate.low <= 1.0 <= estimate.high
    assert least <= covered / 600 <= 0.98


def test_intervals_of_the_gap_cover():
    """base 0.3, arm 0.4, text 0.5 with a shared item effect: the ratio is 1/2."""
    covered, printed = 0, 0
    for seed in range(500):
        generator = rng(seed)
        item = generator.normal(0, 0.2, 150)
        base, arm, text = (item + mean + generator.normal(0, 0.15, 150) for mean in (0.3, 0.4, 0.5))
        estimate = Bootstrap(150, 400, generator).gap_closed(arm, base, text)
        if estimate is not None:
            printed += 1
            covered += estimate.low <= 0.5 <= estimate.high
    assert printed == 500
    assert 0.92 <= covered / printed <= 0.98


def test_unit_is_the_instruction():
    """Four copies of a row inside an instruction add no certainty: aggregation happens before resampling."""
    x = rng(3).normal(size=60)
    once = Bootstrap(60, 500, rng()).mean(x)
    assert once.high - once.low == pytest.approx(2 * 1.96 * x.std() / math.sqrt(60), rel=0.15)


def test_gap_is_exact_and_withheld_without_a_gap():
    base = rng(1).normal(0.3, 0.05, 80)
    boot = Bootstrap(80, 500, rng())
    estimate = boot.gap_closed(base + 0.05, base, base + 0.2)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.25, 0.25, 0.25))
    noise = rng(2).normal(0, 0.2, 80)
    assert boot.gap_closed(base + 0.5, base, base + noise - noise.mean()) is None
    lower_is_better = boot.gap_closed(-base - 0.05, -base, -base - 0.2)
    assert lower_is_better.value == pytest.approx(0.25)


def test_gap_uses_instructions_that_all_three_scored():
    base, text = np.zeros(10), np.ones(10)
    arm = np.full(10, 0.5)
    arm[:3] = np.nan
    estimate = Bootstrap(10, 200, rng()).gap_closed(arm, base, text)
    assert estimate.n == 7
    assert estimate.value == pytest.approx(0.5)


def test_no_bias_from_order():
    values = rng(5).normal(size=40)
    first = Bootstrap(40, 300, rng(9)).mean(values)
    assert first == Bootstrap(40, 300, rng(9)).mean(values)
    assert first.value == pytest.approx(values.mean())


def test_worst_voice():
    values = np.stack([np.full(30, 0.5), np.full(30, 0.2), np.full(30, np.nan)], axis=1)
    values[:15, 2] = 0.9
    estimate, which = Bootstrap(30, 100, rng()).worst_column(values)
    assert (estimate.value, which) == (pytest.approx(0.2), 1)
    highest, which = Bootstrap(30, 100, rng()).worst_column(values, higher_is_better=False)
    assert (highest.value, which) == (pytest.approx(0.9), 2)


def test_corpus_ratio_is_sum_over_sum():
    estimate = Bootstrap(3, 200, rng()).ratio(np.array([1.0, 0.0, 5.0]), np.array([10.0, 10.0, 10.0]))
    assert estimate.value == pytest.approx(0.2)
    assert estimate.low >= 0.0


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 0), (8, 2), (7, 7), (1, 9), (300, 240)])
def test_sign_test_is_the_enumerated_binomial(wins, losses):
    trials = wins + losses
    if trials <= 16:
        extreme = max(wins, losses)
        hits = sum(
            max(sum(flips), trials - sum(flips)) >= extreme for flips in itertools.product((0, 1), repeat=trials)
        )
        assert sign_test(wins, losses) == pytest.approx(min(1.0, hits / 2**trials))
    else:  # normal approximation with continuity correction
        z = (abs(wins - losses) - 1) / math.sqrt(trials)
        assert sign_test(wins, losses) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)


def test_compare_counts_flips_and_finds_the_shift():
    ours = np.array([1.0, 1.0, 0.0, 1.0, np.nan] * 20)
    theirs = np.array([0.0, 1.0, 0.0, 0.0, 1.0] * 20)
    result = Bootstrap(100, 2000, rng()).compare(ours, theirs)
    assert (result.wins, result.losses, result.ties) == (40, 0, 40)
    assert result.difference.value == pytest.approx(0.5)
    assert result.difference.excludes_zero
    assert result.p == pytest.approx(2 / 2001)
    assert Bootstrap(100, 2000, rng()).compare(ours, ours).p == 1.0


def test_p_values_are_calibrated_under_no_difference():
    rejected = 0
    for seed in range(500):
        generator = rng(1000 + seed)
        a, b = generator.normal(size=(2, 100))
        rejected += Bootstrap(100, 400, generator).compare(a, b).p <= 0.05
    assert 0.025 <= rejected / 500 <= 0.085


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.7, 0.8]) == [1.0, 1.0]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_order_and_never_lowers(p_values):
    adjusted = holm(p_values)
    assert all(0 <= p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert [q for _, q in pairs] == sorted(q for _, q in pairs)


def unit(array):
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def answers(generator, n, voice_noise, sample_noise, topic=1.0):
    """n instructions x 4 voices, and 2 samples on one audio, around a shared direction and an own topic."""
    centre = 0.7 * unit(generator.normal(size=32)) + topic * unit(generator.normal(size=(n, 1, 32)))
    voices = voice_noise * unit(generator.normal(size=(n, 4, 32)))
    spread = sample_noise * unit(generator.normal(size=(n, 6, 32)))
    return unit(centre + voices + spread[:, :4]), unit(centre + voices[:, :1] + spread[:, 4:])


def test_consistency_reads_the_scale():
    boot = Bootstrap(120, 300, rng())
    deaf_to_voice = consistency.measure(boot, *map(list, answers(rng(1), 120, 0.0, 0.5)))
    voice_bound = consistency.measure(boot, *map(list, answers(rng(1), 120, 1.0, 0.5)))
    assert deaf_to_voice.headline.value == pytest.approx(1.0, abs=0.06)
    assert voice_bound.headline.value < 0.7
    assert deaf_to_voice.floor.value < voice_bound.raw.value < deaf_to_voice.ceiling.value


def test_constant_answer_has_no_headline():
    same = unit(np.ones((50, 4, 8)))
    result = consistency.measure(Bootstrap(50, 200, rng()), list(same), list(same[:, :2]))
    assert result.raw.value == pytest.approx(1.0)
    assert result.headline is None


def test_answers_blind_to_the_instruction_have_no_headline():
    """Fresh noise whatever is asked: cosine may be high, but resampling is no closer than another instruction."""
    result = consistency.measure(Bootstrap(60, 300, rng()), *map(list, answers(rng(4), 60, 0.0, 0.3, topic=0.0)))
    assert result.raw.value > 0.7
    assert result.headline is None


def test_floor_equals_the_brute_force():
    views, _ = answers(rng(2), 12, 0.5, 0.5)
    boot = Bootstrap(12, 30, rng())
    draws = consistency.floor_draws(boot, views.mean(axis=1))
    for counts, draw in zip(np.concatenate([np.ones((1, 12)), boot.counts]), draws, strict=True):
        picked = np.repeat(np.arange(12), counts.astype(int))
        pairs = [np.mean(views[i] @ views[j].T) for i in picked for j in picked if i != j]
        assert draw == pytest.approx(np.mean(pairs), abs=1e-9)
    assert consistency.pair_mean(views[0]) == pytest.approx(
        np.mean([views[0][i] @ views[0][j] for i, j in itertools.combinations(range(4), 2)])
    )
