"""CTC over a language model's vocabulary without ever holding (frames x vocabulary) for the backward pass.

CTC needs, of each frame's distribution, the log-probabilities of the clip's own tokens and of blank. So the
normaliser is computed chunk by chunk together with its gradient (softmax @ table), and the dynamic programme runs on
the clip's own small alphabet. Exact: equal to `F.ctc_loss` on the full log-softmax in value and gradient (tested).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rbalign.lm.products import product
from rbalign.speechlm.encoder import valid_frames

CHUNK_ROWS = 128
"""Rows a chunk: of 49,152 words 25 MB, which malloc keeps for the next; from 32 MB on it would map and clear anew."""


class _LogSumExpRows(torch.autograd.Function):
    """log sum_v exp(h . table_v) for each row of h, the table being constant: (N,D), (V,D) -> (N,)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor) -> Tensor:
        sums = hidden.new_empty(len(hidden), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if hidden.requires_grad or ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            logits = product(hidden[rows], table)
            top = logits.amax(-1, keepdim=True)
            weights = logits.sub_(top).exp_()
            total = weights.sum(-1, keepdim=True, dtype=torch.float32)
            sums[rows] = (top + total.log()).squeeze(-1)
            if gradient is not None:
                gradient[rows] = product(weights, table.T) / total.to(table.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return sums

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream[0].to(gradient.dtype)[:, None] * gradient, None


def log_sum_exp_rows(hidden: Tensor, table: Tensor) -> Tensor:
    """log sum_v exp(h . table_v): (N,D), (V,D) -> (N,) float32; gradient to `hidden` only.

    Under autocast both products run in the autocast type.
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
        hidden, table = hidden.to(low), table.to(low)
    with torch.autocast(kind, enabled=False):
        result: Tensor = _LogSumExpRows.apply(hidden, table)  # type: ignore[no-untyped-call]
    return result


@dataclass(frozen=True)
class CtcLoss:
    """`total`: summed negative log-likelihood of the clips that fit; `tokens`: their target tokens;
    `impossible`: clips with fewer frames than their targets need, left out."""

    total: Tensor
    tokens: int
    impossible: int


def frames_needed(targets: Tensor) -> int:
    """The fewest frames that can spell `targets` (L,): one each, and a blank between equal neighbours."""
    return len(targets) + int((targets[1:] == targets[:-1]).sum())


def ctc_loss(hidden: Tensor, blank: Tensor, lengths: Tensor, table: Tensor, targets: list[Tensor]) -> CtcLoss:
    """CTC negative log-likelihood of `targets` (indices into `table`) under P(v) ~ exp(h.table_v), P(blank) ~ exp(b).

    hidden (B,T,D), blank logits (B,T), lengths (B,), table (V,D) constant, targets B x (L_i,) int64.
    """
    keep = valid_frames(lengths, hidden.shape[1])
    fits = torch.tensor([frames_needed(t) <= int(n) for t, n in zip(targets, lengths, strict=True)]).to(hidden.device)
    normaliser = hidden.new_zeros(keep.shape, dtype=torch.float32)
    normaliser = normaliser.masked_scatter(keep, log_sum_exp_rows(hidden[keep], table))
    normaliser = torch.logaddexp(normaliser, blank.float())

    alphabets, local = zip(*(torch.unique(t, return_inverse=True) for t in targets), strict=True)
    rows = table[nn.utils.rnn.pad_sequence(list(alphabets), batch_first=True)]  # (B,A,D)
    own = torch.bmm(hidden, rows.transpose(1, 2)).float()  # (B,T,A)
    log_probs = torch.cat([blank.float()[..., None], own], dim=-1) - normaliser[..., None]
    losses = F.ctc_loss(
        log_probs.transpose(0, 1),
        nn.utils.rnn.pad_sequence([t + 1 for t in local], batch_first=True),
        lengths,
        torch.tensor([len(t) for t in targets]),
        blank=0,
        reduction="none",
        zero_infinity=True,
    )
    losses = losses + _undo_softmax_assumption(log_probs, keep & fits[:, None])
    tokens = sum(len(t) for t, fit in zip(targets, fits, strict=True) if fit)
    return CtcLoss(losses[fits].sum(), tokens, int((~fits).sum()))


def _undo_softmax_assumption(log_probs: Tensor, keep: Tensor) -> Tensor:
    """Zero in value; its gradient removes a term that F.ctc_loss adds: (B,).

    F.ctc_loss returns exp(lp) - occupancy as the gradient to each log-probability, which is right only when a
    log-softmax over the same columns follows. Here most columns were never made, so the first term must go.
    """
    term = (log_probs.detach().exp() * log_probs * keep[..., None]).sum((1, 2))
    return term.detach() - term


@dataclass(frozen=True)
class Segment:
    """Frames [start, end) that spell one token, index `token` of the table."""

    start: int
    end: int
    token: int


def segments(tokens: Tensor, blank_probability: Tensor, threshold: float) -> list[Segment]:
    """Greedy CTC of one clip: frames where blank wins are dropped, equal neighbours merged. Never empty.

    tokens (T,) best token of each frame, blank_probability (T,). If blank wins everywhere, the frame where it is
    weakest is kept, so that an LLM always gets a position.
    """
    best = tokens.tolist()
    kept = (blank_probability < threshold).tolist()
    found: list[Segment] = []
    for frame, (token, keep) in enumerate(zip(best, kept, strict=True)):
        if not keep:
            continue
        if found and found[-1].end == frame and found[-1].token == token:
            found[-1] = Segment(found[-1].start, frame + 1, token)
        else:
            found.append(Segment(frame, frame + 1, token))
    if not found:
        frame = int(blank_probability.argmin())
        found.append(Segment(frame, frame + 1, best[frame]))
    return found
