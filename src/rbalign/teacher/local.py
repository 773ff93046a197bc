"""A teacher in this process: any causal LM with a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from rbalign.keys import Key
from rbalign.lm.branches import branch_hidden
from rbalign.lm.fused import FusedSampler
from rbalign.lm.load import LM
from rbalign.lm.logprobs import completion_logprobs, token_logprobs
from rbalign.lm.sampler import GenerateSampler, Level, Prompts, Sample, Sampler, SamplingParams
from rbalign.lm.templates import around_user, end_ids, prequery_ids
from rbalign.rundir.files import stable_hash
from rbalign.teacher.base import CAPABILITIES, Written

SCORE_BATCH = 32
OPTION_BATCH = 8
"""Requests whose options are scored at once: eight options of four tokens over 49,152 are 50 MB of log-probs."""


def best_sampler(model: Any) -> Sampler:
    """The fused loop where the model is Llama-class, else transformers' `generate`."""
    return FusedSampler(model) if FusedSampler.supports(model) else GenerateSampler(model)


class LocalTeacher:
    """Writes instructions, answers them and scores answers with an `LM` that may serve others too (one copy).

    Threads may ask; it writes for one at a time, since `generate` reads settings that lie in the model.
    """

    can = CAPABILITIES

    def __init__(self, lm: LM, sampler: Sampler | None = None) -> None:
        self.lm = lm
        self.name = lm.name
        self.sampler = sampler or best_sampler(lm.model)
        self.end_ids = end_ids(lm.tokenizer)
        self.tokenizer_hash = stable_hash(lm.tokenizer.get_vocab())[:16]
        specials = sorted(set(lm.tokenizer.all_special_ids) - set(self.end_ids))
        self._specials = torch.tensor(specials, dtype=torch.long)
        self._writing = Lock()

    def params(self, temperature: Level, top_p: Level, max_new_tokens: int) -> SamplingParams:
        """Sampling parameters with this tokenizer's end tokens."""
        return SamplingParams(max_new_tokens, temperature, top_p, self.end_ids)

    def write_instructions(
        self, keys: Sequence[Key], params: SamplingParams, systems: Sequence[str | None]
    ) -> list[Written]:
        """Magpie (arXiv 2406.08464): continue the bare pre-query template; the model plays the user."""
        prefixes = {system: prequery_ids(self.lm.tokenizer, system) for system in set(systems)}
        alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prefixes.values(), strict=False))
        shared = [tokens[0] for tokens in alike]
        own = {system: torch.tensor(ids[len(shared) :], dtype=torch.long) for system, ids in prefixes.items()}
        return self._write(Prompts([own[system] for system in systems], torch.tensor(shared)), keys, params)

    def answer(
        self, instructions: Sequence[str], keys: Sequence[Key], params: SamplingParams, system: str | None = None
    ) -> list[Written]:
        """Answer written instructions through the chat template."""
        return self._write(self.prompts(instructions, system), keys, params)

    def loglikelihood(
        self, instructions: Sequence[str], answers: Sequence[str], system: str | None = None
    ) -> list[float | None]:
        """Mean log-prob per token (nats, end token included) of each answer; None for an empty answer."""
        scores: list[float | None] = [None] * len(answers)
        filled = [i for i, text in enumerate(answers) if text.strip()]
        for start in range(0, len(filled), SCORE_BATCH):
            batch = filled[start : start + SCORE_BATCH]
            prompts = self.prompts([instructions[i] for i in batch], system)
            completions = [self.completion_ids(answers[i]) for i in batch]
            with torch.no_grad():
                logprobs, mask = completion_logprobs(self.lm.model, prompts, completions)
            for i, value in zip(batch, (logprobs.sum(1) / mask.sum(1)).tolist(), strict=True):
                scores[i] = value
        return scores

    def option_loglikelihoods(
        self, instructions: Sequence[str], options: Sequence[str], system: str | None = None
    ) -> list[list[float]]:
        """Summed log-prob (nats, end token included) of each option as the whole answer to each request.

        A request is read once for all its options, the system prompt once for a batch.
        """
        completions = [self.completion_ids(option) for option in options]
        scores: list[list[float]] = []
        for start in range(0, len(instructions), OPTION_BATCH):
            prompts = self.prompts(instructions[start : start + OPTION_BATCH], system)
            rows = len(prompts.rows)
            with torch.no_grad():
                hidden, _ = branch_hidden(self.lm.model, prompts, [completions] * rows)
                logits = self.lm.model.get_output_embeddings()(hidden)
                sums = token_logprobs(logits, completions * rows).sum(1)
            scores += sums.view(rows, len(options)).tolist()
        return scores

    def prompts(self, instructions: Sequence[str], system: str | None = None) -> Prompts:
        """Chat prompts whose common part (system prompt and user header) is shared."""
        before, after = around_user(self.lm.tokenizer, system)
        encode = self.lm.tokenizer.encode
        rows = [torch.tensor(encode(text, add_special_tokens=False) + after) for text in instructions]
        return Prompts(rows, torch.tensor(before))

    def completion_ids(self, answer: str) -> Tensor:
        """Ids of a complete answer: its tokens and the end token."""
        return torch.tensor([*self.lm.tokenizer.encode(answer, add_special_tokens=False), self.end_ids[0]])

    def _write(self, prompts: Prompts, keys: Sequence[Key], params: SamplingParams) -> list[Written]:
        with self._writing:
            samples = self.sampler.sample(prompts, params, [[key] for key in keys])
        return [self._written(own[0]) for own in samples]

    def _written(self, sample: Sample) -> Written:
        """Decode; a stray special token inside (a turn header, say) leaves the text unusable: empty."""
        stray = bool(torch.isin(sample.ids, self._specials).any())
        text = "" if stray else self.lm.tokenizer.decode(sample.ids, skip_special_tokens=True).strip()
        return Written(text, sample.stop, len(sample.ids))
