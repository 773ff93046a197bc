"""The independent listener: faster-whisper on Whisper base, which no model of ours is trained with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from rbalign import assets
from rbalign.errors import DataError


class Transcriber:
    """Speech to text, greedy: the same clip gives the same words."""

    def __init__(self, model: str = "whisper-base-ct2", workers: int = 1, language: str = "en") -> None:
        """model: an asset's name, loaded with the first clip. workers: clips heard at once, one thread each (the
        weights are shared). language: ISO 639-1, which is told and not guessed; models ending in ".en" know English."""
        self._name, self._workers, self._language = model, workers, language

    @cached_property
    def _model(self) -> Any:
        from faster_whisper import WhisperModel

        # float32: int8 costs words, and CPUs have no float16 arithmetic. A clip costs base 1.3 to 1.8 CPU seconds,
        # short or long, because Whisper pads it to 30 s.
        return WhisperModel(
            str(assets.folder(self._name)),
            device="cpu",
            compute_type="float32",
            cpu_threads=1,
            num_workers=self._workers,
            local_files_only=True,
        )

    def transcribe(self, samples: np.ndarray) -> str:
        """(n,) float32 at 16 kHz -> what was said, one line; "" for silence or fewer than 0.1 s.

        No voice activity detection and no second try at a higher temperature: both would make the measure depend on
        the clip. Raises DataError for anything but one finite float channel.
        """
        if samples.ndim != 1 or not np.isfinite(samples).all():
            raise DataError(f"samples of shape {samples.shape} are no clip", "give one finite channel")
        if len(samples) < 1_600:
            return ""
        segments, _ = self._model.transcribe(
            samples.astype(np.float32, copy=False),
            language=self._language,
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            vad_filter=False,
        )
        return " ".join(" ".join(segment.text for segment in segments).split())

    def transcribe_many(self, clips: Iterable[np.ndarray]) -> Iterator[str]:
        """The texts of clips, in order; `workers` at a time, read as they are needed."""
        source = iter(clips)
        with ThreadPoolExecutor(self._workers) as pool:
            while batch := list(islice(source, 4 * self._workers)):
                _ = self._model  # loaded here, not by each of the threads
                yield from pool.map(self.transcribe, batch)
