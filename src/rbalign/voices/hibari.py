"""hibari: one voice, distilled from Kokoro's af_heart, 40 to 60 times faster: for bulk training audio."""

from __future__ import annotations

import zlib

import numpy as np

from rbalign.errors import DataError
from rbalign.voices.engine import check_speed, finish
from rbalign.voices.phonemes import hibari_package


class HibariSpeaker:
    """The bundled voice alone: the package's other voices would be downloaded, so they are never asked for."""

    def __init__(self) -> None:
        package = hibari_package()
        self._rate: int = package.SAMPLE_RATE
        self._hibari = package.Hibari(voice="heart", threads=1)

    def speak(self, text: str, voice: str = "hibari", speed: float = 1.0) -> np.ndarray:
        """One clip: see `engine.Speaker`. The noise part of the signal is seeded by the text."""
        check_speed(speed)
        chunks = list(self._hibari.stream(text, speed=speed, seed=zlib.crc32(text.encode())))
        if not any(chunk.size for chunk in chunks):
            raise DataError(f"voice {voice!r} finds nothing to speak in {text[:60]!r}", "give it words")
        return finish(chunks, self._rate)
