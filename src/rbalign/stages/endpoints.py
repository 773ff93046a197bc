"""The servers of a recipe while one stage runs: opened, tried before any work, counted, closed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from rbalign.assets import home, model_folder
from rbalign.config.endpoints import VoiceEndpoint
from rbalign.config.recipe import Recipe
from rbalign.config.sections import TeacherConfig
from rbalign.config.synth import SynthConfig
from rbalign.remote.counts import Counts, Ledger, in_words
from rbalign.rundir.files import sha256_file, stable_hash
from rbalign.rundir.progress import note
from rbalign.synth.write import close_teacher, open_teacher
from rbalign.voices.bank import endpoint_clips
from rbalign.voices.endpoint import EndpointSpeaker, endpoint_speakers

LEDGER = "remote.json"
TOKENIZER_FILES = ("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*")


class Servers:
    """A recipe's teacher and voices behind HTTP; of a recipe without any, nothing. Use it in a `with` block."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        """`folder` gets remote.json: requests, tokens and cost of all starts. Nothing is asked yet."""
        config = recipe.synth
        endpoints = config.endpoint_voices if config else ()
        self._config, self._tagger = recipe.teacher, tagger_config(recipe)
        self._needs = _teacher_needs(config)
        self._tried: list[tuple[TeacherConfig, frozenset[str]]] = []
        self.speakers: Mapping[str, EndpointSpeaker] = endpoint_speakers(endpoints, home())
        counts: dict[str, Counts] = {}
        for speaker in self._voices():
            counts[f"{speaker.config.split} voices {speaker.client.name}"] = speaker.client.counts
        if recipe.teacher.endpoint is not None:
            teacher = open_teacher(recipe.teacher)
            counts[f"teacher {teacher.name}"] = teacher.counts
        if self._tagger.endpoint is not None and self._tagger != recipe.teacher:
            tagger = open_teacher(self._tagger)
            counts[f"tagger {tagger.name}"] = tagger.counts
        self._saving = threading.Lock()
        self._ledger = Ledger(folder / LEDGER, counts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for speaker in self._voices():
            speaker.client.close()
        close_teacher(self._config)
        close_teacher(self._tagger)
        self.save()

    def try_voices(self) -> None:
        """One short clip of every endpoint. Raises UsageError or EndpointError if there is none to be had."""
        for speaker in self._voices():
            speaker.probe()

    def try_teacher(self) -> None:
        """One small request for each capability that the recipe declares; refused if one is not there, or lacks."""
        self._try(self._config, self._needs)

    def try_tagger(self) -> None:
        """The same for the server that labels instructions, if one does."""
        self._try(self._tagger, frozenset({"chat"}))

    def save(self) -> None:
        """Put the counts on the disk. The teacher's thread and the one that speaks ahead may both want to."""
        with self._saving:
            self._ledger.save()

    def tell(self) -> None:
        """A line about every server: what it was asked and what it cost, earlier starts included."""
        for name, totals in self._ledger.totals().items():
            note(f"{name}: {in_words(totals)}")

    def _try(self, config: TeacherConfig, needs: frozenset[str]) -> None:
        from rbalign.teacher.base import require

        if config.endpoint is not None and needs and (config, needs) not in self._tried:
            teacher = open_teacher(config)
            require(teacher, needs, "synth")
            teacher.probe()
            self._tried.append((config, needs))

    def _voices(self) -> list[EndpointSpeaker]:
        return list({id(speaker): speaker for speaker in self.speakers.values()}.values())


def tagger_config(recipe: Recipe) -> TeacherConfig:
    """Who labels the instructions of a recipe: [synth.labels] tagger, or the teacher."""
    labels = recipe.synth.labels if recipe.synth else None
    return labels.tagger if labels and labels.tagger else recipe.teacher


def _teacher_needs(config: SynthConfig | None) -> frozenset[str]:
    """Of a server: it writes where nobody has said anything yet, and answers where no other model translates."""
    if config is None:
        return frozenset({"continue"})
    writes = frozenset[str]() if config.recordings is not None else frozenset({"continue"})
    return writes | ({"chat"} if config.answers and config.translator is None else set())


def endpoint_inputs(recipe: Recipe) -> dict[str, str]:
    """Hashes of what servers are sent from this machine's files: reference clips, the teacher's template."""
    found: dict[str, str] = {}
    endpoint = recipe.teacher.endpoint
    if endpoint is not None and endpoint.template is not None:
        found["teacher.template"] = _hash_files(_tokenizer_files(model_folder(endpoint.template)))
    for number, voices in enumerate(recipe.synth.endpoint_voices if recipe.synth else ()):
        if voices.speakers is not None:
            found[f"endpoint_voices.{number}.speakers"] = _hash_files(_clips(voices))
    return found


def _clips(voices: VoiceEndpoint) -> dict[str, Path]:
    return {name: clip.path for name, clip in endpoint_clips(voices).items() if clip is not None}


def _tokenizer_files(folder: Path) -> dict[str, Path]:
    """Not the weights, which may lie beside them and are many gigabytes that nobody reads here."""
    return {path.name: path for pattern in TOKENIZER_FILES for path in sorted(folder.glob(pattern)) if path.is_file()}


def _hash_files(files: Mapping[str, Path]) -> str:
    hashes: dict[str, Any] = {name: sha256_file(path) for name, path in files.items()}
    return stable_hash(hashes)[:16]
