"""The objectives on one page: pure functions of tensors. Source: RBA, arXiv 2509.03526 v1, section "Objectives".

Each returns `Loss(sum, weight, diagnostics)` and never a mean: sums and weights of micro-batches and ranks add up,
and the trainer divides once, so the loss is the same for every way of cutting an update into pieces.
Shapes: B rows, T completion tokens, V vocabulary, P pairs. `mask` is True on real tokens; padding has any value.
A truncated sample has no end token among its ids, hence no end-token term.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Positions whose (V,) distributions are worked on at once: 128 x 49,152 x 4 bytes = 25 MB for each temporary.
KD_CHUNK = 128


class Loss(NamedTuple):
    """`sum` (scalar, differentiable) over `weight` (scalar) is the loss once every piece has been added to both."""

    sum: Tensor
    weight: Tensor
    diagnostics: dict[str, Tensor]
    """Detached values, one for each row or pair: concatenate them over pieces, then average."""


class Answers(NamedTuple):
    """One answer a row, already taken: its log-probs under the policy and under the reference."""

    logprobs: Tensor
    """(B,T) log pi_theta(y_t | x, y_<t), differentiable."""
    mask: Tensor
    """(B,T) bool."""
    reference: Tensor | None
    """(B,T) log pi_ref of the same tokens, or None: the reference is dropped (a constant cancels in the pair)."""
    truncated: Tensor
    """(B,) bool: ended by the length cap, not by an end token."""

    def lengths(self) -> Tensor:
        """(B,) tokens in each answer."""
        return self.mask.sum(-1)

    def log_ratio(self, length_normalise: bool) -> Tensor:
        """(B,) log[pi_theta(y|x) / pi_ref(y|x)], summed over tokens, or their mean when `length_normalise`."""
        ratios = self.logprobs if self.reference is None else self.logprobs - self.reference
        total = ratios.masked_fill(~self.mask, 0.0).sum(-1)
        return total / self.lengths().clamp(min=1) if length_normalise else total


def sft(
    logprobs: Tensor,
    mask: Tensor,
    *,
    reduction: Literal["sum", "token_mean"] = "token_mean",
    row_weights: Tensor | None = None,
) -> Loss:
    """Distillation on the teacher's text: L_CE = -(1/K) sum_s sum_t log pi_theta(y_ref,t | x^(s), y_ref,<t).

    RBA, section 2. logprobs, mask: (B,T), a row for each view; row_weights: (B,). "sum" is the paper's (mean over
    views of summed token terms); "token_mean" divides by tokens instead of views.
    """
    weights = logprobs.new_ones(logprobs.shape[0]) if row_weights is None else row_weights
    nll = -logprobs.masked_fill(~mask, 0.0).sum(-1)
    tokens = mask.sum(-1)
    weight = (weights * tokens).sum() if reduction == "token_mean" else weights.sum()
    return Loss((weights * nll).sum(), weight, {"nll": (nll / tokens.clamp(min=1)).detach()})


def kd(student: Tensor, teacher: Tensor, mask: Tensor, *, row_weights: Tensor | None = None) -> Loss:
    """Offline distillation: sum_t KL(p_teacher(. | text, y_<t) || p_theta(. | speech, y_<t)), token mean.

    Hinton et al. 2015 at temperature 1 over the full vocabulary; the baseline that the RBA paper leaves out.
    student, teacher: (B,T,V) logits on completion positions of y_ref; mask: (B,T); row_weights: (B,).
    """
    return _distilled(student, teacher, mask, row_weights, "kl", lambda own, target: _token_kl(target, own))


def opd(student: Tensor, teacher: Tensor, mask: Tensor, *, row_weights: Tensor | None = None) -> Loss:
    """On-policy distillation: sum_t KL(p_theta(. | speech, y_<t) || p_teacher(. | text, y_<t)), token mean.

    As `kd` with the divergence turned round (GKD, arXiv 2306.13649), on the student's own samples y, whose ids the
    teacher reads after the written request. The prefixes count as given: the gradient is that of the next token's KL.
    student, teacher: (B,T,V) logits on completion positions; mask: (B,T).
    """
    return _distilled(student, teacher, mask, row_weights, "reverse_kl", _token_kl)


def _distilled(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    row_weights: Tensor | None,
    name: str,
    divergence: Callable[[Tensor, Tensor], Tensor],
) -> Loss:
    """Token mean of a divergence (N,V), (N,V) logits -> (N,), in chunks whose softmaxes the backward makes again."""
    weights = student.new_ones(student.shape[0]) if row_weights is None else row_weights
    token_weights = weights[:, None].expand_as(mask)[mask]
    chunks = zip(torch.split(student[mask], KD_CHUNK), torch.split(teacher[mask], KD_CHUNK), strict=True)
    pieces = [checkpoint(divergence, own, target, use_reentrant=False) for own, target in chunks]
    kl: Tensor = torch.cat(pieces)
    return Loss((token_weights * kl).sum(), token_weights.sum(), {name: kl.detach()})


def _token_kl(from_: Tensor, to: Tensor) -> Tensor:
    """(N,V), (N,V) logits -> (N,) KL(from_ || to)."""
    target = F.log_softmax(from_, -1)
    return F.kl_div(F.log_softmax(to, -1), target, log_target=True, reduction="none").sum(-1)


def rba_single(
    teacher_answer: Answers,
    own_sample: Answers,
    *,
    beta: float = 0.1,
    length_normalise: bool = False,
    row_weights: Tensor | None = None,
) -> Loss:
    """RBA-Single: chosen = y_ref, rejected = the model's own sample y^(s), both on the audio x^(s), for every voice.

    L_S = -log sigma( beta log[pi_theta/pi_ref](y_ref|x^(s)) - beta log[pi_theta/pi_ref](y^(s)|x^(s)) ).
    RBA, section 2 (the idea is SPIN's, arXiv 2401.01335). Rows are pairs: P = views x samples a view.
    Where pi_theta = pi_ref and samples are drawn from pi_theta untempered, E[grad L_S] = beta/2 grad of the summed CE.
    """
    return _preference(teacher_answer, own_sample, beta, length_normalise, row_weights)


def rba_group(
    chosen: Answers,
    rejected: Answers,
    crossed: tuple[Answers, Answers] | None = None,
    *,
    beta: float = 0.1,
    length_normalise: bool = False,
    row_weights: Tensor | None = None,
) -> Loss:
    """RBA-Group: of one sample a voice, chosen = argmax and rejected = argmin of the score, each on its own audio.

    L_G = -log sigma( beta log[pi_theta/pi_ref](y+|x+) - beta log[pi_theta/pi_ref](y-|x-) ).  RBA, section 2.
    Rows are pairs, one for each instruction. `crossed` (ours, conditioning = "cross") holds y+ on x- and y- on x+:
    the pair is then compared on each audio and the two halves are averaged, which takes the voices out of it.
    """
    if crossed is None:
        return _preference(chosen, rejected, beta, length_normalise, row_weights)
    chosen_elsewhere, rejected_elsewhere = crossed
    weights = chosen.logprobs.new_ones(len(chosen.mask)) if row_weights is None else row_weights
    here = _preference(chosen, rejected_elsewhere, beta, length_normalise, weights / 2)
    there = _preference(chosen_elsewhere, rejected, beta, length_normalise, weights / 2)
    both = {name: torch.cat([here.diagnostics[name], there.diagnostics[name]]) for name in here.diagnostics}
    return Loss(here.sum + there.sum, here.weight + there.weight, both)


def advantages(scores: Sequence[float | None], scale: Literal["std", "none"] = "std") -> list[float | None]:
    """How far each sample of one instruction, over all its views, lies above their mean score.

    GRPO (arXiv 2402.03300) divides by the standard deviation (n - 1, plus 1e-4); "none" is Dr.GRPO's (arXiv
    2503.20783). None for an unscored sample; all None where fewer than two are scored or all scores are equal.
    """
    known = torch.tensor([score for score in scores if score is not None], dtype=torch.float64)
    if len(known) < 2 or bool((known == known[0]).all()):
        return [None] * len(scores)
    spread = float(known.std()) + 1e-4 if scale == "std" else 1.0
    return [None if score is None else (score - float(known.mean())) / spread for score in scores]


def grpo(
    samples: Answers,
    advantage: Tensor,
    behaviour: Tensor | None = None,
    correction: Tensor | None = None,
    *,
    clip: tuple[float, float] = (0.2, 0.2),
    kl: float = 0.0,
    kl_estimator: Literal["k2", "k3"] = "k2",
    reduction: Literal["token_mean", "sample_mean", "constant"] = "token_mean",
    cap: int = 1,
) -> Loss:
    """GRPO over the views of an instruction: -min(r_t A, clip(r_t, 1 - lo, 1 + hi) A) + kl K_t, for each token.

    r_t = pi_theta / pi_behaviour of the taken token; `behaviour` (B,T) are log-probs when the sample was drawn, None
    if that was now (r = 1). `correction` (B,T): truncated importance weights of tokens that another arithmetic drew,
    which multiply the gain (TIS: Yao et al. 2025, On the Rollout-Training Mismatch). `advantage` (B,): see
    `advantages`. K_t against `samples.reference`: k2 = half the squared
    log-ratio, whose gradient is that of KL(pi_theta || pi_ref) in the mean; k3 is the published one, whose gradient
    is that of KL(pi_ref || pi_theta) (arXiv 2506.09477). reduction: "sample_mean" as published, "token_mean" over all
    tokens (DAPO, arXiv 2503.14476, which also raises hi to 0.28), "constant": sums divided by `cap` (Dr.GRPO).
    """
    old = samples.logprobs.detach() if behaviour is None else behaviour
    ratio = (samples.logprobs - old).masked_fill(~samples.mask, 0.0).exp()
    bounded = ratio.clamp(1.0 - clip[0], 1.0 + clip[1])
    gain = torch.minimum(ratio * advantage[:, None], bounded * advantage[:, None])
    gain = gain if correction is None else gain * correction
    tokens = samples.lengths().clamp(min=1).to(ratio.dtype)
    diagnostics = {"clipped": (bounded * advantage[:, None] < ratio * advantage[:, None]).sum(-1) / tokens}
    losses = -gain
    if kl > 0:
        assert samples.reference is not None
        log_ratio = (samples.logprobs - samples.reference).masked_fill(~samples.mask, 0.0)
        penalty = log_ratio**2 / 2 if kl_estimator == "k2" else (-log_ratio).expm1() + log_ratio
        losses = losses + kl * penalty
        diagnostics["reference_kl"] = log_ratio.sum(-1) / tokens
    by_row = losses.masked_fill(~samples.mask, 0.0).sum(-1)
    each = {
        "token_mean": torch.ones_like(by_row),
        "sample_mean": 1.0 / tokens,
        "constant": by_row.new_full(by_row.shape, 1.0 / cap),
    }
    weight = tokens.sum() if reduction == "token_mean" else by_row.new_tensor(len(by_row))
    details = {name: value.detach().to(by_row.dtype) for name, value in diagnostics.items()}
    return Loss((by_row * each[reduction]).sum(), weight, details)


def _preference(
    chosen: Answers, rejected: Answers, beta: float, length_normalise: bool, row_weights: Tensor | None
) -> Loss:
    """-log sigma(beta (ratio+ - ratio-)) a pair (DPO, arXiv 2305.18290, equation 7).

    A pair with one truncated side would compare a missing end token with a present one: it gets no weight and is
    counted in `one_sided`; the other diagnostics are those of the pairs that count.
    """
    kept = chosen.truncated == rejected.truncated
    weights = kept.to(chosen.logprobs.dtype)
    if row_weights is not None:
        weights = weights * row_weights
    up, down = chosen.log_ratio(length_normalise), rejected.log_ratio(length_normalise)
    margin = beta * (up - down)
    diagnostics = {
        "margin": margin[kept],
        "accuracy": (margin > 0)[kept].to(margin.dtype),
        "chosen_ratio": up[kept],
        "rejected_ratio": down[kept],
        "length_difference": (chosen.lengths() - rejected.lengths())[kept].to(margin.dtype),
        "one_sided": (~kept).to(margin.dtype),
    }
    losses = F.softplus(-margin)
    return Loss((weights * losses).sum(), weights.sum(), {name: value.detach() for name, value in diagnostics.items()})
