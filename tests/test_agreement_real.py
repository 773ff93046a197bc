"""The agreement checks on the embedded model with the connector that ships, on speech that it never trained on."""

import pytest
import torch
from aligning import assert_samples_agree, swapped

from rbalign.audio.io import to_flac
from rbalign.config.recipe import Recipe
from rbalign.keys import Key
from rbalign.lm.fused import FusedSampler
from rbalign.lm.sampler import GenerateSampler
from rbalign.rundir.run import RunDir
from rbalign.stages.policy import open_policy
from rbalign.types import View, ViewSpec
from rbalign.voices.engine import speaker

pytestmark = pytest.mark.assets

REQUESTS = [
    "What should I cook for dinner tonight?",
    "How do I repair a flat bicycle tyre?",
    "Could you tell me a short story about a dragon?",
    "What is the best way to learn the guitar?",
    "How many planets are there around the sun?",
    "Please give me three tips for a job interview.",
    "Why is the sea salty?",
    "What can I do when I cannot sleep at night?",
    "How do I keep my houseplants alive in winter?",
    "Which books should a ten year old child read?",
    "How does a refrigerator stay cold?",
    "What should I pack for a week in the mountains?",
]
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    recipe = Recipe.model_validate({"name": "agreement", "synth": {}, "align": {}})
    opened = open_policy(recipe, RunDir.look(tmp_path_factory.mktemp("runs"), recipe), lora=LORA)
    torch.manual_seed(1)
    with torch.no_grad():  # LoRA has left zero, a little
        for name, value in opened.trainable().items():
            if "lora_B" in name:
                value.normal_(0, 1e-3)
    return opened


@pytest.fixture(scope="module")
def views():
    voice = speaker("hibari")
    clips = [voice.speak(text, "hibari", 1.0) for text in REQUESTS]
    return [
        View(f"q{i}", 0, "test", ViewSpec("hibari"), len(clip) / 16_000, to_flac(clip)) for i, clip in enumerate(clips)
    ]


@pytest.fixture(scope="module")
def answers(policy):
    """What the text LLM answers to the written requests, greedily: another answer for each."""
    params = policy.params(0.0, 1.0, 24)
    keys = [[Key(0, "answers", example=text)] for text in REQUESTS]
    return [own[0].ids for own in policy.sample(policy.text_prompts(REQUESTS), params, keys, base=True)]


@pytest.mark.parametrize("sampler", [FusedSampler, GenerateSampler])
def test_1_sampled_logprobs_equal_recomputed_ones(policy, views, sampler):
    policy._sampler = None
    assert_samples_agree(policy, views[:4], sampler, tokens=8)
    policy._sampler = None


def test_2_other_audio_means_other_logprobs(policy, answers):
    voice = speaker("hibari")
    clips = [voice.speak(text, "hibari", 1.0) for text in REQUESTS[:2]]
    length = min(map(len, clips))
    a, b, twin = (
        View(name, 0, "test", ViewSpec("hibari"), length / 16_000, to_flac(clips[place][:length]))
        for name, place in (("a", 0), ("b", 1), ("twin", 0))
    )
    straight, crossed = swapped(policy, a, b, answers[0])
    assert (straight - crossed).abs().max() > 1e-2
    straight, crossed = swapped(policy, a, twin, answers[0])
    assert (straight - crossed).abs().max() <= 1e-5


def test_2_an_answer_is_likelier_under_its_own_audio(policy, views, answers):
    """Each answer against each other request's clip: at least 95 % of the pairs prefer the own one."""
    with torch.no_grad():
        table = torch.stack([policy([view], [answers])[0].sum(1) for view in views])  # (clip, answer)
    own = table.diagonal()
    others = ~torch.eye(len(views), dtype=torch.bool)
    wins = (own[None, :] > table)[others].float().mean()
    assert wins >= 0.95, f"{wins:.1%} of {int(others.sum())} pairs"
