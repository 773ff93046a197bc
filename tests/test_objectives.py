"""Objectives against closed forms in float64, TRL's own numbers, and every way of cutting a batch."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rbalign.train.objectives import KD_CHUNK, Answers, advantages, grpo, kd, opd, rba_group, rba_single, sft

GOLDEN = json.loads((Path(__file__).parent / "goldens/trl_dpo.json").read_text())


def answers(logprobs, lengths, reference=None, truncated=None):
    """Rows of different lengths, padded with rubbish that must not matter."""
    width = max(lengths)
    table = torch.full((len(lengths), width), 1e3, dtype=torch.float64)
    base = None if reference is None else torch.full_like(table, -7e2)
    for row, length in enumerate(lengths):
        table[row, :length] = torch.as_tensor(logprobs[row], dtype=torch.float64)
        if base is not None:
            base[row, :length] = torch.as_tensor(reference[row], dtype=torch.float64)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    cut = torch.zeros(len(lengths), dtype=torch.bool) if truncated is None else torch.tensor(truncated)
    return Answers(table.requires_grad_(), mask, base, cut)


def test_sft_is_the_summed_or_the_mean_token_term():
    rows = answers([[-1.0, -2.0, -0.5], [-4.0]], [3, 1])
    loss = sft(rows.logprobs, rows.mask, reduction="sum")
    assert (loss.sum.item(), loss.weight.item()) == (7.5, 2)
    loss = sft(rows.logprobs, rows.mask, reduction="token_mean")
    assert (loss.sum.item(), loss.weight.item()) == (7.5, 4)
    assert loss.diagnostics["nll"].tolist() == pytest.approx([3.5 / 3, 4.0])
    weighted = sft(rows.logprobs, rows.mask, reduction="token_mean", row_weights=torch.tensor([0.5, 2.0]))
    assert (weighted.sum.item(), weighted.weight.item()) == (0.5 * 3.5 + 2 * 4, 0.5 * 3 + 2)


def test_sft_gradient_reaches_real_tokens_only():
    rows = answers([[-1.0, -2.0], [-4.0]], [2, 1])
    sft(rows.logprobs, rows.mask).sum.backward()
    assert rows.logprobs.grad.tolist() == [[-1, -1], [-1, 0]]


def test_kd_is_the_divergence_from_the_teacher():
    student = torch.tensor([[[0.0, 0.0, 0.0], [5.0, 5.0, 5.0]]], dtype=torch.float64, requires_grad=True)
    p = np.array([0.7, 0.2, 0.1])
    teacher = torch.tensor(np.stack([np.log(p), np.log(p)])[None])
    loss = kd(student, teacher, torch.tensor([[True, False]]))
    assert loss.sum.item() == pytest.approx(float((p * (np.log(p) - math.log(1 / 3))).sum()), abs=1e-12)
    assert loss.weight.item() == 1
    loss.sum.backward()
    np.testing.assert_allclose(student.grad[0], [1 / 3 - p, [0, 0, 0]], atol=1e-12)  # p_theta - p_teacher


def test_kd_chunks_add_up_and_directions_differ():
    torch.manual_seed(0)
    student = torch.randn(3, KD_CHUNK, 11, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, KD_CHUNK, 11, dtype=torch.float64)
    mask = torch.rand(3, KD_CHUNK) < 0.7
    loss = kd(student, teacher, mask, row_weights=torch.tensor([1.0, 0.0, 2.5]))
    p, q = teacher.softmax(-1), student.softmax(-1)
    each = (p * (p.log() - q.log())).sum(-1) * mask * torch.tensor([1.0, 0.0, 2.5])[:, None]
    torch.testing.assert_close(loss.sum, each.sum())
    assert loss.weight.item() == pytest.approx((mask.sum(1) * torch.tensor([1.0, 0.0, 2.5])).sum().item())
    got, expected = torch.autograd.grad(loss.sum, student)[0], torch.autograd.grad(each.sum(), student)[0]
    torch.testing.assert_close(got, expected)
    reverse = (q * (q.log() - p.log())).sum(-1) * mask
    assert abs(reverse.sum().item() - each.sum().item()) > 1


def closed_form(chosen, rejected, chosen_ref, rejected_ref, beta, mean):
    sides = ((chosen, chosen_ref), (rejected, rejected_ref))
    ratio = [np.asarray(own) - (0 if ref is None else np.asarray(ref)) for own, ref in sides]
    up, down = (r.mean() if mean else r.sum() for r in ratio)
    return math.log1p(math.exp(-beta * (up - down)))


@pytest.mark.parametrize("objective", [rba_single, rba_group])
@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("mean", [True, False])
def test_pair_term_closed_form(objective, with_reference, mean):
    up, down = [[-1.0, -2.0, -0.25], [-0.5]], [[-3.0], [-1.0, -1.5]]
    up_ref, down_ref = ([[-1.5, -2.5, -0.75], [-0.7]], [[-2.0], [-1.25, -1.0]]) if with_reference else (None, None)
    loss = objective(answers(up, [3, 1], up_ref), answers(down, [1, 2], down_ref), beta=0.3, length_normalise=mean)
    expected = [
        closed_form(up[i], down[i], up_ref and up_ref[i], down_ref and down_ref[i], 0.3, mean) for i in range(2)
    ]
    assert loss.sum.item() == pytest.approx(sum(expected), abs=1e-12)
    assert loss.weight.item() == 2
    assert loss.diagnostics["length_difference"].tolist() == [2, -1]


@pytest.mark.parametrize(("name", "mean"), [("sigmoid", False), ("sigmoid_norm", True)])
def test_pair_term_equals_trl(name, mean):
    """TRL 1.16.0's DPOTrainer on a two-layer text model; goldens/make_trl_dpo.py made the numbers."""
    pairs = len(GOLDEN["lengths"])
    sides = []
    for side in (0, 1):
        lengths = [pair[side] for pair in GOLDEN["lengths"]]
        rows = range(side * pairs, (side + 1) * pairs)
        cut = [[GOLDEN[who][r][:n] for r, n in zip(rows, lengths, strict=True)] for who in ("policy", "reference")]
        sides.append(answers(cut[0], lengths, cut[1]))
    loss = rba_single(*sides, beta=GOLDEN["beta"], length_normalise=mean)
    assert (loss.sum / loss.weight).item() == pytest.approx(GOLDEN[name], abs=1e-6)  # TRL sums in float32
    if not mean:
        assert loss.diagnostics["margin"].mean().item() == pytest.approx(GOLDEN["margins"], abs=1e-6)


def test_pairs_with_one_truncated_side_are_dropped_and_counted():
    up = answers([[-1.0], [-2.0], [-3.0]], [1, 1, 1], [[-1.0]] * 3, [False, True, False])
    down = answers([[-1.5], [-2.5], [-3.5]], [1, 1, 1], [[-1.0]] * 3, [True, True, False])
    loss = rba_single(up, down)
    assert loss.weight.item() == 2
    assert loss.diagnostics["one_sided"].tolist() == [1, 0, 0]
    assert len(loss.diagnostics["margin"]) == 2
    loss.sum.backward()
    assert up.logprobs.grad[0].tolist() == [0]
    assert (up.logprobs.grad[1:] < 0).all()
    assert (down.logprobs.grad[1:] > 0).all()


def test_crossed_conditioning_compares_on_each_audio():
    own = answers([[-1.0]], [1], [[-1.1]]), answers([[-2.0]], [1], [[-1.9]])
    elsewhere = answers([[-1.4]], [1], [[-1.0]]), answers([[-2.2]], [1], [[-2.0]])
    loss = rba_group(*own, crossed=elsewhere, beta=0.5)
    here = closed_form([-1.0], [-2.2], [-1.1], [-2.0], 0.5, False)
    halves = [here, closed_form([-1.4], [-2.0], [-1.0], [-1.9], 0.5, False)]
    assert loss.sum.item() == pytest.approx(sum(halves) / 2, abs=1e-12)
    assert loss.weight.item() == 1
    assert loss.sum.item() != pytest.approx(rba_group(*own, beta=0.5).sum.item(), abs=1e-3)


rows_of_tokens = st.lists(st.lists(st.floats(-9, -0.01), min_size=1, max_size=5), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=rows_of_tokens, extra=st.integers(0, 4), data=st.data())
def test_padding_split_and_order_change_nothing(rows, extra, data):
    """Sum and weight of the whole = those of any shuffled partition, whatever stands in the padding."""
    lengths = [len(r) for r in rows]
    reference = [[value - 0.3 * (i % 3) for i, value in enumerate(r)] for r in rows]
    truncated = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    drawn = data.draw(st.lists(st.floats(0, 3), min_size=len(rows), max_size=len(rows)))
    weights = torch.tensor(drawn, dtype=torch.float64)
    order = data.draw(st.permutations(range(len(rows))))
    cut = data.draw(st.integers(0, len(rows)))
    partner = [list(reversed(r)) for r in reference]

    def pieces(places):
        picked = [[values[i] for i in places] for values in (rows, lengths, reference, truncated, partner)]
        up = answers(picked[0], picked[1], picked[2], picked[3])
        down = answers(picked[4], picked[1], picked[0], [False] * len(places))
        if extra:  # more padding
            up = Answers(*(torch.nn.functional.pad(t, (0, extra)) if t.ndim == 2 else t for t in up))
        w = weights[list(places)]
        return [
            sft(up.logprobs, up.mask, row_weights=w),
            *(f(up, down, row_weights=w) for f in (rba_single, rba_group)),
        ]

    whole = pieces(range(len(rows)))
    parts = [pieces(part) for part in (order[:cut], order[cut:]) if part]
    for index, total in enumerate(whole):
        assert sum(p[index].sum.item() for p in parts) == pytest.approx(total.sum.item(), rel=1e-12, abs=1e-12)
        assert sum(p[index].weight.item() for p in parts) == pytest.approx(total.weight.item(), rel=1e-12, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_kd_does_not_depend_on_the_cut(data):
    torch.manual_seed(data.draw(st.integers(0, 99)))
    student, teacher = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    mask = torch.arange(6) < torch.randint(1, 7, (4,))[:, None]
    order = data.draw(st.permutations(range(4)))
    whole = kd(student, teacher, mask)
    parts = [kd(student[[i]], teacher[[i]], mask[[i]]) for i in order]
    torch.testing.assert_close(sum(p.sum for p in parts), whole.sum)
    assert sum(p.weight.item() for p in parts) == whole.weight.item()


def test_advantages_are_relative_to_all_samples_of_the_instruction():
    assert advantages([1.0, None, 3.0], "none") == [-1.0, None, 1.0]
    assert advantages([1.0, None, 3.0]) == pytest.approx([-1 / (2**0.5 + 1e-4), None, 1 / (2**0.5 + 1e-4)])
    assert advantages([0.5, 0.5, None]) == [None] * 3
    assert advantages([0.5, None]) == [None] * 2


def test_grpo_reductions_are_three_weights_of_the_same_tokens():
    rows = answers([[-1.0, -2.0, -0.5], [-4.0]], [3, 1])
    gain = torch.tensor([2.0, -1.0], dtype=torch.float64)
    found = {name: grpo(rows, gain, reduction=name, cap=10) for name in ("token_mean", "sample_mean", "constant")}
    for name, expected in {"token_mean": (-5.0, 4), "sample_mean": (-1.0, 2), "constant": (-0.5, 2)}.items():
        assert (found[name].sum.item(), found[name].weight.item()) == pytest.approx(expected, abs=1e-12)
    found["token_mean"].sum.backward()
    assert rows.logprobs.grad.tolist() == [[-2, -2, -2], [1, 0, 0]]


def test_grpo_clips_what_has_moved_far_enough():
    """Ratio 2 with a positive and a negative advantage, ratio 1/2 likewise: only two of the four are held."""
    rows = answers([[math.log(0.4)], [math.log(0.4)], [math.log(0.1)], [math.log(0.1)]], [1, 1, 1, 1])
    drawn = torch.full((4, 1), math.log(0.2), dtype=torch.float64)
    loss = grpo(rows, torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64), drawn, clip=(0.2, 0.3))
    assert loss.sum.item() == pytest.approx(-1.3 + 2.0 - 0.5 + 0.8)
    assert loss.diagnostics["clipped"].tolist() == [1, 0, 0, 1]
    loss.sum.backward()
    assert (rows.logprobs.grad[:, 0] != 0).tolist() == [False, True, True, False]


def test_opd_is_the_divergence_to_the_teacher():
    q = np.array([0.5, 0.3, 0.2])
    student = torch.tensor(np.log(q)[None, None], requires_grad=True)
    loss = opd(student, torch.zeros(1, 1, 3, dtype=torch.float64), torch.tensor([[True]]))
    assert loss.sum.item() == pytest.approx(float((q * (np.log(q) - math.log(1 / 3))).sum()), abs=1e-12)
    assert loss.diagnostics["reverse_kl"].tolist() == [loss.sum.item()]
