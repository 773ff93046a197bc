"""What a room, a telephone and a hasty speaker do to a clip. Noise comes from a Generator and nowhere else.

Every function takes (n,) float32 in [-1, 1] and returns (m,) float32 in [-1, 1]; rates in Hz.
"""

from __future__ import annotations

import numpy as np
import soxr
from scipy import signal

from rbalign.errors import UsageError

QUIET = 0.01
"""Samples under 1 % (-40 dB) of the clip's own peak count as silence."""

LOWEST_HZ = 20.0
"""Noise of a stated colour starts here. Nobody hears what lies below; in four seconds of pink noise it would be 40 % of
the power, and the signal-to-noise ratio would speak of it."""

PACKET_SECONDS = 0.02
"""What one packet of a call carries (RFC 3551, section 4.2)."""
MEAN_BURST = 3.0
"""Packets lost in a row, on average: 60 ms."""


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Play `factor` times as fast, pitch and all (Ko et al. 2015): n/factor samples."""
    if not 0.5 <= factor <= 2.0:
        raise UsageError(f"a speed change by {factor:.2f} is out of bounds", "use a factor of 0.5 to 2")
    return _within(soxr.resample(samples, factor, 1.0))


def change_gain(samples: np.ndarray, gain_db: float) -> np.ndarray:
    """Louder or softer by so many dB; what goes beyond full scale is cut off, as in an overdriven input."""
    louder: np.ndarray = np.clip(samples * 10.0 ** (gain_db / 20.0), -1.0, 1.0).astype(np.float32)
    return louder


def mix(samples: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise (n,) so that speech stands `snr_db` above it: the ratio of the two RMS over the whole clip, pauses too.

    Silent noise or a silent clip stays silent. A sum that is too loud is turned down as a whole.
    """
    target = _rms(samples) * 10.0 ** (-snr_db / 20.0)
    return _within(samples + noise * target / max(_rms(noise), 1e-12))


def add_noise(
    samples: np.ndarray,
    snr_db: float,
    generator: np.random.Generator,
    exponent: float | None = None,
    rate: int = 16_000,
) -> np.ndarray:
    """Add noise of spectrum 1/f^exponent (0 white, 1 pink, 2 brown; None draws 0 to 2) at a ratio in dB, see `mix`.

    A stated exponent has no power below LOWEST_HZ; a drawn one goes down to one period in the clip.
    """
    spectrum = np.fft.rfft(generator.standard_normal(len(samples)))
    frequencies = np.maximum(1, np.arange(len(spectrum)))
    spectrum *= frequencies ** (-(generator.uniform(0.0, 2.0) if exponent is None else exponent) / 2)
    if exponent is not None:
        spectrum[np.fft.rfftfreq(len(samples), 1.0 / rate) < LOWEST_HZ] = 0.0
    return mix(samples, np.fft.irfft(spectrum, len(samples)), snr_db)


def clip_peaks(samples: np.ndarray, share: float) -> np.ndarray:
    """Cut the peaks off so that this share (0 to 1) of the samples lies at the ceiling; digital silence does not count.

    The loudness is not made up for.
    """
    loud = np.abs(samples[samples != 0.0])
    if not loud.size:
        return samples
    ceiling = np.quantile(loud, 1.0 - share)
    cut: np.ndarray = np.clip(samples, -ceiling, ceiling).astype(np.float32)
    return cut


def lose_packets(samples: np.ndarray, share: float, generator: np.random.Generator, rate: int = 16_000) -> np.ndarray:
    """Lose this share (0 to 0.5, in the long run) of the packets, in bursts of MEAN_BURST. Silence takes their place.

    Gilbert's chain (Gilbert 1960; Hasslinger and Hohlfeld 2008): all arrive in its good state, none in its bad one.
    It starts in its stationary state, so that a short clip loses neither more nor less than a long one.
    """
    size = max(1, round(PACKET_SECONDS * rate))
    recover = 1.0 / MEAN_BURST
    fail = share * recover / (1.0 - share)
    lost: list[bool] = []
    for draw in generator.random(-(-len(samples) // size)):
        lost.append(bool(draw < (share if not lost else 1.0 - recover if lost[-1] else fail)))
    arrived = ~np.repeat(np.array(lost, dtype=bool), size)[: len(samples)]
    heard: np.ndarray = np.where(arrived, samples, np.float32(0.0)).astype(np.float32)
    return heard


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


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if samples.size else 0.0


def _within(samples: np.ndarray) -> np.ndarray:
    """float32, turned down as a whole if a peak lies beyond 1: clipping would be another channel."""
    quiet: np.ndarray = (samples / max(1.0, float(np.abs(samples).max(initial=0.0)))).astype(np.float32)
    return quiet
