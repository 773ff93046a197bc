"""Kokoro-82M (int8 ONNX): 28 English voices at 24 kHz, by numpy and onnxruntime alone."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime

from rbalign import assets
from rbalign.errors import AssetError, DataError
from rbalign.voices.bank import load_bank
from rbalign.voices.convolutions import fastest
from rbalign.voices.engine import check_speed, finish
from rbalign.voices.phonemes import phoneme_chunks

KOKORO_RATE = 24_000
STYLES, STYLE_WIDTH = 510, 256
"""A voice file is one style vector for each length in phonemes, 0 to 509: float32, no header."""

MAX_PHONEMES = 480
"""The model's context is 512 with its two pads; some room, because prosody flattens in the last positions."""


class KokoroSpeaker:
    """Speaks with every Kokoro voice; voice files are read on first use. One core does 1.6 s of speech a second."""

    def __init__(self, folder: Path | None = None, threads: int = 1) -> None:
        self._folder = folder or assets.folder("kokoro")
        self._vocab: dict[str, int] = json.loads((self._folder / "vocab.json").read_text(encoding="utf-8"))
        self._session = onnx_session(self._folder / "model.onnx", threads)
        self._style = cache(self._read_style)

    def speak(self, text: str, voice: str, speed: float = 1.0) -> np.ndarray:
        """One clip: see `engine.Speaker`. A long text is spoken in chunks of whole sentences."""
        check_speed(speed)
        british = load_bank().voice(voice).accent == "british"
        style = self._style(voice)
        clips = []
        for phonemes in phoneme_chunks(text, british, MAX_PHONEMES):
            tokens = [self._vocab[symbol] for symbol in phonemes if symbol in self._vocab]
            if not tokens:
                continue
            feeds = {
                "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),
                "style": style[min(len(tokens), STYLES - 1)][None],
                "speed": np.array([speed], dtype=np.float32),
            }
            clips.append(self._session.run(["audio"], feeds)[0])
        if not clips:
            raise DataError(f"voice {voice!r} finds nothing to speak in {text[:60]!r}", "give it words")
        return finish(clips, KOKORO_RATE)

    def _read_style(self, voice: str) -> np.ndarray:
        path = self._folder / "voices" / f"{voice}.bin"
        if not path.is_file() or path.stat().st_size != STYLES * STYLE_WIDTH * 4:
            raise AssetError(f"voice file {path.name} is missing or damaged", "run `rba assets verify kokoro`")
        return np.fromfile(path, dtype="<f4").reshape(STYLES, STYLE_WIDTH)


def onnx_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A CPU session that uses `threads` threads and nothing else, so that N processes use N cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(fastest(path), options, providers=["CPUExecutionProvider"])
