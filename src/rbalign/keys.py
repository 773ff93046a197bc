"""Keyed noise: every random draw comes from a name, never from a global generator.

A draw depends on (seed, stage, update, example, view, sample, position) alone, so that no result depends on the
batch it stood in, on the rank or worker that made it, or on a resume.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Key:
    """The name of a stream of random numbers."""

    seed: int
    stage: str
    update: int = 0
    example: str = ""
    view: int = 0
    sample: int = 0

    def at(self, **fields: Any) -> Key:
        """The same key with some fields replaced: `key.at(view=2)`."""
        return replace(self, **fields)

    def digest(self) -> int:
        """64 bits that name this key; equal on every machine and Python."""
        name = "\x1f".join(map(repr, (self.seed, self.stage, self.update, self.example, self.view, self.sample)))
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")

    def generator(self) -> np.random.Generator:
        """A numpy generator of this key's stream, for draws that have no position."""
        import numpy as np

        return np.random.Generator(np.random.Philox(key=self.digest()))


def uniforms(digests: np.ndarray, position: int) -> np.ndarray:
    """One uniform in [0, 1) for each key digest at a position: (B,) uint64 -> (B,) float64.

    SplitMix64's finaliser over digest + position * golden ratio (Steele, Lea, Flood 2014): counter-based, so that
    token t of a row draws the same number whichever rows stand beside it.
    """
    import numpy as np

    with np.errstate(over="ignore"):
        z = digests.astype(np.uint64) + np.uint64(position + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return np.asarray((z >> np.uint64(11)).astype(np.float64) * 2.0**-53)
