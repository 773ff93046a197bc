"""The held-out set that ships: whole, small, spoken by test voices alone, and unknown to the connector that ships."""

from collections import Counter

import numpy as np
import pytest

from rbalign.audio.io import read_audio
from rbalign.config.load import load_recipe
from rbalign.data.dataset import Dataset
from rbalign.data.signatures import NEAR, Signatures
from rbalign.speechlm.connector import DEFAULT_FOLDER, SIGNATURES
from rbalign.synth.heldout import SHIPPED, SHIPPED_FOLDER, as_flac, held_out
from rbalign.types import Split
from rbalign.voices.bank import load_bank

MOST_BYTES = 10_000_000


@pytest.fixture(scope="module")
def shipped():
    data = Dataset.open(SHIPPED_FOLDER)
    data.verify()
    return data


def test_it_is_whole_and_small(shipped):
    assert len(shipped.examples("test")) == len(shipped.examples()) == 300
    voices = Counter(view.spec.voice for view in shipped.views())
    assert voices == dict.fromkeys(load_bank().names(Split.TEST, "kokoro"), 300)
    assert sum(path.stat().st_size for path in SHIPPED_FOLDER.rglob("*")) <= MOST_BYTES
    for example in shipped.examples():
        assert example.answer
        assert example.reference
        assert example.reference != example.answer


def test_the_connector_has_heard_nothing_like_it(shipped):
    seen = Signatures.load(DEFAULT_FOLDER / SIGNATURES)
    assert max(seen.worst(example.instruction) for example in shipped.examples()) < NEAR


def test_clips_are_speech_of_the_length_that_they_claim(shipped):
    views = shipped.views()[::100]
    for view, clip in zip(views, as_flac(views), strict=True):
        samples = read_audio(clip.flac)
        assert len(samples) / 16_000 == pytest.approx(view.seconds, abs=0.03)
        assert np.sqrt((samples**2).mean()) > 0.01


@pytest.mark.parametrize("name", ["quickstart", "laptop", "gap"])
def test_recipes_that_take_it_ask_what_it_was_answered_under(name, shipped):
    recipe, made = load_recipe(name), load_recipe(SHIPPED_FOLDER / "recipe.toml")
    assert recipe.synth.test_views == SHIPPED
    assert recipe.synth.answer_system == made.synth.answer_system
    assert recipe.eval.sampling.max_new_tokens == made.synth.answer.max_new_tokens
    examples, views = held_out(SHIPPED, recipe.synth.test, recipe.teacher.model, [], 0.7)
    assert len(views) == 4 * len(examples) == 4 * recipe.synth.test
