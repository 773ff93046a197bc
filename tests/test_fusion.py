"""The LLM reads along: the search finds the best path, and what it makes of a clip can be learned from."""

from itertools import product

import pytest
import torch
from aligning import FUSION, tiny_policy, tiny_view
from tiny import tiny_lm

from rbalign.speechlm import fusion
from rbalign.speechlm.fusion import Fusion, Slots

TOKENS = torch.tensor([7, 20, 33, 41, 60])


def slots(count, seed, sure=1.0):
    generator = torch.Generator().manual_seed(seed)
    said = torch.rand(count, generator=generator) * 0.8 + 0.1
    tokens = torch.randn(count, len(TOKENS), generator=generator).mul(sure).softmax(-1)
    return Slots(tokens, said.log(), (1 - said).log())


def reader(**changes):
    return Fusion(tiny_lm(), TOKENS, **{**FUSION, **changes})


def score(fused, clip, path):
    """The long way round: every token's log-prob from a pass of its own."""
    ids, total = list(fused.context_ids), float(clip.empty.sum())
    for slot, token in path:
        logits = fused.language_model(torch.tensor([ids])).logits[0, -1]
        prior = logits[TOKENS].log_softmax(-1)[token]
        heard = clip.tokens[slot, token].log() + clip.said[slot]
        total += float(heard - clip.empty[slot] + fused.lm_weight * prior + fused.token_bonus)
        ids.append(int(TOKENS[token]))
    return total


@torch.no_grad()
def test_with_room_enough_the_search_finds_the_best_of_all_paths(monkeypatch):
    monkeypatch.setattr(fusion, "PRUNE", 1e9)
    fused = reader(beams=10_000, lm_weight=2.0, token_bonus=5.0)
    for seed in range(6):
        clip = slots(3, seed)
        every = [
            [(slot, token) for slot, token in enumerate(way) if token >= 0]
            for way in product(range(-1, len(TOKENS)), repeat=3)
        ]
        best = max((path for path in every if path), key=lambda path: score(fused, clip, path))
        (found,) = fused.best_paths([clip])
        assert score(fused, clip, found.tolist()) == pytest.approx(score(fused, clip, best), abs=1e-4)


@torch.no_grad()
def test_a_beam_that_adds_nothing_reads_nothing():
    fused = reader()
    read = fusion._Reader(fused.language_model, TOKENS, fused.context_ids, 1)
    read.read([fusion._Beam(0.0, (), 0, fresh) for fresh in (None, 2, 0)])
    read.read([fusion._Beam(0.0, (), row, fresh) for row, fresh in ((2, None), (0, 4), (1, 1))])
    for row, said in enumerate(([0], [4], [2, 1])):
        ids = [*fused.context_ids, *TOKENS[said].tolist()]
        wanted = fused.language_model(torch.tensor([ids])).logits[0, -1, TOKENS].log_softmax(-1)
        torch.testing.assert_close(read.log_probs[row], wanted, atol=1e-5, rtol=0)


def test_a_clip_is_heard_alike_alone_and_beside_longer_and_shorter_ones():
    fused = reader()
    clips = [slots(count, seed) for seed, count in enumerate((5, 1, 9, 3))]
    together = fused.best_paths(clips)
    rows = fused.fused(clips, together)
    for clip, path, row in zip(clips, together, rows, strict=True):
        (alone,) = fused.best_paths([clip])
        assert alone.tolist() == path.tolist()
        torch.testing.assert_close(fused.fused([clip], [alone])[0], row, atol=1e-5, rtol=0)


@torch.no_grad()
def test_where_sound_leaves_it_open_the_language_model_decides():
    fused, even = reader(beams=1, token_bonus=20.0), slots(4, 0, sure=0.0)
    ids = list(fused.context_ids)
    for token in fused.best_paths([even])[0][:, 1].tolist():
        assert token == int(fused.language_model(torch.tensor([ids])).logits[0, -1][TOKENS].argmax())
        ids.append(int(TOKENS[token]))
    assert len(ids) == 2 + 4


def test_a_clip_in_which_nothing_is_said_has_one_position():
    clip = slots(4, 0)
    silent = Slots(clip.tokens, torch.full((4,), -9.0), torch.full((4,), -0.01))
    assert [len(reader(beams=beams).best_paths([silent])[0]) for beams in (1, 4)] == [1, 1]


def test_rows_are_distributions_between_what_was_heard_and_the_path():
    clip = slots(4, 1)
    path = clip.greedy()
    (half,) = reader().fused([clip], [path])
    torch.testing.assert_close(half.sum(-1), torch.ones(4))
    assert half.gather(1, path[:, 1:]).min() >= 0.5
    (heard,) = reader(lm_weight=0.0, path_share=0.0).fused([clip], [path])
    torch.testing.assert_close(heard, clip.tokens)
    both = reader(lm_weight=0.7, path_share=0.0)
    ids = [*both.context_ids, *TOKENS[path[:, 1]].tolist()]
    with torch.no_grad():
        prior = both.language_model(torch.tensor([ids])).logits[0, 1:-1, TOKENS].log_softmax(-1)
    torch.testing.assert_close(both.fused([clip], [path])[0], (clip.tokens.log() + 0.7 * prior).softmax(-1))
    (hard,) = reader(path_share=1.0).fused([clip], [path])
    torch.testing.assert_close(hard, torch.nn.functional.one_hot(path[:, 1], len(TOKENS)).float())


def test_the_gradient_reaches_the_slots_and_not_the_language_model():
    clip = slots(4, 2)
    clip.tokens.requires_grad_()
    fused = reader()
    (rows,) = fused.fused([clip], fused.best_paths([clip]))
    rows[0, 0].backward()
    assert clip.tokens.grad.abs().sum() > 0
    assert all(value.grad is None for value in fused.language_model.parameters())


@pytest.mark.parametrize("train_adapter", [False, True])
def test_what_is_heard_does_not_depend_on_the_arm(train_adapter):
    """LoRA moves the answers. Were it to move the hearing, the positions kept for a clip would be another arm's."""
    policy = tiny_policy(fusion=FUSION, train_adapter=train_adapter)
    views = [tiny_view("a", 0, 0.9, 1), tiny_view("b", 1, 0.6, 2)]
    before, words = [clip.detach() for clip in policy.audio(views)], policy.heard(views)
    with torch.no_grad():
        for name, value in policy.trainable().items():
            if "lora_" in name:
                value.add_(torch.randn_like(value))
    policy.cache.drop("positions")
    policy.cache.drop("paths")
    for old, new in zip(before, policy.audio(views), strict=True):
        torch.testing.assert_close(old, new)
    assert policy.heard(views) == words
    assert all(value.requires_grad for value in policy.trainable().values())
