"""Any common audio file to mono float32 at one rate, and back to FLAC. Headers are judged before decoding."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from rbalign.errors import DataError

FORMATS = frozenset({"WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AIFF"})
"""What libsndfile may parse for us: its rarer formats are old code that no speech corpus needs."""

_LYING_HEADER = re.compile(r"data : \d+ \(should be \d+\)|Exiting parser")
"""libsndfile mends a wrong length in silence and only notes it in its log: the clip would be cut without a word."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a clip may be. Checked on the header, before a sample is decoded."""

    max_seconds: float = 600.0
    min_rate: int = 8_000
    max_rate: int = 192_000
    max_channels: int = 2
    """Stereo is averaged; more channels are a microphone array or a film, whose mean is no recording of anyone."""


def read_audio(source: Path | str | bytes, *, rate: int = 16_000, limits: Limits | None = None) -> np.ndarray:
    """Decode a file (or the bytes of one) to mono: (samples,) float32 in [-1, 1] at `rate` Hz.

    Raises DataError, naming the file and the limit, for what is no audio, too long, damaged or not finite.
    """
    name = "audio bytes" if isinstance(source, bytes) else str(source)
    with _opened(source, name, limits) as file:
        samples = file.read(dtype="float32", always_2d=True)
        native, promised = file.samplerate, file.frames
    if len(samples) < promised:
        raise DataError(f"{name} ends after {len(samples)} of {promised} frames", "fetch or convert it again")
    if not np.isfinite(samples).all():
        raise DataError(f"{name} holds samples that are not finite numbers", "convert it again")
    mono: np.ndarray = samples.mean(axis=1)
    if native != rate:
        mono = soxr.resample(mono, native, rate)
    clipped: np.ndarray = np.clip(mono, -1.0, 1.0)
    return clipped


def audio_seconds(source: Path | str | bytes, *, limits: Limits | None = None) -> float:
    """How long a clip lasts, by its header alone. Raises DataError for what a header shows; see `read_audio`."""
    name = "audio bytes" if isinstance(source, bytes) else str(source)
    with _opened(source, name, limits) as file:
        return float(file.frames / file.samplerate)


@contextmanager
def _opened(source: Path | str | bytes, name: str, limits: Limits | None) -> Iterator[soundfile.SoundFile]:
    """An open file whose header has passed; what libsndfile refuses, here or while it is read, is a DataError."""
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise DataError(f"{name} is no file", "name an existing audio file")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            _check_header(file, name, limits or Limits())
            yield file
    except (soundfile.LibsndfileError, OSError) as error:
        reason = str(error).rpartition(": ")[2].rstrip(".")
        raise DataError(f"{name} cannot be read: {reason}", "convert it to FLAC or WAV") from None


def _check_header(file: soundfile.SoundFile, name: str, limits: Limits) -> None:
    """Raise DataError when the header alone rules a clip out."""
    seconds = file.frames / file.samplerate
    if file.format not in FORMATS:
        problem = f"is {file.format}; rba reads {', '.join(sorted(FORMATS))}"
    elif not limits.min_rate <= file.samplerate <= limits.max_rate:
        problem = f"has {file.samplerate} Hz; the limits are {limits.min_rate} to {limits.max_rate} Hz"
    elif file.channels > limits.max_channels:
        problem = f"has {file.channels} channels; the limit is {limits.max_channels}"
    elif file.frames == 0:
        problem = "holds no samples"
    elif seconds > limits.max_seconds:
        problem = f"is {seconds:.0f} s long; the limit is {limits.max_seconds:.0f} s"
    elif _LYING_HEADER.search(file.extra_info):
        problem = "is damaged: its header promises another length than the file has"
    else:
        return
    raise DataError(f"{name} {problem}", "cut or convert it first")


def to_flac(samples: np.ndarray, rate: int = 16_000) -> bytes:
    """(samples,) float32 in [-1, 1] -> FLAC, 16 bits: the same samples give the same bytes.

    Raises DataError for an empty, two-dimensional or not finite clip; values beyond [-1, 1] are clipped.
    """
    if samples.ndim != 1 or not samples.size or not np.isfinite(samples).all():
        raise DataError(f"samples of shape {samples.shape} are no clip", "give one finite, non-empty channel")
    sink = io.BytesIO()
    soundfile.write(sink, np.clip(samples, -1.0, 1.0), rate, format="FLAC", subtype="PCM_16")
    return sink.getvalue()


def input_audio(flac: bytes, form: str, rate: int = 16_000) -> dict[str, Any]:
    """A clip as the content part of a chat message: 16 bits, mono, at `rate` Hz, as "wav" or "flac"."""
    sink = io.BytesIO()
    soundfile.write(sink, read_audio(flac, rate=rate), rate, format=form.upper(), subtype="PCM_16")
    data = base64.b64encode(sink.getvalue()).decode("ascii")
    return {"type": "input_audio", "input_audio": {"data": data, "format": form}}
