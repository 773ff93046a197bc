"""Who answers: arms that hear, references that read, and what each was given. Everything samples by `lm.sampler`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rbalign.audio.io import read_audio
from rbalign.eval.collect import Answered
from rbalign.eval.items import Item
from rbalign.lm.logprobs import completion_logprobs
from rbalign.lm.sampler import Prompts, Sample, Sampler, SamplingParams
from rbalign.teacher.local import LocalTeacher
from rbalign.types import View

ENCODE_BATCH = 16
SCORED = "scored"
"""The stop of a row that holds a model's number about a given text, not an answer."""

ClipOf = Callable[[Item], View]


def own_clip(item: Item) -> View:
    """The clip that says the item's instruction."""
    return item.view


@dataclass(frozen=True, slots=True)
class Heard:
    """What hearing made of a clip."""

    embeds: Tensor
    """(N, D) audio positions in the LLM's input space."""
    transcript: str | None
    """Greedy CTC transcript; None for adapters without one."""


@dataclass
class Ear:
    """Encoder and adapter of a speech LLM. Each clip is heard once: arms that share them share an `Ear`."""

    model: Any
    """RbaSpeechForConditionalGeneration."""
    processor: Any
    _kept: dict[str, Heard] = field(default_factory=dict)

    def listen(self, views: Sequence[View]) -> list[Heard]:
        """What was heard in each clip. Raises DataError for a clip that cannot be decoded."""
        new = {view.id: view for view in views if view.id not in self._kept}
        todo = sorted(new.values(), key=lambda view: view.seconds)
        for start in range(0, len(todo), ENCODE_BATCH):
            batch = todo[start : start + ENCODE_BATCH]
            for view, heard in zip(batch, self._hear([read_audio(view.flac) for view in batch]), strict=True):
                self._kept[view.id] = heard
        return [self._kept[view.id] for view in views]

    @torch.no_grad()
    def _hear(self, clips: list[np.ndarray]) -> list[Heard]:
        inputs = self.processor(audio=clips)
        states = self.model.encode_audio(inputs["input_features"], inputs["feature_lengths"])
        embeds = self.model.adapt(states)
        if self.model.config.adapter_type != "ctc":
            return [Heard(clip, None) for clip in embeds]
        texts = [self.processor.tokenizer.decode(ids).strip() for ids in self.model.transcribe(states)]
        return [Heard(clip, text) for clip, text in zip(embeds, texts, strict=True)]


@dataclass(frozen=True)
class SpeechAnswerer:
    """An arm: hears the clip, answers by its own (adapted) LLM."""

    ear: Ear
    sampler: Sampler
    around: tuple[list[int], list[int]]
    """Token ids before and after the user's content."""
    params: SamplingParams
    seed: int
    clip_of: ClipOf = own_clip

    def answer(self, items: Sequence[Item]) -> list[Answered]:
        """See `Answerer`."""
        views = [self.clip_of(item) for item in items]
        heard = self.ear.listen(views)
        prompts = self.ear.model.audio_prompts([one.embeds for one in heard], *self.around)
        samples = self.sampler.sample(prompts, self.params, [[item.key(self.seed)] for item in items])
        tokenizer = self.ear.processor.tokenizer
        return [
            answered(tokenizer, own[0], f"<{view.id}>", one.transcript)
            for own, view, one in zip(samples, views, heard, strict=True)
        ]


@dataclass(frozen=True)
class TextAnswerer:
    """A reference that reads (or an arm's own text side): written words through the chat template."""

    reader: LocalTeacher
    system: str | None
    params: SamplingParams
    seed: int
    transcribe: Callable[[Sequence[View]], list[str]] | None = None
    """Makes a cascade: the words come from the clip. None reads the written instruction."""

    def answer(self, items: Sequence[Item]) -> list[Answered]:
        """See `Answerer`."""
        heard = self.transcribe([item.view for item in items]) if self.transcribe else None
        words = heard if heard is not None else [item.example.instruction for item in items]
        keys = [[item.key(self.seed)] for item in items]
        samples = self.reader.sampler.sample(self.reader.prompts(words, self.system), self.params, keys)
        tokenizer = self.reader.lm.tokenizer
        return [
            answered(tokenizer, own[0], text, text if heard is not None else None)
            for own, text in zip(samples, words, strict=True)
        ]


def answered(tokenizer: Any, sample: Sample, prompt: str, heard: str | None) -> Answered:
    """A sample as a row: its text without special tokens, and its ids."""
    ids = tuple(sample.ids.tolist())
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return Answered(text, str(sample.stop), prompt, heard, ids, float(sample.logprobs.sum()))


@dataclass(frozen=True)
class ReferenceLoss:
    """NLL per token of y_ref (end token included) after an item's prompt: a number about an arm, not an answer."""

    model: Any
    """The causal LM, adapted or not."""
    prompts: Callable[[Sequence[Item]], Prompts]
    completion_ids: Callable[[str], Tensor]

    @torch.no_grad()
    def answer(self, items: Sequence[Item]) -> list[Answered]:
        """See `Answerer`; the number is `values["nll"]`. An instruction without y_ref gives none."""
        known = [item for item in items if item.example.answer]
        losses: dict[str, float] = {}
        if known:
            completions = [self.completion_ids(str(item.example.answer)) for item in known]
            logprobs, mask = completion_logprobs(self.model, self.prompts(known), completions)
            means = (-logprobs.sum(1) / mask.sum(1)).tolist()
            losses = {item.id: round(mean, 6) for item, mean in zip(known, means, strict=True)}
        return [
            Answered("", SCORED, f"<{item.view.id}>", values={"nll": losses[item.id]} if item.id in losses else {})
            for item in items
        ]


def teacher_scores(
    teacher: LocalTeacher, system: str | None, batch_size: int = 32
) -> Callable[[Sequence[str], Sequence[Sequence[int]]], list[list[float] | None]]:
    """A function (instructions, token ids) -> the text teacher's log-prob of every token.

    On the sampled ids, so that a truncated answer is not asked for an end that it does not have.
    """

    @torch.no_grad()
    def scores(instructions: Sequence[str], ids: Sequence[Sequence[int]]) -> list[list[float] | None]:
        out: list[list[float] | None] = [None] * len(ids)
        filled = sorted((i for i in range(len(ids)) if ids[i]), key=lambda i: len(instructions[i]) + len(ids[i]))
        for start in range(0, len(filled), batch_size):
            batch = filled[start : start + batch_size]
            prompts = teacher.prompts([instructions[i] for i in batch], system)
            completions = [torch.tensor(list(ids[i])) for i in batch]
            logprobs, _ = completion_logprobs(teacher.lm.model, prompts, completions)
            for i, row in zip(batch, logprobs, strict=True):
                out[i] = row[: len(ids[i])].tolist()
        return out

    return scores


def greedy(params: SamplingParams) -> SamplingParams:
    """The same limits at temperature 0: for answers that are right or wrong."""
    return SamplingParams(params.max_new_tokens, 0.0, 1.0, params.stop_ids)
