"""What a room, a telephone and a hasty speaker do to a clip. float32 numpy in and out; noise only from a Generator.

Every function takes (n,) float32 in [-1, 1] and returns (m,) float32 in [-1, 1]; rates in Hz.
"""

from __future__ import annotations

import numpy as np

QUIET = 0.01
"""Samples under 1 % (-40 dB) of the clip's own peak count as silence."""


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
