"""A decode loop for Llama-class models: preallocated cache, fused projections, shared prefix once, finished rows out.

Floor for SmolLM2-135M in float32: 2 x 134.5 M multiply-adds a token, about 1,000 tokens a second in a batch of 32 on
two cores of an AMD EPYC (Zen 5). benchmarks/sampler.py measures the distance and the ratio to `generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rbalign.errors import UsageError
from rbalign.keys import Key
from rbalign.lm.products import packed, product
from rbalign.lm.sampler import Prompts, Sample, SamplingParams, Watch, cut, draw, embed, flat_keys, group_by_row

COMPACT_BELOW = 0.75
"""Finished rows leave the batch once fewer than this share still runs: copying the cache costs about one step."""


@dataclass(slots=True)
class _Layer:
    """Weights of one block, packed: qkv ((H+2K)d, D), out (D, Hd), gate_up (2F, D), down (D, F); its norms."""

    norm_attention: Tensor
    norm_mlp: Tensor
    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor

    @classmethod
    def of(cls, layer: Any) -> _Layer:
        """A decoder block's current weights, LoRA merged in."""
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            norm_attention=layer.input_layernorm.weight,
            norm_mlp=layer.post_attention_layernorm.weight,
            qkv=_fused(attention.q_proj, attention.k_proj, attention.v_proj),
            out=_fused(attention.o_proj),
            gate_up=_fused(mlp.gate_proj, mlp.up_proj),
            down=_fused(mlp.down_proj),
        )


@dataclass(slots=True)
class _Cache:
    """Keys and values of every layer (L, B, K, C, d), the mask of real positions (B, C), and how many are filled."""

    keys: Tensor
    values: Tensor
    real: Tensor
    filled: int

    def take(self, rows: Tensor) -> _Cache:
        """The same cache for a selection (or repetition) of rows."""
        return _Cache(self.keys[:, rows], self.values[:, rows], self.real[rows], self.filled)


class FusedSampler:
    """Keyed sampling from a Llama-class causal LM, LoRA merged in.

    Its weights are those of the last `refresh()`: copies where `products` packs, elsewhere the model's own tensors if a
    layer has no LoRA. Refresh after every step.
    """

    def __init__(self, model: Any) -> None:
        if not self.supports(model):
            raise UsageError(
                f"the fused sampler knows Llama-class models, not {model.config.model_type!r}", "use GenerateSampler"
            )
        self.model = model
        self.decoder = model.get_decoder()
        config = self.decoder.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.epsilon = config.rms_norm_eps
        self.prefix_passes = 0
        self.refresh()

    @staticmethod
    def supports(model: Any) -> bool:
        """Llama blocks without biases: RMSNorm, rotary positions, grouped-query attention, SwiGLU. Voxtral has them."""
        config = model.get_decoder().config
        return bool(
            config.model_type == "llama"
            and not getattr(config, "attention_bias", False)
            and not getattr(config, "mlp_bias", False)
        )

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the current weights, LoRA merged in. The former copy goes first: a second one beside it is 538 MB."""
        self.layers: list[_Layer] = []
        self.head = torch.empty(0)
        self.layers += map(_Layer.of, self.decoder.layers)
        self.head = packed(_merged(self.model.get_output_embeddings()))

    @torch.no_grad()
    def sample(
        self, prompts: Prompts, params: SamplingParams, keys: Sequence[Sequence[Key]], watch: Watch | None = None
    ) -> list[list[Sample]]:
        """See `Sampler`. A row's prompt is computed once, whatever the number of its samples."""
        owners, digests = flat_keys(keys)
        if not owners:
            return [[] for _ in keys]
        used = sorted(set(owners))
        cache, hidden = self._prefill(prompts, used, params.max_new_tokens)
        place = {row: i for i, row in enumerate(used)}
        repeat = torch.tensor([place[row] for row in owners])
        logits = product(hidden[repeat], self.head)
        if len(used) != len(owners):
            cache = cache.take(repeat)
        ids, logprobs = self._decode(cache, logits, params, digests, watch)
        samples = [cut(ids[i], logprobs[i], params.stop_ids) for i in range(len(owners))]
        return group_by_row(samples, owners, len(keys))

    def _prefill(self, prompts: Prompts, used: list[int], new_tokens: int) -> tuple[_Cache, Tensor]:
        """Cache of the shared prefix (computed once) and the left-padded rows, and the last hidden state (B, D)."""
        shared = embed(self.model, prompts.shared) if prompts.shared is not None else None
        rows = [embed(self.model, prompts.rows[row]) for row in used]
        start = 0 if shared is None else len(shared)
        width = max(len(row) for row in rows)
        if width == 0 and start == 0:
            raise UsageError("a prompt is empty", "give at least one token before the completion")
        cache = self._new_cache(1 if start else len(rows), start + width + new_tokens)
        hidden = None
        if shared is not None and start:
            self.prefix_passes += 1
            cache.real[:, :start] = True
            hidden = self._forward(shared[None], cache, torch.arange(start)[None])
            cache, hidden = cache.take(torch.zeros(len(rows), dtype=torch.long)), hidden.expand(len(rows), -1)
        if width == 0:
            assert hidden is not None
            return cache, hidden
        x = torch.zeros(len(rows), width, self.decoder.config.hidden_size)
        pads = torch.tensor([width - len(row) for row in rows])
        for i, row in enumerate(rows):
            x[i, width - len(row) :] = row
        cache.real[:, start : start + width] = torch.arange(width) >= pads[:, None]
        positions = (start + torch.arange(width) - pads[:, None]).clamp_(min=0)
        last = self._forward(x, cache, positions)
        if hidden is not None:  # a row of its own with no content continues from the shared prefix
            last = torch.where((pads == width)[:, None], hidden, last)
        return cache, last

    def _decode(
        self, cache: _Cache, logits: Tensor, params: SamplingParams, digests: Any, watch: Watch | None
    ) -> tuple[Tensor, Tensor]:
        """Draw until every row stopped: ids and log-probs (B, max_new_tokens); what lies after a stop is cut later."""
        rows, stops = torch.arange(len(digests)), torch.tensor(params.stop_ids, dtype=torch.long)
        ids = torch.zeros(len(rows), params.max_new_tokens, dtype=torch.long)
        logprobs = torch.zeros(ids.shape)
        running = torch.ones(len(rows), dtype=torch.bool)
        embeddings = self.model.get_input_embeddings().weight
        for step in range(params.max_new_tokens):
            token, logprob = draw(logits, params, digests[rows.numpy()], step)
            ids[rows, step], logprobs[rows, step] = token, logprob
            if watch is not None:
                for place in running.nonzero()[:, 0].tolist():
                    watch(int(rows[place]), int(token[place]))
            running &= ~torch.isin(token, stops)
            if step + 1 == params.max_new_tokens or not running.any():
                break
            if running.float().mean() < COMPACT_BELOW:
                kept = running.nonzero()[:, 0]
                cache, rows, token, running = cache.take(kept), rows[kept], token[kept], running[kept]
            cache.real[:, cache.filled] = True
            positions = cache.real.sum(dim=1, keepdim=True) - 1
            logits = product(self._forward(embeddings[token][:, None], cache, positions), self.head)
        return ids, logprobs

    def _new_cache(self, batch: int, capacity: int) -> _Cache:
        shape = (len(self.layers), batch, self.kv_heads, capacity, self.head_dim)
        return _Cache(torch.empty(shape), torch.empty(shape), torch.zeros(batch, capacity, dtype=torch.bool), 0)

    def _forward(self, x: Tensor, cache: _Cache, positions: Tensor) -> Tensor:
        """Run new positions (B, T, D) through all blocks, fill the cache, return the last normed state (B, D)."""
        batch, new, width = x.shape
        start, end = cache.filled, cache.filled + new
        rotary = _signed(*self.decoder.rotary_emb(x, positions))
        bias = self._attention_bias(cache, start, end)
        flat = x.reshape(batch * new, width)
        for index, layer in enumerate(self.layers):
            normed = F.rms_norm(flat, (width,), layer.norm_attention, self.epsilon)
            attended = self._attend(product(normed, layer.qkv).view(batch, new, -1), cache, index, rotary, bias)
            flat = flat + product(attended.reshape(batch * new, -1), layer.out)
            normed = F.rms_norm(flat, (width,), layer.norm_mlp, self.epsilon)
            gate, up = product(normed, layer.gate_up).chunk(2, dim=-1)
            flat += product(F.silu(gate).mul_(up), layer.down)
        cache.filled = end
        last = flat.view(batch, new, width)[:, -1]
        return F.rms_norm(last, (width,), self.decoder.norm.weight, self.epsilon)

    def _attention_bias(self, cache: _Cache, start: int, end: int) -> Tensor:
        """0 where a new position may look, -1e30 elsewhere: (BK, GT, end), G query heads to each of K. Finite, so that
        pads stay finite."""
        allowed = cache.real[:, None, :end]
        if end - start > 1:
            causal = torch.arange(end) <= torch.arange(start, end)[:, None]
            allowed = allowed & causal
        bias = torch.zeros(allowed.shape).masked_fill_(~allowed, -1e30)[:, None, None]
        batch, group = len(allowed), self.heads // self.kv_heads
        whole = bias.expand(batch, self.kv_heads, group, end - start, end)
        return whole.reshape(batch * self.kv_heads, group * (end - start), end)

    def _attend(self, qkv: Tensor, cache: _Cache, index: int, rotary: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        """Grouped-query attention without expanding the cache: (B, T, (H+2K)d) -> (B, T, Hd)."""
        batch, new, _ = qkv.shape
        heads, kv_heads, dim = self.heads, self.kv_heads, self.head_dim
        end = cache.filled + new
        keys, values = cache.keys[index, :, :, :end], cache.values[index, :, :, :end]
        states = qkv.view(batch, new, heads + 2 * kv_heads, dim).transpose(1, 2)
        q, k = torch.split(_rotate(states[:, : heads + kv_heads], *rotary), [heads, kv_heads], dim=1)
        keys[:, :, cache.filled :], values[:, :, cache.filled :] = k, states[:, heads + kv_heads :]
        q = q.reshape(batch * kv_heads, heads // kv_heads * new, dim)
        scores = torch.baddbmm(bias, q, keys.reshape(batch * kv_heads, end, dim).transpose(1, 2), alpha=dim**-0.5)
        mixed = torch.bmm(scores.softmax(dim=-1), values.reshape(batch * kv_heads, end, dim))
        return mixed.view(batch, heads, new, dim).transpose(1, 2).reshape(batch, new, heads * dim)


def _signed(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """cos, sin (B, T, d) as `_rotate` takes them: (B, 1, T, d), the sign of the turned first half in the sine."""
    half = sin.shape[-1] // 2
    return cos[:, None], torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)[:, None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x (B, H, T, d) with cos and the signed sine (B, 1, T, d)."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def _fused(*projections: Any) -> Tensor:
    """Projections of one input side by side, packed: (sum of outputs, D)."""
    weights = [_merged(projection) for projection in projections]
    return packed(torch.cat(weights) if len(weights) > 1 else weights[0])


def _merged(projection: Any) -> Tensor:
    """A linear layer's weight with its active, enabled LoRA deltas added (peft's LoraLayer interface)."""
    weight: Tensor = projection.weight.detach()
    if not hasattr(projection, "get_delta_weight") or projection.disable_adapters or projection.merged:
        return weight
    for adapter in projection.active_adapters:
        if adapter in projection.lora_A:
            weight = weight + projection.get_delta_weight(adapter)
    return weight
