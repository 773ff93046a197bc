"""Log-probs of given completions: one forward pass, the vocabulary projected on completion positions only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rbalign.lm.branches import states_of
from rbalign.lm.sampler import Prompts, whole_rows


def completion_logits(model: Any, prompts: Prompts, completions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits that predict each completion token: (B, T, V) and mask (B, T), see `completion_hidden`."""
    hidden, mask = completion_hidden(model, prompts, completions)
    return model.get_output_embeddings()(hidden), mask


def completion_hidden(
    model: Any, prompts: Prompts, completions: Sequence[Tensor], layers: bool = False
) -> tuple[Tensor, Tensor]:
    """Hidden states that predict each completion token: (B, T, D), or with `layers` (B, T, L, D); and mask (B, T).

    `completions[i]` is (T_i,) int64 after `prompts.rows[i]`. Rows are right-padded: under a causal mask no valid
    position sees a pad, so that no attention mask is needed and the fast kernels apply. Differentiable in the
    model's weights and in embedding rows. Padded positions hold states of position 0 and are masked out.
    """
    embedding = model.get_input_embeddings()
    rows = whole_rows(model, prompts)
    sequences = [torch.cat([row, embedding(ids[:-1])]) for row, ids in zip(rows, completions, strict=True)]
    padded = pad_sequence(sequences, batch_first=True)
    output = model.get_decoder()(inputs_embeds=padded, use_cache=False, output_hidden_states=layers)
    hidden = states_of(output, layers)
    width = max(len(ids) for ids in completions)
    places = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width)
    for i, (row, ids) in enumerate(zip(rows, completions, strict=True)):
        places[i, : len(ids)] = torch.arange(len(row) - 1, len(row) - 1 + len(ids))
        mask[i, : len(ids)] = 1
    return hidden[torch.arange(len(rows))[:, None], places], mask


def token_logprobs(logits: Tensor, completions: Sequence[Tensor]) -> Tensor:
    """Log-softmax of logits (B, T, V) at the taken tokens: (B, T), 0 on padding."""
    ids = pad_sequence(list(completions), batch_first=True)
    taken = logits.gather(2, ids[..., None])[..., 0] - logits.logsumexp(dim=-1)
    lengths = torch.tensor([len(c) for c in completions])
    return taken.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], 0.0)


def completion_logprobs(model: Any, prompts: Prompts, completions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Untempered log-probs of the completions' tokens (B, T) and mask (B, T)."""
    logits, mask = completion_logits(model, prompts, completions)
    return token_logprobs(logits, completions), mask
