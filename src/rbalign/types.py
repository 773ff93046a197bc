"""The nouns, as frozen records. No torch, no numpy: every layer may import this file.

Shape letters used across the project: B rows, T completion tokens, P prompt positions, V vocabulary, D model
width, F encoder frames, N audio positions, K views of an example, n samples of a view.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class StopReason(StrEnum):
    """Why a sample ended. A LENGTH sample carries no end token and is never taught one; FAILED means that a server
    gave none at all."""

    END = "end"
    LENGTH = "length"
    FAILED = "failed"


class Split(StrEnum):
    """Splits of texts and of voices. TEST_ONLY voices (other synthesisers, humans) serve reports alone."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"
    TEST_ONLY = "test-only"


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """One rendering of an instruction: who says it, how fast, through what channel, how fluently."""

    voice: str
    speed: float = 1.0
    channel: str = "clean"
    """In the language of `config.views`: "noise:babble@5dB+telephone"."""
    delivery: str = "fluent"
    """In the language of `config.views`: what was done to the text, "filler+stutter"."""
    seed: int = 0
    """With the view's id it keys all that was drawn for channel and delivery."""


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction with the teacher's answers. `views` of it live in the dataset's parquet shards."""

    id: str
    split: str
    instruction: str
    """The written form, as the teacher wrote it."""
    spoken: str
    """What the voices say: the spoken form of `instruction`."""
    answer: str | None = None
    """The teacher's answer to the written instruction (y_ref): the training target, complete with its end."""
    reference: str | None = None
    """An independent teacher sample with another key: what unoptimised metrics compare against."""
    labels: dict[str, Any] = field(default_factory=dict)
    """Free labels: acceptable QA answers under "aliases", topic, source, counts."""


@dataclass(frozen=True, slots=True)
class View:
    """One clip. `flac` holds the encoded audio (16 kHz mono unless the manifest says otherwise)."""

    example_id: str
    index: int
    """Position of this view among the views of its example, 0-based: the `view` field of every Key."""
    split: str
    spec: ViewSpec
    seconds: float
    flac: bytes = field(repr=False, default=b"")
    said: str | None = None
    """What the voice was given to say, where the delivery is not fluent; None: the example's `spoken`."""
    retracted: str | None = None
    """What `said` says first and takes back: a value (correction) or a start (restart). Not part of `spoken`."""

    @property
    def id(self) -> str:
        """Unique in a dataset: `EXAMPLE/INDEX`."""
        return f"{self.example_id}/{self.index}"
