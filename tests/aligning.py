"""What alignment tests share: a tiny speech policy, a tiny spoken dataset, and the agreement checks themselves."""

from __future__ import annotations

import random

import pytest
import torch
from tiny import TEXTS, tiny_clip, tiny_processor, tiny_speech_model

from rbalign.audio.io import read_audio, to_flac
from rbalign.keys import Key
from rbalign.speechlm.configuration import AUDIO_TOKEN
from rbalign.speechlm.policy import SpeechPolicy
from rbalign.train.rollout import Item, draw_groups
from rbalign.types import Example, View, ViewSpec

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
VOICES = ("anna", "ben", "carla")


FUSION = {"beams": 3, "lm_weight": 0.5, "token_bonus": 1.0, "path_share": 0.5, "context_ids": [1, 5]}


def tiny_policy(lora=LORA, seed=0, adapter="ctc", fusion=None, **options) -> SpeechPolicy:
    """A random model hardly ever draws the one end token: here 80 others end a sample too, so that some samples end."""
    speech = tiny_speech_model(adapter, seed, fusion=fusion)
    policy = SpeechPolicy(speech, tiny_processor(), system="Be brief.", lora=lora, seed=seed, **options)
    policy.end_ids = (*policy.end_ids, *range(100, 180))
    return policy


def tiny_view(example: str, index: int, seconds: float, seed: int) -> View:
    spec = ViewSpec(VOICES[index % len(VOICES)])
    return View(example, index, "train", spec, seconds, to_flac(tiny_clip(seconds, seed), 16_000))


def tiny_items(policy: SpeechPolicy, count: int = 6, views: int = 2, cap: int = 8) -> list[Item]:
    """`count` instructions with answers of 2 to `cap` tokens, each spoken by `views` voices for different times."""
    items = []
    for number in range(count):
        name, text = f"e{number}", TEXTS[number % len(TEXTS)]
        answer = TEXTS[(number + 2) % len(TEXTS)][: 4 + number]
        ids = policy.completion_ids(answer)[-cap:]
        example = Example(name, "train", f"{text} {number}", text, answer)
        clips = [tiny_view(name, i, 0.6 + 0.15 * ((number + i) % 4), 10 * number + i) for i in range(views)]
        items.append(Item(example, tuple(clips), ids))
    return items


def plain_logprobs(policy, view, ids, beside=""):
    """The long way round: the processor's own inputs through the model's own forward, one unpadded row."""
    before = policy.tokenizer.decode(policy.before_ids)
    after = policy.tokenizer.decode(policy.after_ids)
    inputs = policy.processor(
        text=before + AUDIO_TOKEN + beside + after, audio=[read_audio(view.flac)], return_tensors="pt"
    )
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids[None]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        logits = policy.speech(**inputs).logits[0]
    predicted = logits[len(logits) - len(ids) - 1 : -1].log_softmax(-1)
    return predicted.gather(1, ids[:, None])[:, 0]


def assert_samples_agree(policy, views, sampler, tokens, plain=plain_logprobs):
    """Check 1 on any policy: what the sampler reported, what training computes, what the plain model says."""
    policy._sampler = sampler(policy.lm)
    policy._sampler_holds = "policy"
    prompts = policy.prompts(views)
    keys = [[Key(0, "agree", view=i, sample=n) for n in range(2)] for i in range(len(views))]
    samples = policy.sample(prompts, policy.params(0.9, 0.95, tokens), keys)
    recomputed, mask = policy(views, [[sample.ids for sample in own] for own in samples])
    assert len({len(row) for row in prompts.rows}) > 1  # the batch really is padded
    row = 0
    for view, own in zip(views, samples, strict=True):
        for sample in own:
            mine = recomputed[row][mask[row]].detach()
            torch.testing.assert_close(mine, sample.logprobs, atol=1e-4, rtol=0)
            torch.testing.assert_close(plain(policy, view, sample.ids), sample.logprobs, atol=1e-4, rtol=0)
            row += 1


def assert_pairing_holds(policy, items, plain=plain_logprobs):
    """Check 3: every sample's reported log-prob is its own view's, under any order, shard and number of samples."""
    params, key, samples = policy.params(1.0, 1.0, 6), Key(2, "rollout/pairing"), 3
    views = len(items[0].views)
    whole = {
        (drawn.view.id, drawn.sample): drawn
        for group in draw_groups(policy, items, params, key, samples)
        for drawn in group.drawn
    }
    assert len(whole) == len(items) * views * samples
    order = list(items)
    random.Random(1).shuffle(order)
    for shard in (order[:2], order[2:]):
        for group in draw_groups(policy, shard, params, key, samples):
            for drawn in group.drawn:
                assert drawn.view in group.item.views
                assert drawn.ids.tolist() == whole[drawn.view.id, drawn.sample].ids.tolist()
    for drawn in whole.values():
        total = float(plain(policy, drawn.view, drawn.ids).sum())
        assert float(drawn.logprobs.sum()) == pytest.approx(total, abs=1e-3)


def swapped(policy, a, b, ids):
    """Log-probs of the same ids under each of two clips, and after the clips changed places in the batch."""
    with torch.no_grad():
        straight, _ = policy([a, b], [[ids], [ids]])
        crossed, _ = policy([b, a], [[ids], [ids]])
    return straight, crossed
