"""Every family of speech LLMs, as a tiny random instance of transformers' own class that hears real audio bytes.

The agreement checks of tests/test_agreement.py against the plain way (the processor's dict through `model(**inputs)`),
training steps, arms on the disk, prompts word for word. Each check was seen red once: (1) with the instruction left
out beside the clip, with the repetition penalty of a release; (2) with one clip's positions for all, with positions
taken without gradient; (3) with views in reverse; LoRA's scope without `exclude_modules`; the cap on a clip's length.
"""

import base64

import pytest
import torch
from aligning import assert_pairing_holds, assert_samples_agree, swapped, tiny_items, tiny_view
from families import SYSTEM, TINY, family_policy, torchaudio_stand_in  # noqa: F401
from peft.tuners.tuners_utils import BaseTunerLayer
from test_align_trainer import ARMS, trainer

from rbalign.audio.io import read_audio
from rbalign.config.families import FAMILIES, RANDOM
from rbalign.errors import DataError, UsageError
from rbalign.keys import Key
from rbalign.lm.fused import FusedSampler
from rbalign.lm.sampler import GenerateSampler
from rbalign.rundir.journal import read_rows
from rbalign.train.reference import Reference

LEAST_MOVED = 5e-3
"""Nats by which another clip must move some token's log-prob: 500 times what identical clips may. Over six pairs
of clips these models moved by 0.9 to 2.8 (Qwen2-Audio), 0.09 to 0.3 (Audio Flamingo 3), 0.06 to 0.12 (Voxtral, where a
second of tone stands among 29 of silence), 0.013 to 0.055 (Granite: six positions, whose projector averages), 0.07 to
0.6 (GLM-ASR) and 0.5 to 1.4 (Qwen2.5-Omni)."""

families = pytest.mark.parametrize("name", TINY)


def moved(name, **options):
    """A policy whose LoRA has left zero."""
    policy = family_policy(name, **options)
    torch.manual_seed(5)
    with torch.no_grad():
        for value in policy.trainable().values():
            value.add_(0.1 * torch.randn_like(value))
    return policy


def plain_logprobs(policy, view, ids, beside=""):
    """The convention itself: the processor's dict through the model, then the completion, as `generate` feeds it."""
    model = policy.speech
    with torch.no_grad():
        prompt = model(**policy.inputs(beside, read_audio(view.flac), SYSTEM), use_cache=True)
        after = model(input_ids=ids[None], past_key_values=prompt.past_key_values)
    logits = torch.cat([prompt.logits[0, -1:], after.logits[0, :-1]])
    return logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]


def samplers(policy):
    return [GenerateSampler, *([FusedSampler] if FusedSampler.supports(policy.lm) else [])]


@families
def test_1_sampled_logprobs_equal_recomputed_and_plain_ones(name):
    policy = moved(name)
    views = [view for item in tiny_items(policy, count=3) for view in item.views]
    if name == "voxtral":  # clips up to 30 s have one length there
        views[0] = tiny_view("long", 0, 31.0, 5)
    for sampler in samplers(policy):
        assert_samples_agree(policy, views, sampler, 6, plain_logprobs)


@families
def test_greedy_answers_are_those_of_the_models_own_generate(name):
    policy = moved(name)
    view = tiny_view("a", 0, 0.9, 3)
    inputs = policy.inputs(clip=read_audio(view.flac), system=SYSTEM)
    ends = list(policy.end_ids)
    own = policy.speech.generate(
        **inputs, max_new_tokens=8, do_sample=False, repetition_penalty=1.0, eos_token_id=ends, pad_token_id=ends[0]
    )
    mine = policy.sample(policy.prompts([view]), policy.params(0.0, 1.0, 8), [[Key(0, "greedy")]])[0][0]
    new = own[0, len(inputs["input_ids"][0]) :].tolist()
    assert mine.ids.tolist() == new[: len(mine.ids)]


@families
def test_an_instruction_beside_the_clip_and_text_alone_are_the_processors_prompts(name):
    policy = moved(name)
    view, ids = tiny_view("a", 0, 0.9, 3), torch.tensor([40, 50, 60])
    beside, _ = policy.measure(policy.prompts([view], "How do birds fly?"), [[ids]])
    torch.testing.assert_close(
        beside[0].detach(), plain_logprobs(policy, view, ids, "How do birds fly?"), atol=1e-4, rtol=0
    )
    assert (beside - policy([view], [[ids]])[0]).abs().max() > LEAST_MOVED
    (row,) = policy.text_prompts(["How do birds fly?"]).rows
    with torch.no_grad():
        logits = policy.speech(input_ids=torch.cat([row, ids])[None]).logits[0, len(row) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    written, _ = policy.measure(policy.text_prompts(["How do birds fly?"]), [[ids]])
    torch.testing.assert_close(written[0].detach(), expected, atol=1e-4, rtol=0)


@families
def test_2_other_audio_means_other_logprobs(name):
    policy = moved(name)
    ids = torch.tensor([40, 50, 60, 70])
    a, b, twin = (tiny_view(label, 0, 0.9, seed) for label, seed in (("a", 3), ("b", 4), ("twin", 3)))
    straight, crossed = swapped(policy, a, b, ids)
    assert (straight - crossed).abs().max() > LEAST_MOVED
    torch.testing.assert_close(straight, crossed.flip(0), atol=1e-5, rtol=0)
    straight, crossed = swapped(policy, a, twin, ids)
    assert (straight - crossed).abs().max() <= 1e-5


@families
def test_2_the_gradient_reaches_the_input_features(name):
    policy = moved(name)
    inputs = dict(policy.inputs(clip=read_audio(tiny_view("a", 0, 0.9, 3).flac), system=SYSTEM))
    inputs["input_features"] = inputs["input_features"].clone().requires_grad_()
    prompts = policy.prompts([tiny_view("a", 0, 0.9, 3)])
    (row,) = prompts.rows
    heard = policy.positions(inputs)
    torch.testing.assert_close(heard, row[: len(heard)], atol=1e-5, rtol=0)
    again = type(prompts)([torch.cat([heard, row[len(heard) :]])], prompts.shared)
    logprobs, _ = policy.measure(again, [[torch.tensor([40, 50])]])
    logprobs.sum().backward()
    assert inputs["input_features"].grad.abs().sum() > 0


@families
def test_3_pairing_holds_for_n_samples_of_k_views_shuffled_and_sharded(name):
    policy = moved(name)
    assert_pairing_holds(policy, tiny_items(policy, count=4, views=2), plain_logprobs)


@families
def test_a_clip_is_heard_once_and_alike_in_any_company(name):
    policy = moved(name)
    views = [tiny_view(f"v{i}", 0, 0.6 + 0.3 * i, i) for i in range(3)]
    together, alone = policy.audio(views), moved(name).audio(views[:1])
    policy.audio(views)
    assert torch.equal(together[0], alone[0])
    assert policy.cache.computed == {"positions": 3}


@families
def test_lora_touches_the_language_model_and_nothing_else(name):
    policy = family_policy(name)
    layers = [path for path, module in policy.speech.named_modules() if isinstance(module, BaseTunerLayer)]
    assert len(layers) == 2 * 7
    assert all(path.startswith(FAMILIES[name].decoder + ".") for path in layers)
    suffixes = family_policy(name, lora={"r": 2, "target_modules": ["q_proj", "v_proj"]})
    assert len(suffixes.trainable()) == 2 * 2 * 2
    assert all(".language_model." in path for path in suffixes.trainable())
    with pytest.raises(UsageError, match="exclude_modules"):
        family_policy(name, lora={"r": 2, "exclude_modules": "x"})


def one_update(folder, arm, policy):
    made = trainer(folder, arm, policy, updates=1)
    before = {label: value.detach().clone() for label, value in policy.trainable().items()}
    made.fit()
    (row,) = read_rows(folder / "metrics.jsonl")
    assert row["gradient_norm"] > 0
    assert any(not torch.equal(value, before[label]) for label, value in policy.trainable().items())
    assert not any(module.training for module in policy.speech.modules())  # no dropout, no batch statistics
    return row


@families
@pytest.mark.parametrize("arm", ["sft", "rba-single"])
def test_an_arm_takes_a_step_and_is_taken_over(tmp_path, name, arm):
    policy = family_policy(name)
    items = tiny_items(policy, count=2)
    views, completions = [item.views[0] for item in items], [[item.answer] for item in items]
    base = policy(views, completions)[0].detach()
    reference = Reference(policy)
    one_update(tmp_path / "run", arm, policy)
    policy.save(tmp_path / "arm")
    fresh = family_policy(name, lora=None)
    fresh.load(tmp_path / "arm")
    torch.testing.assert_close(fresh(views, completions)[0], policy(views, completions)[0])
    assert (fresh(views, completions)[0] - base).abs().max() > 1e-3
    with fresh.untouched():
        assert torch.equal(fresh(views, completions)[0], base)
    assert torch.equal(reference.logprobs(views, completions)[0], base)


@pytest.mark.parametrize("arm", ARMS)
def test_every_objective_trains_qwen2_audio(tmp_path, arm):
    """The embedded model's are in test_align_trainer.py."""
    row = one_update(tmp_path, arm, family_policy("qwen2_audio"))
    assert {f"{term}_loss" for term in trainer(tmp_path / "x", arm, family_policy("qwen2_audio")).mixture} <= row.keys()


@families
def test_the_untouched_model_is_asked_to_repeat(name):
    policy = moved(name)
    views = [tiny_view(f"v{i}", 0, 0.6 + 0.3 * i, i) for i in range(2)]
    fresh = family_policy(name, lora=None)
    assert policy.heard(views) == fresh.heard(views) == [fresh.heard([view])[0] for view in views]
    assert not policy.has_transcript


PROMPTS = {
    "qwen2_audio": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAudio 1: <|audio_bos|>CLIP"
    "<|audio_eos|>\nWhy?<|im_end|>\n<|im_start|>assistant\n",
    "audioflamingo3": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nCLIPWhy?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "voxtral": "<s>[INST][BEGIN_AUDIO]CLIPBe brief.\n\nWhy?[/INST]",
    "granite_speech": "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n<|start_of_role|>user"
    "<|end_of_role|>CLIPWhy?<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
    "glmasr": "<|system|>\nBe brief.<|user|>\n<|begin_of_audio|>CLIP<|end_of_audio|><|user|>\nWhy?<|assistant|>\n",
    "qwen2_5_omni_thinker": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|audio_bos|>CLIP<|audio_eos|>"
    "Why?<|im_end|>\n<|im_start|>assistant\n",
}
POSITIONS_A_SECOND = {
    "qwen2_audio": 25, "audioflamingo3": 25, "voxtral": None, "granite_speech": 10, "glmasr": 12.5,
    "qwen2_5_omni_thinker": 25,
}  # fmt: skip


@families
def test_prompts_are_the_released_ones_word_for_word(name):
    """And a clip has the family's own number of positions a second; Voxtral's are those of 30 s, whatever it lasts."""
    policy = family_policy(name)
    view = tiny_view("a", 0, 2.0, 1)
    prompts = policy.prompts([view], "Why?")
    (clip,) = policy.audio([view])
    after = policy._around_clip(SYSTEM, "Why?")[1]
    decode = policy.tokenizer.decode
    assert decode(prompts.shared) + "CLIP" + decode(after) == PROMPTS[name]
    assert len(prompts.rows[0]) == len(clip) + len(after)
    rate = POSITIONS_A_SECOND[name]
    assert len(clip) == 375 if rate is None else abs(len(clip) - 2.0 * rate) <= 2
    assert decode(policy.completion_ids("tea")) == "tea" + FAMILIES[name].end


def test_what_would_be_wrong_without_a_sound_is_refused():
    policy = family_policy("qwen2_audio")
    with pytest.raises(DataError, match=r"31\.0 s, and Qwen2-Audio takes 30"):
        policy.audio([tiny_view("long", 0, 31.0, 1)])
    deaf = policy.inputs("Why?", system=SYSTEM)
    with pytest.raises(DataError, match=r"wrote no <\|AUDIO\|>.*Qwen/Qwen2-Audio-7B-Instruct"):
        policy.positions(deaf)
    policy.speech.config.audio_token_id = 7
    with pytest.raises(DataError, match="waits for 7"):
        type(policy)(policy.speech, policy.processor, policy.family, system=SYSTEM)


def test_the_stand_in_for_mistral_common_is_asked_for_what_it_allows():
    """One text chunk and one clip, whose bytes survive the way through base64."""
    policy = family_policy("voxtral")
    view = tiny_view("a", 0, 0.9, 3)
    clip = read_audio(view.flac)
    inputs = policy.inputs("Why?", clip, SYSTEM)
    features = policy.processor.feature_extractor(
        clip, sampling_rate=16_000, padding=True, truncation=False, pad_to_multiple_of=480_000, return_tensors="pt"
    )
    assert torch.equal(inputs["input_features"][0], features["input_features"][0])
    assert base64.b64encode(b"x")  # bytes, not a path: nothing is written to the disk


def test_every_family_is_listed_with_what_it_was_proven_with():
    assert {FAMILIES[name].name for name in TINY} == {family.name for family in FAMILIES.values()}
    assert all(family.proven == RANDOM for family in FAMILIES.values())
