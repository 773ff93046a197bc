"""Tiny sets of our own that ship as texts, so that `rba eval --tasks smoke` runs offline: smoke, not comparable.

What is said, by which voice and through what is planned here, by a fixed key; the clips are made on the user's machine
(`stages.smoke`). Test voices alone: no stage trains on them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from rbalign.config.views import CLEAN, FLUENT
from rbalign.keys import Key
from rbalign.rundir.files import stable_hash
from rbalign.text.spoken import spoken_form
from rbalign.types import Example, Split, View, ViewSpec
from rbalign.voices.bank import load_bank

ENGINE = "kokoro"
SEED = 0
WAYS: Sequence[tuple[str, float]] = (
    (CLEAN, 1.0),
    ("noise:pink@5dB", 1.0),
    ("telephone", 1.0),
    (CLEAN, 1.3),
    (CLEAN, 0.75),
)
"""(channel, speed) of each question's views; the first is the one that all others are held against."""
ACROSS_VOICES = 100
"""How many of the questions all test voices ask."""
FILES = {"voices": "qa"}
"""Sets whose texts are another set's."""
LANGUAGES = ("German", "Spanish")
"""Of translations, in the order of their columns."""


@dataclass(frozen=True)
class SmokeSet:
    """Instructions in the order in which `--limit` takes them, and their views without audio."""

    examples: Sequence[Example]
    views: Sequence[View]
    content: str
    """Hash of the texts and of how they are said."""


@cache
def smoke_set(name: str) -> SmokeSet:
    """The set of that file, "qa", "disfluency", "open", "instructions", "translation", or "voices"."""
    file = FILES.get(name, name)
    rows = tomllib.loads(resources.files(__package__).joinpath(f"{file}.toml").read_text(encoding="utf-8"))["items"]
    voices = load_bank().names(Split.TEST, ENGINE)
    made = [_MAKERS[file](row) for row in rows]
    # By key, not as written: the first twenty are of all kinds.
    made.sort(key=lambda pair: Key(SEED, "smoke-order", example=pair[0].id).digest())
    made = made[: ACROSS_VOICES if name == "voices" else None]
    views = []
    for example, said in made:
        if name == "voices":
            views += [_view(example, index, voice, *WAYS[0]) for index, voice in enumerate(voices)]
            continue
        voice = voices[Key(SEED, "smoke-voice", example=example.id).digest() % len(voices)]
        views += _views(example, voice, WAYS if name == "qa" else WAYS[:1], said)
    content = stable_hash([rows, voices, [list(way) for way in WAYS], SEED])[:16]
    return SmokeSet([example for example, _ in made], views, content)


def _view(example: Example, index: int, voice: str, channel: str, speed: float) -> View:
    return View(example.id, index, Split.TEST, ViewSpec(voice, speed, channel, FLUENT, SEED), 0.0)


def _views(
    example: Example, voice: str, ways: Sequence[tuple[str, float]], corrected: tuple[str, str] | None
) -> list[View]:
    """All views of an example in one voice, so that nothing but the way differs."""
    views = [_view(example, index, voice, *way) for index, way in enumerate(ways)]
    if corrected is not None:
        said, retracted = corrected
        spec = ViewSpec(voice, delivery="correction", seed=SEED)
        views.append(View(example.id, len(views), Split.TEST, spec, 0.0, said=said, retracted=retracted))
    return views


def _example(name: str, request: str, reference: str | None = None, **labels: Any) -> Example:
    identity = f"{name}-{stable_hash(request)[:10]}"
    return Example(identity, Split.TEST, request, spoken_form(request), reference=reference, labels=labels)


_Made = tuple[Example, tuple[str, str] | None]
"""An example, and how it is said when corrected: all of it, and the value that is taken back."""


def _question(row: Sequence[Any]) -> _Made:
    request, aliases = row
    return _example("qa", request, aliases=aliases), None


def _corrected(row: Sequence[Any]) -> _Made:
    fluent, said, retracted, aliases, others = row
    example = _example("df", fluent, aliases=aliases, retracted_aliases=others)
    return example, (spoken_form(said), retracted)


def _open(row: Sequence[Any]) -> _Made:
    request, reference = row
    return _example("open", request, reference), None


def _constrained(row: Sequence[Any]) -> _Made:
    request, constraint, arguments = row
    return _example("if", request, constraints=[[constraint, arguments]]), None


def _translated(row: Sequence[Any]) -> _Made:
    sentence, *translations = row
    return _example("tr", sentence, translations=dict(zip(LANGUAGES, translations, strict=True))), None


_MAKERS: Mapping[str, Callable[[Sequence[Any]], _Made]] = {
    "qa": _question,
    "disfluency": _corrected,
    "open": _open,
    "instructions": _constrained,
    "translation": _translated,
}
