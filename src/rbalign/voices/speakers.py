"""Reference speakers for zero-shot cloning: a folder with a sub-folder or a file for each, such as LibriTTS's.

    SPEAKERS/1034/121119/1034_121119_000012.wav     speaker "1034": the first fitting clip below its folder
    SPEAKERS/alice.flac                             speaker "alice"

A clip fits if it lasts 3 to 30 seconds (the paper's speaker bank: LibriTTS utterances over 3 s; servers limit the
other end) and its header is sound. Its transcript is CLIP.normalized.txt (LibriTTS's) or CLIP.txt, if there.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rbalign.errors import DataError, UsageError

SHORTEST, LONGEST = 3.0, 30.0
"""Seconds. A clip must be longer than the first and no longer than the second."""
MOST_BYTES = 10 << 20
"""Of a clip: what vLLM-Omni takes as an upload."""
MEDIA = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg"}
TRANSCRIPTS = (".normalized.txt", ".txt")


@dataclass(frozen=True, slots=True)
class ReferenceClip:
    """What a cloned voice sounds like."""

    path: Path
    seconds: float
    transcript: str | None

    def encoded(self, form: Literal["data-url", "base64"]) -> str:
        """The file as it is, in base64, alone or as a data URL."""
        plain = base64.b64encode(self.path.read_bytes()).decode("ascii")
        return plain if form == "base64" else f"data:{MEDIA[self.path.suffix.lower()]};base64,{plain}"


def reference_speakers(folder: Path) -> tuple[dict[str, ReferenceClip], list[str]]:
    """Speaker -> clip, by name, and the speakers without a fitting clip. UsageError if no speaker has one."""
    if not folder.is_dir():
        raise UsageError(f"no folder of reference speakers {folder}", "mend speakers in [[synth.endpoint_voices]]")
    found: dict[str, ReferenceClip] = {}
    without: list[str] = []
    for place in sorted(folder.iterdir()):
        if place.name.startswith(".") or not (place.is_dir() or place.suffix.lower() in MEDIA):
            continue
        name = place.name if place.is_dir() else place.stem
        if name in found or name in without:
            raise UsageError(f"reference speaker {name!r} stands twice in {folder}", "keep a folder or a file for each")
        clip = next(_fitting(place), None)
        if clip is None:
            without.append(name)
        else:
            found[name] = clip
    if not found:
        raise UsageError(
            f"{folder} holds no speaker with a clip of {SHORTEST:g} to {LONGEST:g} s ({', '.join(sorted(MEDIA))})",
            "put a sub-folder or a file there for each speaker",
        )
    return found, without


def _fitting(place: Path) -> Iterator[ReferenceClip]:
    """The clips of one speaker that may serve, in the order of their names."""
    from rbalign.audio.io import audio_seconds

    for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if path.suffix.lower() not in MEDIA or path.name.startswith(".") or path.stat().st_size > MOST_BYTES:
            continue
        try:
            seconds = audio_seconds(path)
        except DataError:
            continue
        if SHORTEST < seconds <= LONGEST:
            yield ReferenceClip(path, seconds, _transcript(path))


def _transcript(path: Path) -> str | None:
    for suffix in TRANSCRIPTS:
        beside = path.with_name(path.stem + suffix)
        if beside.is_file():
            return " ".join(beside.read_text(encoding="utf-8").split()) or None
    return None
