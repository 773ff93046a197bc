import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rbalign.audio import signal
from rbalign.errors import UsageError

TIME = np.arange(32_000) / 16_000
TONE = (0.3 * np.sin(2 * np.pi * 200 * TIME) + 0.1 * np.sin(2 * np.pi * 1000 * TIME)).astype(np.float32)
clips = hnp.arrays(np.float32, st.integers(1, 5000), elements=st.floats(-1, 1, width=32))


def generator(seed=0):
    return np.random.default_rng(seed)


def loudest_frequency(samples):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.argmax(spectrum) * 16_000 / len(samples)


def power(samples, low, high):
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / 16_000)
    return spectrum[(frequencies >= low) & (frequencies < high)].sum()


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 10.0, 30.0])
def test_noise_has_the_asked_level(snr_db):
    quiet = TONE * 0.1
    noise = signal.add_noise(quiet, snr_db, generator()) - quiet
    assert 10 * np.log10(np.mean(quiet**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.01)


def test_a_louder_sum_is_turned_down_not_clipped():
    loud = TONE / np.abs(TONE).max()
    heard = signal.add_noise(loud, 0.0, generator())
    assert np.sum(np.abs(heard) > 0.999) < 5


def test_a_telephone_passes_300_to_3400_hz_and_no_more():
    white = (0.1 * generator().standard_normal(32_000)).astype(np.float32)
    heard = signal.telephone(white)
    for low, high, kept in ((400, 3200, True), (20, 150, False), (4000, 8000, False)):
        share = power(heard, low, high) / power(white, low, high)
        assert (share > 0.7) if kept else (share < 0.02), (low, high, share)


def test_a_room_adds_a_tail_and_keeps_the_loudness():
    clip = np.concatenate([TONE, np.zeros(8_000, np.float32)])
    heard = signal.room(clip, generator(3))
    assert np.sqrt(np.mean(heard**2)) == pytest.approx(np.sqrt(np.mean(clip**2)), rel=1e-3)
    assert np.abs(heard[32_000:34_000]).max() > 0.01
    assert np.abs(heard[-100:]).max() < 0.1 * np.abs(heard[32_000:34_000]).max()


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_speed_shortens_and_raises_the_pitch(factor):
    heard = signal.change_speed(TONE, factor)
    assert abs(len(heard) - len(TONE) / factor) <= 1
    assert loudest_frequency(heard) == pytest.approx(200 * factor, abs=1)


def test_changes_beyond_an_octave_are_refused():
    with pytest.raises(UsageError, match=r"speed change by 3\.00"):
        signal.change_speed(TONE, 3.0)


def test_silence_at_the_ends_is_cut_to_its_margins():
    clip = np.concatenate([np.zeros(16_000), TONE, 0.002 * TONE[:16_000]]).astype(np.float32)
    heard = signal.trim_silence(clip, 16_000)
    assert len(heard) == pytest.approx(3_200 + len(TONE) + 4_000, abs=200)
    np.testing.assert_array_equal(signal.trim_silence(heard, 16_000), heard)
    silent = np.zeros(100, np.float32)
    np.testing.assert_array_equal(signal.trim_silence(silent, 16_000), silent)
