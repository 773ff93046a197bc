"""The three standing checks between what is heard, what is sampled and what is trained on.

The field's dominant bug class is a trainer that is deaf without a sound, or that pairs audio and ids wrongly.
Each check was seen red once: (1) without the prefix in the positions, with branches that see their siblings, with pads
attended; (2) with one clip's positions for all, with the adapter cut from the graph; (3) with samples handed to rows in
reverse. test_agreement_real.py asks the same of the embedded model.
"""

import pytest
import torch
from aligning import (
    FUSION,
    assert_pairing_holds,
    assert_samples_agree,
    plain_logprobs,
    swapped,
    tiny_items,
    tiny_policy,
    tiny_view,
)
from tiny import tiny_clip

from rbalign.lm.fused import FusedSampler
from rbalign.lm.sampler import GenerateSampler


@pytest.fixture(params=[{}, {"fusion": FUSION}, {"fusion": FUSION, "full": True}], ids=["ctc", "fusion", "full"])
def moved(request):
    policy = tiny_policy(**request.param)
    torch.manual_seed(5)
    with torch.no_grad():
        for value in policy.trainable().values():
            value.add_(0.1 * torch.randn_like(value))
    return policy


@pytest.mark.parametrize("sampler", [FusedSampler, GenerateSampler])
def test_1_sampled_logprobs_equal_recomputed_ones(moved, sampler):
    views = [view for item in tiny_items(moved, count=4) for view in item.views]
    assert_samples_agree(moved, views, sampler, tokens=8)


def test_an_instruction_may_stand_beside_a_clip(moved):
    view, ids = tiny_view("a", 0, 0.9, 3), moved.completion_ids("tea")
    beside, _ = moved.measure(moved.prompts([view], "How do birds fly?"), [[ids]])
    torch.testing.assert_close(
        beside[0].detach(), plain_logprobs(moved, view, ids, "How do birds fly?"), atol=1e-4, rtol=0
    )
    assert (beside - moved([view], [[ids]])[0]).abs().max() > 1e-2


def test_2_other_audio_means_other_logprobs(moved):
    items = tiny_items(moved)
    a, b, twin = (tiny_view(name, 0, 0.9, seed) for name, seed in (("a", 3), ("b", 4), ("twin", 3)))
    straight, crossed = swapped(moved, a, b, items[4].answer)
    assert (straight - crossed).abs().max() > 1e-2
    torch.testing.assert_close(straight, crossed.flip(0), atol=1e-5, rtol=0)
    straight, crossed = swapped(moved, a, twin, items[4].answer)
    assert (straight - crossed).abs().max() <= 1e-5


@pytest.mark.parametrize(("adapter", "fusion"), [("ctc", None), ("ctc", FUSION), ("mlp", None)])
def test_2_the_gradient_reaches_the_input_features(adapter, fusion):
    policy = tiny_policy(adapter=adapter, fusion=fusion)
    clips = [tiny_clip(0.8, seed) for seed in (1, 2)]
    inputs = policy.processor(audio=clips, return_tensors="pt")
    features = inputs["input_features"].requires_grad_()
    audio = policy.speech.adapt(policy.speech.encode_audio(features, inputs["feature_lengths"]))
    prompts = policy.speech.audio_prompts(audio, policy.before_ids, policy.after_ids)
    logprobs, _ = policy.measure(prompts, [[policy.completion_ids("tea")], [policy.completion_ids("birds")]])
    logprobs[0].sum().backward()
    assert features.grad[0].abs().sum() > 0
    assert features.grad[1].abs().sum() == 0  # the other row's clip has no say


def test_3_pairing_holds_for_n_samples_of_k_views_shuffled_and_sharded(moved):
    assert_pairing_holds(moved, tiny_items(moved, count=5, views=3))
