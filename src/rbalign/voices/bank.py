"""The voice bank: who can speak, and for which split. Pure data; no synthesiser is loaded."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from rbalign.config.endpoints import VoiceEndpoint
from rbalign.errors import UsageError, unknown
from rbalign.types import Split
from rbalign.voices.speakers import ReferenceClip, reference_speakers

ENDPOINT = "endpoint"
"""The engine of voices that a recipe's [[synth.endpoint_voices]] bring."""


@dataclass(frozen=True, slots=True)
class VoiceInfo:
    """One voice. `engine` names the synthesiser ("human" for recordings)."""

    name: str
    engine: str
    split: Split
    accent: str
    gender: str


class VoiceBank:
    """Every known voice, in the order of bank.toml."""

    def __init__(self, voices: Iterable[VoiceInfo]) -> None:
        self._voices: dict[str, VoiceInfo] = {}
        for info in voices:
            if info.name in self._voices:
                raise UsageError(f"voice {info.name!r} stands twice in the voice bank", "give each voice one split")
            self._voices[info.name] = info

    def names(self, split: Split | str | None = None, engine: str | None = None) -> list[str]:
        """Names of the voices of a split and an engine; None means any.

        Raises UsageError for a split or engine that does not exist.
        """
        if split is not None and split not in set(Split):
            raise unknown("voice split", str(split), Split)
        engines = {info.engine for info in self._voices.values()}
        if engine is not None and engine not in engines:
            raise unknown("voice engine", engine, engines)
        return [
            info.name for info in self._voices.values() if split in (None, info.split) and engine in (None, info.engine)
        ]

    def voice(self, name: str) -> VoiceInfo:
        """The voice of that name, or UsageError with the nearest known name."""
        try:
            return self._voices[name]
        except KeyError:
            raise unknown("voice", name, self._voices, "`rba list voices` shows them all") from None

    def with_endpoints(self, endpoints: Sequence[VoiceEndpoint]) -> VoiceBank:
        """This bank and the voices of servers. UsageError if a voice would stand in it twice: splits are disjoint."""
        voices = list(self._voices.values())
        for endpoint in endpoints:
            split = Split(endpoint.split)
            for name in endpoint_clips(endpoint):
                voices.append(VoiceInfo(name, ENDPOINT, split, endpoint.accent, endpoint.gender))
        return VoiceBank(voices) if endpoints else self

    def require(self, names: Iterable[str], allowed: set[Split], stage: str) -> None:
        """Refuse a stage that names a voice of another split: leakage of test voices is an error, not a warning."""
        for name in names:
            info = self.voice(name)
            if info.split not in allowed:
                fitting = ", ".join(n for n in self._voices if self._voices[n].split in allowed)
                raise UsageError(
                    f"{stage} may not use voice {name!r}: it is a {info.split} voice, {stage} takes "
                    f"{' and '.join(sorted(allowed))} voices",
                    f"choose from: {fitting}",
                )


def endpoint_clips(endpoint: VoiceEndpoint) -> dict[str, ReferenceClip | None]:
    """Voices of an endpoint -> what each is cloned from; None for voices that the server knows by name.

    UsageError for a folder without speakers, or a named speaker that it does not hold.
    """
    if endpoint.speakers is None:
        return dict.fromkeys(endpoint.voices)
    clips, without = _speakers(Path(endpoint.speakers).expanduser())
    for name in endpoint.voices:
        if name in without:
            raise UsageError(f"speaker {name!r} has no clip of 3 to 30 s in {endpoint.speakers}", "record a longer one")
        if name not in clips:
            raise unknown("reference speaker", name, clips)
    return {name: clips[name] for name in endpoint.voices or clips}


@cache
def _speakers(folder: Path) -> tuple[dict[str, ReferenceClip], list[str]]:
    """Read once in a process: thousands of headers."""
    return reference_speakers(folder)


@cache
def load_bank() -> VoiceBank:
    """The bank that ships with rba: ENGINE.SPLIT.ACCENT_GENDER = [names] in bank.toml."""
    table = tomllib.loads(resources.files(__package__).joinpath("bank.toml").read_text(encoding="utf-8"))
    voices: list[VoiceInfo] = []
    for engine, splits in table.items():
        for split, groups in splits.items():
            for group, names in groups.items():
                accent, gender = group.split("_")
                voices += [VoiceInfo(name, engine, Split(split), accent, gender) for name in names]
    return VoiceBank(voices)
