"""What a room, a telephone and a hasty speaker do to a clip. Noise comes from a Generator and nowhere else.

Every function takes (n,) float32 in [-1, 1] and returns (m,) float32 in [-1, 1]; rates in Hz.
"""

from __future__ import annotations

import numpy as np
import soxr
from scipy import signal

from rbalign.errors import UsageError, unknown

QUIET = 0.01
"""Samples under 1 % (-40 dB) of the clip's own peak count as silence."""

CHANNELS = ("clean", "noise", "room", "telephone")
"""What `transmit` can do to a clip: the values of `ViewSpec.channel`."""

SNR_DB = (5.0, 20.0)
"""Signal-to-noise ratios that the channel "noise" draws from: a street to a quiet office."""


def transmit(samples: np.ndarray, channel: str, generator: np.random.Generator, rate: int = 16_000) -> np.ndarray:
    """The clip as it arrives through a channel of CHANNELS; same length. UsageError for another name."""
    if channel == "clean":
        return samples
    if channel == "noise":
        return add_noise(samples, generator.uniform(*SNR_DB), generator)
    if channel == "room":
        return room(samples, generator, rate)
    if channel == "telephone":
        return telephone(samples, rate)
    raise unknown("channel", channel, CHANNELS)


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Play `factor` times as fast, pitch and all (Ko et al. 2015): n/factor samples."""
    _check_factor("speed", factor)
    return _within(soxr.resample(samples, factor, 1.0))


def change_pitch(samples: np.ndarray, semitones: float, rate: int = 16_000) -> np.ndarray:
    """Raise the pitch by semitones (negative: lower) and keep the duration; same length."""
    factor = 2.0 ** (semitones / 12.0)
    _check_factor("pitch", factor)
    shifted = change_speed(_stretch(samples, factor, rate), factor)
    return np.pad(shifted[: len(samples)], (0, max(0, len(samples) - len(shifted))))


def add_noise(samples: np.ndarray, snr_db: float, generator: np.random.Generator) -> np.ndarray:
    """Add noise of a drawn colour (spectrum 1/f^a, a from 0 = white to 2 = brown) at a signal-to-noise ratio in dB."""
    spectrum = np.fft.rfft(generator.standard_normal(len(samples)))
    frequencies = np.maximum(1, np.arange(len(spectrum)))
    noise = np.fft.irfft(spectrum * frequencies ** (-generator.uniform(0.0, 2.0) / 2), len(samples))
    target = _rms(samples) * 10.0 ** (-snr_db / 20.0)
    return _within(samples + noise * target / max(_rms(noise), 1e-12))


def room(samples: np.ndarray, generator: np.random.Generator, rate: int = 16_000) -> np.ndarray:
    """Reverberation of a drawn room: noise that decays by 60 dB in 0.15 to 0.6 s, 0 to 12 dB under the direct sound.

    Loudness (RMS) and length stay; the tail beyond the clip is cut.
    """
    decay_seconds, under_db = generator.uniform(0.15, 0.6), generator.uniform(0.0, 12.0)
    time = np.arange(round(decay_seconds * rate)) / rate
    tail = generator.standard_normal(len(time)) * 10.0 ** (-3.0 * time / decay_seconds)
    tail[: round(0.005 * rate)] = 0.0  # the first wall is farther than the mouth: 5 ms is 1.7 m
    response = tail * 10.0 ** (-under_db / 20.0) / np.linalg.norm(tail)
    response[0] = 1.0
    wet = signal.fftconvolve(samples, response)[: len(samples)]
    return _within(wet * _rms(samples) / max(_rms(wet), 1e-12))


def telephone(samples: np.ndarray, rate: int = 16_000) -> np.ndarray:
    """A telephone line: 300 to 3,400 Hz, 8 kHz, 8-bit mu-law (ITU-T G.711); same length."""
    band = signal.butter(4, (300.0, 3400.0), "bandpass", fs=rate, output="sos")
    line = np.clip(soxr.resample(signal.sosfilt(band, samples), rate, 8_000), -1.0, 1.0)
    code = np.round(127.0 * np.sign(line) * np.log1p(255.0 * np.abs(line)) / np.log(256.0)) / 127.0
    heard = soxr.resample(np.sign(code) * np.expm1(np.abs(code) * np.log(256.0)) / 255.0, 8_000, rate)
    return _within(np.pad(heard[: len(samples)], (0, max(0, len(samples) - len(heard)))))


def trim_silence(samples: np.ndarray, rate: int, lead: float = 0.2, trail: float = 0.25) -> np.ndarray:
    """Cut silence at both ends down to `lead` and `trail` seconds; a silent clip stays as it is.

    The margins keep soft word ends (f, s), which fall under QUIET.
    """
    loud = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max(initial=0.0))
    if not loud.size:
        return samples
    start = max(0, loud[0] - round(lead * rate))
    end = min(len(samples), loud[-1] + 1 + round(trail * rate))
    return samples[start:end]


def _stretch(samples: np.ndarray, factor: float, rate: int) -> np.ndarray:
    """Last `factor` times as long at the same pitch: WSOLA (Verhelst and Roelands 1993), 40 ms windows, 10 ms search.

    Each output window is taken where the input best continues what was last written, so periods join in phase.
    """
    hop = max(1, round(0.02 * rate))
    window, search = signal.windows.hann(2 * hop, sym=False), hop // 2
    count = max(1, int(np.ceil(len(samples) * factor / hop)))
    padded = np.pad(samples.astype(np.float64), (search, 4 * hop + search))
    out = np.zeros((count + 1) * hop)
    position = search
    for index in range(count):
        if index:
            expected = padded[position + hop : position + 2 * hop]
            ideal = search + min(round(index * hop / factor), len(samples))
            region = padded[ideal - search : ideal + search + hop]
            position = ideal - search + int(np.argmax(np.correlate(region, expected, "valid")))
        out[index * hop : (index + 2) * hop] += window * padded[position : position + 2 * hop]
    out[:hop] += (1.0 - window[:hop]) * padded[search : search + hop]
    return _within(out[: round(len(samples) * factor)])


def _check_factor(what: str, factor: float) -> None:
    if not 0.5 <= factor <= 2.0:
        raise UsageError(f"a {what} change by {factor:.2f} is out of bounds", "use a factor of 0.5 to 2")


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if samples.size else 0.0


def _within(samples: np.ndarray) -> np.ndarray:
    """float32, turned down as a whole if a peak lies beyond 1: clipping would be another channel."""
    quiet: np.ndarray = (samples / max(1.0, float(np.abs(samples).max(initial=0.0)))).astype(np.float32)
    return quiet
