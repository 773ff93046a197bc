"""The voices of a run: the shipped ones, and those of the servers that its recipe names."""

from __future__ import annotations

from rbalign.config.recipe import Recipe
from rbalign.config.synth import SynthConfig
from rbalign.data.dataset import Dataset
from rbalign.synth.recordings import HUMAN
from rbalign.types import Split
from rbalign.voices.bank import ENDPOINT, VoiceBank, VoiceInfo, load_bank


def bank_of(config: SynthConfig) -> VoiceBank:
    """The shipped voices and those of the recipe's servers."""
    return load_bank().with_endpoints(config.endpoint_voices)


def bank_of_dataset(recipe: Recipe, data: Dataset) -> VoiceBank:
    """The shipped voices and, if the recipe names servers or recordings, those that say the dataset's splits.

    From the dataset alone: the folder of reference speakers may be on another machine by now.
    """
    bank = load_bank()
    if recipe.synth is None or not (recipe.synth.endpoint_voices or recipe.synth.recordings):
        return bank
    engine = HUMAN if recipe.synth.recordings else ENDPOINT
    known = {name: bank.voice(name) for name in bank.names()}
    spoken = [
        VoiceInfo(voice, engine, Split(split), "unknown", "unknown")
        for split, summary in data.manifest["splits"].items()
        for voice in summary["voices"]
        if voice not in known
    ]
    return VoiceBank([*known.values(), *spoken])
