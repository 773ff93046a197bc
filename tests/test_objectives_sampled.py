"""Sampled objectives on a policy small enough to enumerate: mean of sampled gradients = exact gradient.

The policy is a table of logits for each view: from the start, after token 1, after token 2; token 0 ends. The third
token is forced to end, or, with `capped`, the sample is cut after two: truncated, without an end token.
"""

import itertools

import numpy as np
import pytest
import torch

from rbalign.keys import Key
from rbalign.lm.sampler import SamplingParams, draw
from rbalign.train.objectives import Answers, rba_group, rba_single, sft
from rbalign.train.rollout import best_and_worst

END, DRAWS = 0, 6000
SEQUENCES = [(END,), *[(a, END) for a in (1, 2)], *[(a, b, END) for a in (1, 2) for b in (1, 2)]]


def tables(seed, views=2):
    torch.manual_seed(seed)
    return torch.randn(views, 3, 3, dtype=torch.float64)


def logprobs_of(theta, ids):
    """Log-probs of each token of one answer under one view's table; the forced end costs nothing."""
    steps, before = [], 0
    for position, token in enumerate(ids):
        steps.append(theta.new_zeros(()) if position == 2 else theta[before].log_softmax(-1)[token])
        before = token
    return torch.stack(steps)


def written_out(theta, reference, up, down):
    """The pair term of one pair straight from the paper, independent of the code under test; 0 if one side is cut."""
    if up[2] != down[2]:
        return 0.0 * theta.sum()
    ratios = [(logprobs_of(theta[v], ids) - logprobs_of(reference[v], ids)).sum() for v, ids, _ in (up, down)]
    return -torch.log(torch.sigmoid(0.7 * ratios[0] - 0.7 * ratios[1]))


def shorten(ids, capped):
    """(ids, truncated): with a cap of two tokens, longer answers lose their end."""
    return (ids[:2], True) if capped and len(ids) > 2 else (ids, False)


def rows(theta, reference, taken):
    """Answers of [(view, ids, truncated)]."""
    own = [logprobs_of(theta[v], ids) for v, ids, _ in taken]
    old = [logprobs_of(reference[v], ids).detach() for v, ids, _ in taken]
    pad = lambda values: torch.nn.utils.rnn.pad_sequence(values, batch_first=True)  # noqa: E731
    mask = pad([torch.ones(len(ids)) for _, ids, _ in taken]).bool()
    return Answers(pad(own), mask, pad(old), torch.tensor([cut for _, _, cut in taken]))


def keyed_samples(theta_view, view):
    """DRAWS answers from the project's own keyed sampler arithmetic."""
    digests = np.array([Key(3, "enumerate", view=view, sample=n).digest() for n in range(DRAWS)], dtype=np.uint64)
    before, ids = torch.zeros(DRAWS, dtype=torch.long), []
    for position in range(2):
        token, _ = draw(theta_view.detach()[before], SamplingParams(2), digests, position)
        ids.append(token)
        before = token
    return [(a,) if a == END else (a, b) if b == END else (a, b, END) for a, b in torch.stack(ids, 1).tolist()]


def single_gradient(theta, reference, view, ids, capped, exact=False):
    theta = theta.clone().requires_grad_()
    y_ref, own = (view, (2, 1, END), False), (view, *shorten(ids, capped))
    if exact:
        return torch.autograd.grad(written_out(theta, reference, y_ref, own), theta)[0]
    loss = rba_single(rows(theta, reference, [y_ref]), rows(theta, reference, [own]), beta=0.7)
    return torch.autograd.grad(loss.sum, theta)[0]


SCORES = dict(zip(SEQUENCES, (None, 0.2, 0.9, 0.2, 0.6, 0.9, -1.0), strict=True))


def group_gradient(theta, reference, drawn, capped, crossed, exact=False):
    """One sample a view; the score knows the text only; ties and unscored samples give no pair."""
    places = best_and_worst([SCORES[ids] for ids in drawn], Key(0, "tie"))
    if places is None:
        return torch.zeros_like(theta)
    theta = theta.clone().requires_grad_()
    up, down = ((place, *shorten(drawn[place], capped)) for place in places)
    if exact:
        halves = [(up, (up[0], *down[1:])), ((down[0], *up[1:]), down)] if crossed else [(up, down)]
        loss = sum(written_out(theta, reference, *half) for half in halves) / len(halves)
        return torch.autograd.grad(loss, theta)[0]
    sides = [rows(theta, reference, [side]) for side in (up, down)]
    swapped = None
    if crossed:
        swapped = tuple(rows(theta, reference, [side]) for side in ((down[0], *up[1:]), (up[0], *down[1:])))
    return torch.autograd.grad(rba_group(*sides, swapped, beta=0.7).sum, theta)[0]


def assert_mean_equals(samples, exact):
    """Every coordinate of the sampled mean within 3 standard errors, and the signal far above the noise."""
    stacked = torch.stack(samples)
    error = stacked.std(0) / len(samples) ** 0.5
    away = (stacked.mean(0) - exact).abs()
    assert (away <= 3 * error + 1e-12).all(), (away / error).max()
    assert exact.norm() > 5 * error.norm()


@pytest.mark.parametrize("capped", [False, True])
def test_rba_single_sampled_gradient_is_exact_in_the_mean(capped):
    theta, reference = tables(0), tables(1)
    of = {ids: single_gradient(theta, reference, 0, ids, capped) for ids in SEQUENCES}
    chance = {ids: logprobs_of(theta[0], ids).sum().exp() for ids in SEQUENCES}
    assert float(sum(chance.values())) == pytest.approx(1)
    exact = sum(chance[ids] * single_gradient(theta, reference, 0, ids, capped, exact=True) for ids in SEQUENCES)
    assert_mean_equals([of[ids] for ids in keyed_samples(theta[0], 0)], exact)


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("crossed", [False, True])
def test_rba_group_sampled_gradient_is_exact_in_the_mean(capped, crossed):
    theta, reference = tables(2), tables(3)
    both = list(itertools.product(SEQUENCES, repeat=2))
    of = {drawn: group_gradient(theta, reference, drawn, capped, crossed) for drawn in both}
    chance = {d: torch.stack([logprobs_of(theta[v], d[v]).sum() for v in (0, 1)]).sum().exp() for d in both}
    exact = sum(chance[d] * group_gradient(theta, reference, d, capped, crossed, exact=True) for d in both)
    drawn = zip(*(keyed_samples(theta[view], view) for view in (0, 1)), strict=True)
    assert_mean_equals([of[d] for d in drawn], exact)


def test_rba_single_starts_as_half_beta_times_the_summed_ce():
    """pi_theta = pi_ref, temperature 1, nothing cut: E[grad L_S] = beta/2 grad CE, for any y_ref."""
    theta, beta = tables(4), 0.7
    for y_ref in SEQUENCES:
        expected = torch.zeros_like(theta)
        for ids in SEQUENCES:
            live = theta.clone().requires_grad_()
            chosen, own = (rows(live, theta, [(0, ids_, False)]) for ids_ in (y_ref, ids))
            gradient = torch.autograd.grad(rba_single(chosen, own, beta=beta).sum, live)[0]
            expected += logprobs_of(theta[0], ids).sum().exp() * gradient
        live = theta.clone().requires_grad_()
        chosen = rows(live, theta, [(0, y_ref, False)])
        ce = torch.autograd.grad(sft(chosen.logprobs, chosen.mask, reduction="sum").sum, live)[0]
        torch.testing.assert_close(expected, beta / 2 * ce, atol=1e-12, rtol=0)


def test_the_identity_ends_where_the_reference_is_another():
    """It is a property of the start: elsewhere RBA-Single is no multiple of SFT (or the ablations would be empty)."""
    theta, reference = 0.2 * tables(4), 3 * tables(5)
    chance = {ids: logprobs_of(theta[0], ids).sum().exp() for ids in SEQUENCES}
    exact = sum(chance[ids] * single_gradient(theta, reference, 0, ids, False) for ids in SEQUENCES).flatten()
    live = theta.clone().requires_grad_()
    chosen = rows(live, theta, [(0, (2, 1, END), False)])
    ce = torch.autograd.grad(sft(chosen.logprobs, chosen.mask, reduction="sum").sum, live)[0].flatten()
    rest = exact - (exact @ ce) / (ce @ ce) * ce
    assert rest.norm() > 0.05 * exact.norm()
