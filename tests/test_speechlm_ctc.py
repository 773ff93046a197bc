"""The lean CTC loss equals the plain one; greedy segments follow the rules."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from rbalign.speechlm import ctc
from rbalign.speechlm.ctc import ctc_loss, frames_needed, log_sum_exp_rows, segments


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 11, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    blank = torch.randn(3, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    table = torch.randn(29, 8, generator=generator, dtype=torch.float64)
    targets = [torch.tensor([3, 3, 28]), torch.tensor([0, 7, 3, 7, 1]), torch.tensor([5])]
    return hidden, blank, torch.tensor([11, 9, 4]), table, targets


def plain(hidden, blank, lengths, table, targets):  # type: ignore[no-untyped-def]
    logits = torch.cat([blank[..., None], hidden @ table.T], dim=-1)
    padded = torch.nn.utils.rnn.pad_sequence([t + 1 for t in targets], batch_first=True)
    sizes = torch.tensor([len(t) for t in targets])
    return F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), padded, lengths, sizes, reduction="none")


def test_value_and_gradient_equal_full_softmax() -> None:
    hidden, blank, lengths, table, targets = problem()
    expected = plain(hidden, blank, lengths, table, targets).sum()
    expected_grads = torch.autograd.grad(expected, (hidden, blank))
    loss = ctc_loss(hidden, blank, lengths, table, targets)
    grads = torch.autograd.grad(loss.total, (hidden, blank))
    assert loss.tokens == 9
    assert loss.impossible == 0
    assert loss.total.item() == pytest.approx(expected.item(), abs=1e-4)  # the normaliser is kept in float32
    for got, want in zip(grads, expected_grads, strict=True):
        assert torch.allclose(got, want, atol=1e-5), (got - want).abs().max()


@pytest.mark.parametrize("rows", [0, 3, 4, 8, 11])
def test_chunks_that_share_a_buffer_give_what_one_product_gives(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctc, "CHUNK_ROWS", 4)
    hidden, _, _, table, _ = problem()
    states = hidden.detach().reshape(-1, 8)[:rows].requires_grad_()
    values = log_sum_exp_rows(states, table)
    expected = (states @ table.T).logsumexp(-1)
    assert torch.allclose(values.double(), expected, atol=1e-6)
    (got,), (want,) = (torch.autograd.grad(v.sum(), states) for v in (values, expected))
    assert torch.allclose(got, want, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(log_sum_exp_rows(states, table), values)


def test_gradient_does_not_depend_on_batch_mates() -> None:
    hidden, blank, lengths, table, targets = problem()
    loss = ctc_loss(hidden, blank, lengths, table, targets)
    together = torch.autograd.grad(loss.total, hidden)[0][1]
    alone = ctc_loss(hidden[1:2], blank[1:2], lengths[1:2], table, targets[1:2])
    assert torch.allclose(together, torch.autograd.grad(alone.total, hidden)[0][1], atol=1e-5)


def test_clip_too_short_for_its_words_is_counted_and_gives_no_gradient() -> None:
    hidden, blank, lengths, table, targets = problem()
    targets[2] = torch.tensor([5, 5, 5])  # needs 5 frames, has 4
    assert frames_needed(targets[2]) == 5
    loss = ctc_loss(hidden, blank, lengths, table, targets)
    assert (loss.impossible, loss.tokens) == (1, 8)
    gradient = torch.autograd.grad(loss.total, hidden)[0]
    assert gradient[2].abs().max() == 0
    assert gradient[1].abs().max() > 0


def test_bfloat16_autocast_stays_close() -> None:
    hidden, blank, lengths, table, targets = (x.float() if torch.is_tensor(x) and x.is_floating_point() else x
                                              for x in problem())  # fmt: skip
    expected = ctc_loss(hidden, blank, lengths, table, targets).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = ctc_loss(hidden, blank, lengths, table, targets).total
    assert low.item() == pytest.approx(expected.item(), rel=0.02)


def test_segments_merge_runs_drop_blanks_and_never_vanish() -> None:
    tokens = torch.tensor([4, 4, 4, 4, 9, 9])
    blank = torch.tensor([0.1, 0.2, 0.9, 0.1, 0.2, 0.6])
    assert [(s.start, s.end, s.token) for s in segments(tokens, blank, 0.5)] == [(0, 2, 4), (3, 4, 4), (4, 5, 9)]
    silent = segments(tokens, torch.tensor([0.9, 0.8, 0.95, 0.7, 0.99, 0.9]), 0.5)
    assert [(s.start, s.end, s.token) for s in silent] == [(3, 4, 4)]
