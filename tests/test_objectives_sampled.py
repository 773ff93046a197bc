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
from rbalign.train.objectives import Answers, advantages, grpo, opd, rba_group, rba_single, sft
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


def taken(theta, reference, behaviour, view, ids, capped):
    """One sample as grpo takes it: Answers of one row, and its log-probs when drawn."""
    own = rows(theta, reference, [(view, *shorten(ids, capped))])
    return own, logprobs_of(behaviour[view], shorten(ids, capped)[0]).detach()[None]


def grpo_gradient(theta, reference, behaviour, drawn, capped, kl, estimator, exact=False):
    """One sample a view; advantages are relative to both views' samples."""
    gained = advantages([SCORES[ids] for ids in drawn], "none")
    live = theta.clone().requires_grad_()
    loss = live.sum() * 0.0
    for view, (ids, advantage) in enumerate(zip(drawn, gained, strict=True)):
        if advantage is None:
            continue
        kept = shorten(ids, capped)[0]
        if exact:
            own, old, base = (logprobs_of(table[view], kept) for table in (live, behaviour, reference))
            ratio = (own - old.detach()).exp()
            log_ratio = own - base.detach()
            penalty = log_ratio**2 / 2 if estimator == "k2" else (-log_ratio).exp() - 1 + log_ratio
            bounded = torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.4) * advantage)
            loss = loss + (kl * penalty - bounded).sum()
        else:
            one, old = taken(live, reference, behaviour, view, ids, capped)
            settings = {"clip": (0.1, 0.4), "kl": kl, "kl_estimator": estimator}
            loss = loss + grpo(one, torch.tensor([advantage]), old, **settings).sum
    return torch.autograd.grad(loss, live)[0]


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize(("stale", "kl", "estimator"), [(False, 0.0, "k2"), (True, 0.3, "k2"), (False, 0.3, "k3")])
def test_grpo_sampled_gradient_is_exact_in_the_mean(capped, stale, kl, estimator):
    theta, reference = tables(13), tables(14)
    behaviour = theta + 0.3 * tables(15) if stale else theta
    both = list(itertools.product(SEQUENCES, repeat=2))
    settings = (theta, reference, behaviour)
    of = {drawn: grpo_gradient(*settings, drawn, capped, kl, estimator) for drawn in both}
    chance = {d: torch.stack([logprobs_of(behaviour[v], d[v]).sum() for v in (0, 1)]).sum().exp() for d in both}
    exact = sum(chance[d] * grpo_gradient(*settings, d, capped, kl, estimator, exact=True) for d in both)
    drawn = zip(*(keyed_samples(behaviour[view], view) for view in (0, 1)), strict=True)
    assert_mean_equals([of[d] for d in drawn], exact)


def divergence(p, q):
    return (p.exp() * (p - q)).sum()


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_kl_term_has_the_gradient_that_its_name_promises(estimator):
    """First tokens alone, all enumerated: k2 pulls like KL(policy || reference), k3 like KL(reference || policy)."""
    theta, reference = tables(9)[0, 0], tables(10)[0, 0].log_softmax(-1)
    live = theta.clone().requires_grad_()
    own = live.log_softmax(-1)
    ones = torch.ones(3, 1, dtype=torch.bool)
    samples = Answers(own[:, None], ones, reference[:, None], torch.zeros(3, dtype=torch.bool))
    expected = torch.zeros(3, dtype=torch.float64)
    for token in range(3):
        row = Answers(*(value[token : token + 1] for value in samples))
        loss = grpo(row, torch.zeros(1, dtype=torch.float64), kl=1.0, kl_estimator=estimator).sum
        expected += theta.softmax(-1)[token] * torch.autograd.grad(loss, live, retain_graph=True)[0]
    promised = divergence(own, reference) if estimator == "k2" else divergence(reference, own)
    torch.testing.assert_close(expected, torch.autograd.grad(promised, live)[0], atol=1e-12, rtol=0)


def logits_of(theta, ids):
    """The distributions that predicted each token; the forced end has the same one everywhere: no divergence."""
    before = [0, *ids[:-1]]
    table = [theta.new_tensor([50.0, 0.0, 0.0]) if place == 2 else theta[token] for place, token in enumerate(before)]
    return torch.stack(table)


def opd_gradient(theta, teacher, ids, capped, exact=False):
    kept = shorten(ids, capped)[0]
    live = theta.clone().requires_grad_()
    own, target = logits_of(live[0], kept), logits_of(teacher[1], kept)
    if exact:
        loss = sum(divergence(a, b) for a, b in zip(own.log_softmax(-1), target.log_softmax(-1), strict=True))
    else:
        loss = opd(own[None], target[None], torch.ones(1, len(kept), dtype=torch.bool)).sum
    return torch.autograd.grad(loss, live)[0]


@pytest.mark.parametrize("capped", [False, True])
def test_opd_sampled_gradient_is_exact_in_the_mean(capped):
    theta, teacher = tables(11), tables(12)
    of = {ids: opd_gradient(theta, teacher, ids, capped) for ids in SEQUENCES}
    chance = {ids: logprobs_of(theta[0], ids).sum().exp() for ids in SEQUENCES}
    exact = sum(chance[ids] * opd_gradient(theta, teacher, ids, capped, exact=True) for ids in SEQUENCES)
    assert_mean_equals([of[ids] for ids in keyed_samples(theta[0], 0)], exact)


def test_opd_has_the_gradient_of_the_score_function_form():
    """E[sum_t grad log pi(y_t) (log pi(y_t) - log p_T(y_t))], the form for a teacher that gives log-probs alone."""
    theta, teacher = tables(11), tables(12)
    whole, by_score = torch.zeros_like(theta), torch.zeros_like(theta)
    for ids in SEQUENCES:
        chance = logprobs_of(theta[0], ids).sum().exp()
        whole += chance * opd_gradient(theta, teacher, ids, capped=False)
        live = theta.clone().requires_grad_()
        own = logprobs_of(live[0], ids)
        log_ratio = (own - logprobs_of(teacher[1], ids)).detach()
        by_score += chance * torch.autograd.grad((own * log_ratio).sum(), live)[0]
    torch.testing.assert_close(whole, by_score, atol=1e-12, rtol=0)


# ---- samples of a server that draws a little otherwise ----------------------------------------------------------


def chance_of(theta, view, ids, capped=False):
    return logprobs_of(theta[view], shorten(ids, capped)[0]).sum().exp()


def corrected(name, theta, served, view, ids, capped=False):
    """The gradient of one served sample under its importance weight, through the objective's own `row_weights`."""
    weight = (chance_of(theta, view, ids, capped) / chance_of(served, view, ids, capped))[None]
    live = theta.clone().requires_grad_()
    if name == "single":
        y_ref, own = (rows(live, theta, [one]) for one in ((view, (2, 1, END), False), (view, *shorten(ids, capped))))
        loss = rba_single(y_ref, own, beta=0.7, row_weights=weight)
    else:
        kept = shorten(ids, capped)[0]
        target = logits_of(tables(12)[1], kept)
        mask = torch.ones(1, len(kept), dtype=torch.bool)
        loss = opd(logits_of(live[view], kept)[None], target[None], mask, row_weights=weight)
    return torch.autograd.grad(loss.sum, live)[0]


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("name", ["single", "opd"])
def test_weights_make_the_servers_samples_those_of_the_policy(name, capped):
    theta = tables(11)
    served = theta + tables(16)
    of = {ids: corrected(name, theta, served, 0, ids, capped) for ids in SEQUENCES}
    plain = {ids: corrected(name, theta, theta, 0, ids, capped) for ids in SEQUENCES}
    exact = sum(logprobs_of(theta[0], ids).sum().exp() * plain[ids] for ids in SEQUENCES)
    drawn = keyed_samples(served[0], 0)
    assert_mean_equals([of[ids] for ids in drawn], exact)
    with pytest.raises(AssertionError):  # left out, they are seen to be missing
        assert_mean_equals([plain[ids] for ids in drawn], exact)


@pytest.mark.parametrize("crossed", [False, True])
def test_a_pair_is_weighed_by_all_samples_that_it_was_chosen_from(crossed):
    theta, reference = tables(2), tables(3)
    served = theta + 0.3 * tables(17)
    both = list(itertools.product(SEQUENCES, repeat=2))
    plain = {d: group_gradient(theta, reference, d, False, crossed) for d in both}
    chance = {d: torch.stack([logprobs_of(theta[v], d[v]).sum() for v in (0, 1)]).sum().exp() for d in both}
    weight = {d: chance[d] / chance_of(served, 0, d[0]) / chance_of(served, 1, d[1]) for d in both}
    exact = sum(chance[d] * plain[d] for d in both)
    drawn = list(zip(*(keyed_samples(served[view], view) for view in (0, 1)), strict=True))
    assert_mean_equals([weight[d] * plain[d] for d in drawn], exact)
    with pytest.raises(AssertionError):
        assert_mean_equals([plain[d] for d in drawn], exact)


def test_grpos_tokens_are_weighed_one_by_one():
    """TIS is a token's weight, not its prefix's: exact for the first token, and equal to r A where it stands alone."""
    theta, served = tables(13), tables(13) + 0.3 * tables(18)
    expected, mean = torch.zeros_like(theta), torch.zeros_like(theta)
    for token in range(3):
        advantage = torch.tensor([(-1.0, 0.5, 2.0)[token]], dtype=torch.float64)
        live = theta.clone().requires_grad_()
        own = logprobs_of(live[0], (token,))
        answers = Answers(own[None], torch.ones(1, 1, dtype=torch.bool), None, torch.tensor([False]))
        ratio = (own - logprobs_of(served[0], (token,))).detach().exp()[None]
        loss = grpo(answers, advantage, None, ratio)
        mean += served[0, 0].softmax(-1)[token] * torch.autograd.grad(loss.sum, live)[0]
        live = theta.clone().requires_grad_()
        gain = live[0, 0].softmax(-1)[token] * advantage[0]
        expected -= torch.autograd.grad(gain, live)[0]
    torch.testing.assert_close(mean, expected, atol=1e-12, rtol=0)
