"""Sampling from any causal LM: one protocol, keyed noise, untempered log-probs.

Two implementations: `GenerateSampler` here (transformers' `generate`, every family) and `fused.FusedSampler`
(a decode loop for Llama-class models). Teacher, rollout and evaluation use nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from rbalign.keys import Key, uniforms
from rbalign.types import StopReason

NUCLEUS_TRIES = 64
"""Rejections before a nucleus draw falls back to the likeliest token: at top-p 0.5 that happens once in 2^64."""


TEMPERATURE_AT, TOP_P_AT = 1 << 40, 1 << 41
"""Positions of a row's noise at which it draws its own temperature and top-p: no token is ever drawn there."""

Level = float | tuple[float, float]
"""One value for all rows, or the lowest and highest between which each row's key draws its own."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Temperature 0 is greedy. `stop_ids` end a sample and are its last id."""

    max_new_tokens: int
    temperature: Level = 1.0
    top_p: Level = 1.0
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompts:
    """Rows to continue, as ids (P_i,) int64 or as embeddings (P_i, D); rows may differ in length.

    `shared` is a prefix that stands before every row, (S,) or (S, D): samplers compute it once. Ids and embeddings
    may be mixed between `shared` and `rows`: ids go through the model's own input embeddings.
    """

    rows: Sequence[Tensor]
    shared: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion. `logprobs` are log pi(token | before) at temperature 1 without top-p, whatever was drawn from."""

    ids: Tensor
    """(T,) int64; the end token is included when `stop` is END."""
    logprobs: Tensor
    """(T,) float32."""
    stop: StopReason


Watch = Callable[[int, int], None]
"""Hears (place of the sample in row-major order, token) for each token as it is drawn: for streaming."""


class Sampler(Protocol):
    """Draws `len(keys[i])` samples for row i. Same keys, same samples, in any batch."""

    def sample(
        self, prompts: Prompts, params: SamplingParams, keys: Sequence[Sequence[Key]], watch: Watch | None = None
    ) -> list[list[Sample]]:
        """One inner list for each row, in the order of its keys."""
        ...

    def refresh(self) -> None:
        """Take over the model's current weights (LoRA included); needed after every update."""


def draw(logits: Tensor, params: SamplingParams, digests: np.ndarray, position: int) -> tuple[Tensor, Tensor]:
    """Choose a token for each row: logits (B, V), key digests (B,) -> ids (B,), log-probs (B,).

    Inverse CDF with one keyed uniform a row. Top-p by rejection: a token drawn from the whole distribution lies in
    the nucleus exactly when the tokens likelier than it hold less than top-p together; else the row draws again.
    That is O(V) without a sort (a sort of 64 x 49,152 costs more than the rest of the step).
    """
    if params.temperature == 0:
        return (ids := logits.argmax(dim=-1)), _untempered(logits, ids)
    plain = params.temperature == 1
    probs = (logits if plain else logits / _columns(params.temperature, digests, TEMPERATURE_AT)).softmax(dim=-1)
    ids = _inverse_cdf(probs, uniforms(digests, position))
    if params.top_p != 1:
        _redraw_outside_nucleus(ids, probs, _columns(params.top_p, digests, TOP_P_AT), digests, position)
    # Every pass over (64, 49152) logits costs about a hundredth of a step: at temperature 1 none is left to do.
    return ids, probs.gather(1, ids[:, None])[:, 0].log() if plain else _untempered(logits, ids)


def _untempered(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(dim=-1)


def own_levels(level: Level, digests: np.ndarray, position: int) -> np.ndarray:
    """Each row's temperature or top-p, (B,) float64: its own wherever it stands."""
    if not isinstance(level, tuple):
        return np.full(len(digests), level)
    low, high = level
    return low + (high - low) * uniforms(digests, position)


def _columns(level: Level, digests: np.ndarray, position: int) -> Tensor:
    return torch.from_numpy(own_levels(level, digests, position)).float()[:, None]


def _inverse_cdf(probs: Tensor, uniform: np.ndarray) -> Tensor:
    """First token whose cumulative probability exceeds the uniform: (B, V), (B,) -> (B,)."""
    cumulative = probs.cumsum(dim=-1)
    target = torch.from_numpy(uniform).to(probs.dtype) * cumulative[:, -1]
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0].clamp_(max=probs.shape[1] - 1)


def _redraw_outside_nucleus(ids: Tensor, probs: Tensor, top_p: Tensor, digests: np.ndarray, position: int) -> None:
    """Replace, in place, draws outside the nucleus, top_p (B, 1). Try k of a row has the noise at position + 2^20 k."""
    rows = torch.arange(len(ids))
    for attempt in range(1, NUCLEUS_TRIES + 1):
        chosen = probs[rows].gather(1, ids[rows, None])
        likelier = torch.where(probs[rows] > chosen, probs[rows], 0.0).sum(dim=-1)
        rows = rows[likelier >= top_p[rows, 0]]
        if not len(rows):
            return
        ids[rows] = _inverse_cdf(probs[rows], uniforms(digests[rows.numpy()], position + (attempt << 20)))
    ids[rows] = probs[rows].argmax(dim=-1)


def embed(model: Any, piece: Tensor) -> Tensor:
    """Ids (P,) -> embeddings (P, D); embeddings pass through."""
    if piece.is_floating_point():
        return piece
    embedded: Tensor = model.get_input_embeddings()(piece)
    return embedded


def whole_rows(model: Any, prompts: Prompts) -> list[Tensor]:
    """Each row with the shared prefix before it, as embeddings (S + P_i, D)."""
    rows = [embed(model, row) for row in prompts.rows]
    if prompts.shared is None:
        return rows
    shared = embed(model, prompts.shared)
    return [torch.cat([shared, row]) for row in rows]


def flat_keys(keys: Sequence[Sequence[Key]]) -> tuple[list[int], np.ndarray]:
    """Row index of every sample and its key's digest, in row-major order."""
    owners = [row for row, own in enumerate(keys) for _ in own]
    return owners, np.array([key.digest() for own in keys for key in own], dtype=np.uint64)


def group_by_row(samples: Sequence[Sample], owners: Sequence[int], rows: int) -> list[list[Sample]]:
    """The inverse of `flat_keys`: samples back under their rows."""
    grouped: list[list[Sample]] = [[] for _ in range(rows)]
    for sample, row in zip(samples, owners, strict=True):
        grouped[row].append(sample)
    return grouped


def cut(ids: Tensor, logprobs: Tensor, stop_ids: tuple[int, ...]) -> Sample:
    """End a row of drawn tokens (T,) at its first stop token."""
    stops = torch.isin(ids, torch.tensor(stop_ids, dtype=ids.dtype)).nonzero()
    if len(stops):
        end = int(stops[0]) + 1
        return Sample(ids[:end].clone(), logprobs[:end].clone(), StopReason.END)
    return Sample(ids.clone(), logprobs.clone(), StopReason.LENGTH)


class _KeyedChoice(LogitsProcessor):  # type: ignore[misc]
    """Makes `generate`'s greedy search take the keyed draw: the drawn token gets 0, all others -inf."""

    def __init__(self, params: SamplingParams, digests: np.ndarray, watch: Watch | None) -> None:
        self.params, self.digests, self.watch = params, digests, watch
        self.logprobs: list[Tensor] = []
        self.running = set(range(len(digests)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ids, logprobs = draw(scores.float(), self.params, self.digests, position=len(self.logprobs))
        self.logprobs.append(logprobs)
        if self.watch is not None:
            for place in sorted(self.running):
                self.watch(place, int(ids[place]))
                if int(ids[place]) in self.params.stop_ids:
                    self.running.discard(place)
        return torch.full_like(scores, -torch.inf).scatter_(1, ids[:, None], 0.0)


@contextmanager
def _without_release_settings(model: Any) -> Iterator[None]:
    """`generate` takes what it is not told from the release's generation_config.json, where a repetition penalty may
    stand (1.05 beside Audio Flamingo 3's weights): it would bend the scores before the keyed draw sees them."""
    released, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = released


class GenerateSampler:
    """transformers' `generate` behind the protocol: slower, and right for every family."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def refresh(self) -> None:
        """Nothing to do: `generate` reads the live weights."""

    @torch.no_grad()
    def sample(
        self, prompts: Prompts, params: SamplingParams, keys: Sequence[Sequence[Key]], watch: Watch | None = None
    ) -> list[list[Sample]]:
        """See `Sampler`. Rows are left-padded embeddings."""
        owners, digests = flat_keys(keys)
        if not owners:
            return [[] for _ in keys]
        rows = whole_rows(self.model, prompts)
        width = max(len(row) for row in rows)
        embeds = torch.zeros(len(owners), width, rows[0].shape[1])
        mask = torch.zeros(len(owners), width, dtype=torch.long)
        for place, row in enumerate(owners):
            embeds[place, width - len(rows[row]) :] = rows[row]
            mask[place, width - len(rows[row]) :] = 1
        choice = _KeyedChoice(params, digests, watch)
        with _without_release_settings(self.model):
            ids = self.model.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                max_new_tokens=params.max_new_tokens,
                do_sample=False,
                eos_token_id=list(params.stop_ids) or None,
                pad_token_id=params.stop_ids[0] if params.stop_ids else 0,
                logits_processor=LogitsProcessorList([choice]),
            )
        logprobs = torch.stack(choice.logprobs, dim=1)
        samples = [cut(ids[i], logprobs[i], params.stop_ids) for i in range(len(owners))]
        return group_by_row(samples, owners, len(keys))
