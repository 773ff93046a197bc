"""Read-back: an independent ASR hears what the voices said; what it does not understand is said again, or dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from rbalign.config.synth import ReadBackConfig
from rbalign.keys import Key
from rbalign.rundir.journal import Journal
from rbalign.text.normalise import word_errors
from rbalign.types import View
from rbalign.voices.bank import VoiceBank
from rbalign.voices.pool import Clip, SpeakFailure, SpeakJob

Speak = Callable[[Iterable[View]], Iterator[tuple[str, Clip]]]
"""Views -> (view id, clip) of each, in any order."""
CHUNK = 16
"""Clips heard at a time, while the voices wait."""


def other_voices(views: Iterable[View], bank: VoiceBank, seed: int) -> Callable[[View], list[str]]:
    """For a view: voices of its split and engine that say nothing of its example, in an order drawn by key.

    The views of an example share them out, so that two that are said again never meet in one voice.
    """
    taken: dict[str, list[str]] = {}
    for view in views:
        taken.setdefault(view.example_id, []).append(view.spec.voice)

    def others(view: View) -> list[str]:
        engine = bank.voice(view.spec.voice).engine
        mine = taken[view.example_id]
        free = [name for name in bank.names(view.split, engine) if name not in mine]
        draw = Key(seed, "read-back-voice", example=view.example_id).generator()
        return [free[place] for place in draw.permutation(len(free))][view.index :: len(mine)]

    return others


class ReadBack:
    """Hears a stated share of the clips. What it heard goes to `journal`, a row for each try."""

    def __init__(
        self,
        config: ReadBackConfig,
        seed: int,
        transcribe: Callable[[Sequence[np.ndarray]], Iterable[str]],
        others: Callable[[View], list[str]],
        journal: Journal,
        language: str = "en",
    ) -> None:
        """transcribe: clips -> words, in order. others: the voices that may say a view again, the first first.
        language: by whose rules words are compared."""
        self._config, self._seed, self._transcribe = config, seed, transcribe
        self._others, self._journal, self._language = others, journal, language

    def understood(
        self, views: Iterable[View], own: Container[str], spoken: Mapping[str, str], speak: Speak
    ) -> Iterator[tuple[View, Clip]]:
        """Every view once, with its clip: by the voice that was understood, or with the failure that drops it.

        own: ids of the views that are heard; the others are only spoken. spoken: each example's fluent text. A
        disfluent clip may be heard as either.
        """
        waiting, attempt = {view.id: view for view in views}, 0
        while waiting:
            made, again = speak(waiting.values()), {}
            while chunk := [(waiting[identity], clip) for identity, clip in islice(made, CHUNK)]:
                for view, clip, row in self._heard(chunk, own, spoken, attempt):
                    if row is None or row["wer"] <= self._config.max_wer:
                        yield view, clip
                    elif attempt < min(self._config.other_voices, len(others := self._others(view))):
                        again[view.id] = replace(view, spec=replace(view.spec, voice=others[attempt]))
                    else:
                        yield view, SpeakFailure(SpeakJob.of(view, spoken), f"not understood by {self._config.model}")
            waiting, attempt = again, attempt + 1

    def _heard(
        self, chunk: Sequence[tuple[View, Clip]], own: Container[str], spoken: Mapping[str, str], attempt: int
    ) -> list[tuple[View, Clip, dict[str, Any] | None]]:
        """The chunk with the rows of those that were to be heard."""
        asked = [
            (view, clip)
            for view, clip in chunk
            if view.id in own and isinstance(clip, np.ndarray) and self._drawn(view)
        ]
        words = self._transcribe([clip for _, clip in asked])
        rows = {
            view.id: self._row(view, {SpeakJob.of(view, spoken).text, spoken[view.example_id]}, text, attempt)
            for (view, _), text in zip(asked, words, strict=True)
        }
        self._journal.append(list(rows.values()))
        return [(view, clip, rows.get(view.id)) for view, clip in chunk]

    def _drawn(self, view: View) -> bool:
        draw = Key(self._seed, "read-back", example=view.example_id, view=view.index).generator()
        return bool(draw.random() < self._config.share)

    def _row(self, view: View, texts: set[str], heard: str, attempt: int) -> dict[str, Any]:
        compared = (word_errors(text, heard, self._language) for text in sorted(texts))
        errors, words = min(compared, key=lambda pair: pair[0])
        return {
            "id": f"{view.id}#{attempt}",
            "voice": view.spec.voice,
            "heard": heard,
            "errors": errors,
            "words": words,
            "wer": round(errors / max(words, 1), 4),
        }


def read_back_summary(rows: Iterable[Mapping[str, Any]], max_wer: float) -> dict[str, Any]:
    """For the manifest, from the journal's rows: clips heard, said again and dropped, and the WER of those kept."""
    last: dict[str, Mapping[str, Any]] = {}
    tries = Counter[str]()
    for row in rows:
        view = row["id"].rpartition("#")[0]
        last[view] = row
        tries[view] += 1
    kept = [row for row in last.values() if row["wer"] <= max_wer]
    words = sum(row["words"] for row in kept)
    return {
        "clips": len(last),
        "said_again": sum(count > 1 for count in tries.values()),
        "dropped": len(last) - len(kept),
        "wer_of_kept": round(sum(row["errors"] for row in kept) / words, 4) if words else None,
    }
