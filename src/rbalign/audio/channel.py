"""What a clip meets on its way to the listener: the channels of a recipe, carried out from left to right.

The language ("noise:babble@5dB+telephone") is in `config.views`; docs/views.md says what each step does and where it
comes from. Clips are (n,) float32 in [-1, 1] and keep their length; rates in Hz. Every draw comes from the Generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from rbalign.audio.io import audio_seconds, read_audio
from rbalign.audio.signal import add_noise, change_gain, clip_peaks, lose_packets, mix, room, telephone
from rbalign.config.views import Step, parse_channel
from rbalign.errors import DataError, UsageError

SNR_DB = (5.0, 20.0)
"""Signal-to-noise ratios that noise draws from where none is stated: a street to a quiet office."""

EXPONENTS = {None: None, "white": 0.0, "pink": 1.0, "brown": 2.0}
"""Of 1/f noise; noise of no stated colour draws one."""

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"})
"""Which files of a noise folder count; a README may lie beside them."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where noise comes from that no Generator makes."""

    talkers: Sequence[np.ndarray] = ()
    """Clips of others, each (n,) float32 at the rate of the clip: all of them talk in noise:babble."""
    files: Sequence[Path] = ()
    """Recordings, as `noise_files` gives them: noise:folder draws one."""


NOWHERE = Surroundings()


def transmit(
    samples: np.ndarray,
    channel: str,
    generator: np.random.Generator,
    rate: int = 16_000,
    around: Surroundings = NOWHERE,
) -> np.ndarray:
    """The clip as it arrives through a channel; same length.

    Raises UsageError for a channel that is not in the language or lacks its talkers or files, DataError for a noise
    file that cannot be read.
    """
    for step in parse_channel(channel):
        samples = _through(samples, step, generator, rate, around)
    return samples


def needs_talkers(channel: str) -> bool:
    """Whether a channel has babble in it."""
    return any(step.kind == "babble" for step in parse_channel(channel))


def babble(length: int, talkers: Sequence[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """(length,) of clips that all speak at once, equally loud, each from a drawn place on and round again.

    Made as Snyder et al. (2018, X-vectors) did of MUSAN; they took three to seven. UsageError without a clip.
    """
    voices = [clip for clip in talkers if clip.any()]
    if not voices:
        raise UsageError("noise:babble is made of other clips, and there is none", "choose another noise")
    crowd = np.zeros(length)
    for clip in voices:
        heard = _excerpt(clip, length, generator).astype(np.float64)
        crowd += heard / max(float(np.sqrt(np.mean(heard**2))) if length else 0.0, 1e-12)
    return crowd


def noise_files(folder: Path) -> list[Path]:
    """The recordings in a folder and below, in the order of their names. Only headers are read.

    Raises UsageError if there is none, DataError that counts those that rba cannot take and names the first.
    """
    if not folder.is_dir():
        raise UsageError(f"noise folder {folder} is no folder", "name a folder of recordings")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise UsageError(
            f"noise folder {folder} holds no recording", f"put files there that end in {', '.join(sorted(SUFFIXES))}"
        )
    refused = []
    for path in files:
        try:
            audio_seconds(path)
        except DataError as error:
            refused.append(error)
    if refused:
        raise DataError(f"{len(refused)} of {len(files)} noise files: {refused[0].problem}", refused[0].cure)
    return files


def _through(
    samples: np.ndarray, step: Step, generator: np.random.Generator, rate: int, around: Surroundings
) -> np.ndarray:
    if step.name == "room":
        return room(samples, generator, rate)
    if step.name == "telephone":
        return telephone(samples, rate)
    if step.name == "noise":
        return _noisy(samples, step, generator, rate, around)
    amount = step.amount or 0.0  # the language leaves no step below without one
    if step.name == "gain":
        return change_gain(samples, amount)
    if step.name == "clipping":
        return clip_peaks(samples, amount / 100.0)
    return lose_packets(samples, amount / 100.0, generator, rate)


def _noisy(
    samples: np.ndarray, step: Step, generator: np.random.Generator, rate: int, around: Surroundings
) -> np.ndarray:
    snr_db = generator.uniform(*SNR_DB) if step.amount is None else step.amount
    if step.kind == "babble":
        return mix(samples, babble(len(samples), around.talkers, generator), snr_db)
    if step.kind == "folder":
        return mix(samples, _recording(len(samples), around.files, generator, rate), snr_db)
    return add_noise(samples, snr_db, generator, EXPONENTS[step.kind], rate)


def _recording(length: int, files: Sequence[Path], generator: np.random.Generator, rate: int) -> np.ndarray:
    """(length,) of a drawn file, from a drawn place on."""
    if not files:
        raise UsageError("noise:folder has no recordings to draw from", "set [synth] noise_folder")
    noise = _read(files[int(generator.integers(len(files)))], rate)
    heard = _excerpt(noise, length, generator)
    # A pause of the recording would leave the clip without the noise that its metadata states.
    return heard if heard.any() else np.take(noise, np.argmax(np.abs(noise)) + np.arange(length), mode="wrap")


@lru_cache(maxsize=4)
def _read(path: Path, rate: int) -> np.ndarray:
    noise = read_audio(path, rate=rate)
    if not noise.any():
        raise DataError(f"noise file {path} is silent", "take it out of the folder")
    return noise


def _excerpt(clip: np.ndarray, length: int, generator: np.random.Generator) -> np.ndarray:
    """(length,) of a clip from a drawn place on, and from its start again where it ends."""
    return np.take(clip, int(generator.integers(len(clip))) + np.arange(length), mode="wrap")
