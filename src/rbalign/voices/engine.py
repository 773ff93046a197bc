"""From a voice's name to the synthesiser that speaks it. Synthesisers load on first use, once in a process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol

import numpy as np
import soxr

from rbalign.audio.signal import trim_silence
from rbalign.errors import UsageError
from rbalign.voices.bank import load_bank

RATE = 16_000
"""Hz. What every speaker returns: the rate of the speech encoders, whatever the synthesiser's own rate."""

SPEEDS = (0.5, 2.0)
"""Bounds of `speed` (1 = the voice's own pace): hibari's documented range; Kokoro slurs outside it."""


class Speaker(Protocol):
    """One synthesiser with all its voices."""

    def speak(self, text: str, voice: str, speed: float = 1.0) -> np.ndarray:
        """One clip, (samples,) float32 at 16 kHz in [-1, 1]. The same arguments give the same samples.

        Raises DataError when the text holds nothing that can be spoken.
        """
        ...


def speaker(voice: str) -> Speaker:
    """The synthesiser of a voice (or of an engine's name). Raises UsageError for one that rba cannot run."""
    engine = voice if voice in ("kokoro", "hibari") else load_bank().voice(voice).engine
    return _open(engine)


def check_speed(speed: float) -> None:
    """Raise UsageError when a speed lies outside SPEEDS."""
    if not SPEEDS[0] <= speed <= SPEEDS[1]:
        raise UsageError(f"speaking speed {speed} is out of bounds", f"use {SPEEDS[0]} to {SPEEDS[1]}")


def finish(chunks: Sequence[np.ndarray], rate: int) -> np.ndarray:
    """One clip of a synthesiser's chunks: (n,) each at `rate` Hz -> (samples,) float32 at 16 kHz in [-1, 1].

    Kokoro ends every chunk with 0.5 to 0.9 s of silence, a tenth of a clip: encoders should not pay for it.
    """
    whole = np.concatenate([trim_silence(chunk, rate) for chunk in chunks])
    clip: np.ndarray = np.clip(soxr.resample(whole, rate, RATE), -1.0, 1.0).astype(np.float32)
    return clip


@cache
def _open(engine: str) -> Speaker:
    if engine == "kokoro":
        from rbalign.voices.kokoro import KokoroSpeaker

        return KokoroSpeaker()
    if engine == "hibari":
        from rbalign.voices.hibari import HibariSpeaker

        return HibariSpeaker()
    raise UsageError(
        f"rba does not run the synthesiser {engine!r}; its voices reach reports as recorded clips",
        "to synthesise, use a kokoro voice or hibari",
    )
