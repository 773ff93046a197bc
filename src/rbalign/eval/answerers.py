"""Who answers: arms that hear, references that read, and what each was given. All of them are one `Policy`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch

from rbalign.eval.collect import Answered
from rbalign.eval.items import Item
from rbalign.keys import Key
from rbalign.lm.sampler import Prompts, Sample, SamplingParams
from rbalign.speechlm.base import Policy
from rbalign.types import View

SCORED = "scored"
"""The stop of a row that holds a model's number about a given text, not an answer."""
SCORE_BATCH = 32

ClipOf = Callable[[Item], View]


def own_clip(item: Item) -> View:
    """The clip that says the item's instruction."""
    return item.view


@dataclass(frozen=True)
class SpeechAnswerer:
    """An arm: hears a clip and answers."""

    policy: Policy
    params: SamplingParams
    seed: int
    base: bool = False
    """True answers with LoRA off: the model before alignment."""
    hear: bool = False
    """Also keep what the adapter heard (ctc adapter only)."""
    clip_of: ClipOf = own_clip

    def answer(self, items: Sequence[Item]) -> list[Answered]:
        """See `Answerer`."""
        views = [self.clip_of(item) for item in items]
        prompts = _with_instructions(self.policy, views, [item.beside for item in items])
        samples = self.policy.sample(prompts, self.params, _keys(items, self.seed), base=self.base)
        heard = self.policy.heard(views) if self.hear else [None] * len(views)
        return [
            _answered(self.policy, own[0], f"<{view.id}>", words)
            for own, view, words in zip(samples, views, heard, strict=True)
        ]


@dataclass(frozen=True)
class TextAnswerer:
    """Reads: the text LLM (`base`), an arm's own text side, or, with `transcribe`, a cascade."""

    policy: Policy
    params: SamplingParams
    seed: int
    base: bool = False
    transcribe: Callable[[Sequence[View]], list[str]] | None = None
    """Where the words come from the clip. None reads the written instruction."""
    greedy: dict[str, Answered] = field(default_factory=dict)
    """Greedy answers by their words: five clips of an instruction are one request to a reader, and one answer."""

    def answer(self, items: Sequence[Item]) -> list[Answered]:
        """See `Answerer`."""
        heard = self.transcribe([item.view for item in items]) if self.transcribe else [None] * len(items)
        read = [text if text is not None else item.example.instruction for text, item in zip(heard, items, strict=True)]
        words = [item.written(text) for text, item in zip(read, items, strict=True)]
        if self.params.temperature == 0:
            new = {text: item for text, item in zip(words, items, strict=True) if text not in self.greedy}
            self.greedy.update(zip(new, self._sampled(list(new), list(new.values())), strict=True))
            answers = [self.greedy[text] for text in words]
        else:
            answers = self._sampled(words, items)
        return [replace(answer, heard=text) for answer, text in zip(answers, heard, strict=True)]

    def _sampled(self, words: Sequence[str], items: Sequence[Item]) -> list[Answered]:
        if not words:
            return []
        samples = self.policy.sample(
            self.policy.text_prompts(words), self.params, _keys(items, self.seed), base=self.base
        )
        return [_answered(self.policy, own[0], text, None) for own, text in zip(samples, words, strict=True)]


@dataclass(frozen=True)
class ReferenceLoss:
    """NLL per token of y_ref (end token included) on speech or on text: a number about an arm, not an answer."""

    policy: Policy
    base: bool = False
    text: bool = False

    @torch.no_grad()
    def answer(self, items: Sequence[Item]) -> list[Answered]:
        """See `Answerer`; the number is `values["nll"]`. An instruction without y_ref gives none."""
        known = [item for item in items if item.example.answer]
        losses: dict[str, float] = {}
        if known:
            completions = [[self.policy.completion_ids(str(item.example.answer))] for item in known]
            with self.policy.untouched() if self.base else nullcontext():
                logprobs, mask = self.policy.measure(self._prompts(known), completions)
            means = (-logprobs.sum(1) / mask.sum(1)).tolist()
            losses = {item.id: round(mean, 6) for item, mean in zip(known, means, strict=True)}
        return [
            Answered("", SCORED, f"<{item.view.id}>", values={"nll": losses[item.id]} if item.id in losses else {})
            for item in items
        ]

    def _prompts(self, items: Sequence[Item]) -> Prompts:
        if self.text:
            return self.policy.text_prompts([item.example.instruction for item in items])
        return self.policy.prompts([item.view for item in items])


def teacher_scores(
    policy: Policy,
) -> Callable[[Sequence[str], Sequence[Sequence[int]]], list[list[float] | None]]:
    """A function (instructions, token ids) -> the untouched text LLM's log-prob of every token.

    On the sampled ids, so that a truncated answer is not asked for an end that it does not have. None for no ids.
    """

    @torch.no_grad()
    def scores(instructions: Sequence[str], ids: Sequence[Sequence[int]]) -> list[list[float] | None]:
        out: list[list[float] | None] = [None] * len(ids)
        # Answers to one instruction hang on one prompt: five of them take 1.6 times less than one by one.
        own: dict[str, list[int]] = {}
        for place in (place for place in range(len(ids)) if ids[place]):
            own.setdefault(instructions[place], []).append(place)
        asked = sorted(own, key=lambda words: len(words) + max(len(ids[place]) for place in own[words]))
        for batch in _of_size(asked, own, SCORE_BATCH):
            prompts, places = policy.text_prompts(batch), [own[words] for words in batch]
            with policy.untouched():
                logprobs, _ = policy.measure(prompts, [[torch.tensor(list(ids[i])) for i in mine] for mine in places])
            for i, row in zip((i for mine in places for i in mine), logprobs, strict=True):
                out[i] = row[: len(ids[i])].tolist()
        return out

    return scores


def _of_size(asked: Sequence[str], own: Mapping[str, Sequence[int]], size: int) -> Iterator[list[str]]:
    """Instructions in batches of about `size` answers."""
    batch: list[str] = []
    for words in asked:
        batch.append(words)
        if sum(len(own[one]) for one in batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def _with_instructions(policy: Policy, views: Sequence[View], besides: Sequence[str]) -> Prompts:
    """Speech prompts, each with its own instruction; what stands before a clip is the same for all."""
    if len(set(besides)) == 1:
        return policy.prompts(views, besides[0])
    alone = [policy.prompts([view], beside) for view, beside in zip(views, besides, strict=True)]
    return Prompts([one.rows[0] for one in alone], alone[0].shared)


def _keys(items: Sequence[Item], seed: int) -> list[list[Key]]:
    return [[item.key(seed)] for item in items]


def _answered(policy: Policy, sample: Sample, prompt: str, heard: str | None) -> Answered:
    ids = tuple(sample.ids.tolist())
    return Answered(policy.decode(sample.ids), str(sample.stop), prompt, heard, ids, float(sample.logprobs.sum()))
