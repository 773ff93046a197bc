"""What `rba synth` reads from outside its run: voices, noises, evaluation texts, ready test views; and their hashes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbalign.assets import model_folder
from rbalign.audio.channel import noise_files
from rbalign.config.recipe import Recipe
from rbalign.config.synth import SynthConfig
from rbalign.data.dataset import Dataset, DatasetWriter
from rbalign.data.signatures import Signatures
from rbalign.errors import UsageError
from rbalign.rundir.files import sha256_file, stable_hash
from rbalign.stages.endpoints import endpoint_inputs
from rbalign.stages.policy import family_digest, heard_by
from rbalign.stages.voices import bank_of
from rbalign.synth.heldout import SHIPPED, as_flac, held_out, heldout_folder
from rbalign.synth.leakage import leakage_texts
from rbalign.synth.transcripts import source_hash
from rbalign.types import Example, Split, View
from rbalign.voices.bank import VoiceBank


def config_of(recipe: Recipe) -> SynthConfig:
    """[synth]. UsageError if there is none."""
    if recipe.synth is None:
        raise UsageError(f"recipe {recipe.name} has no [synth] section", "add one, or choose another recipe")
    return recipe.synth


def checked_voices(config: SynthConfig) -> tuple[VoiceBank, list[Path]]:
    """The voices and the recordings of noise; a test-only or unknown voice is refused before any work."""
    bank = bank_of(config)
    for rule in config.views:
        names = bank.names(engine=rule.voices) if isinstance(rule.voices, str) else rule.voices
        bank.require(names, {Split.TRAIN, Split.VALIDATION, Split.TEST}, "synth")
    return bank, noise_files(Path(config.noise_folder)) if config.noise_folder else []


def seen_texts(recipe: Recipe) -> list[Signatures]:
    """What new texts must not resemble: files of evaluation texts, what the connector was trained on, and for a new
    connector the held-out set that ships."""
    config = config_of(recipe)
    found = [Signatures.build(leakage_texts(Path(name))) for name in config.filters.leakage_files]
    from rbalign.speechlm.connector import connector_folder

    known = recipe.connect.start if recipe.connect else recipe.align.connector if recipe.align else "default"
    if known is not None and not (recipe.align and recipe.align.model):
        found.append(heard_by(connector_folder(known)))
    if recipe.connect is not None:
        shipped = Dataset.open(heldout_folder(SHIPPED)).examples(Split.TEST)
        found.append(Signatures.build(example.instruction for example in shipped))
    return found


@dataclass(frozen=True, slots=True)
class Ready:
    """Test examples and clips that come ready, none if the recipe takes none; and what new texts must not resemble,
    these examples among it."""

    examples: list[Example]
    clips: list[View]
    leakage: list[Signatures]


def ready_views(recipe: Recipe) -> Ready:
    """What comes ready, judged against what was seen."""
    config, seen = config_of(recipe), seen_texts(recipe)
    examples: list[Example] = []
    clips: list[View] = []
    if config.test_views:
        examples, clips = held_out(
            config.test_views, config.test, recipe.teacher.author, seen, config.filters.max_leakage
        )
    return Ready(examples, clips, [*seen, Signatures.build(example.instruction for example in examples)])


def commit_ready(clips: Sequence[View], writer: DatasetWriter) -> None:
    """Put the clips that came ready into the dataset, as its first shard."""
    if clips and 0 not in writer.committed(Split.TEST):
        writer.commit_views(Split.TEST, 0, as_flac(clips))


def inputs(recipe: Recipe) -> Mapping[str, str]:
    """Hashes of what is read from outside the run."""
    config = config_of(recipe)
    files = {name: sha256_file(Path(name)) for name in config.filters.leakage_files if Path(name).is_file()}
    if config.test_views:
        files["test_views"] = Dataset.open(heldout_folder(config.test_views)).content_hash
    if config.recordings is not None and Path(config.recordings).is_dir():
        files["recordings"] = source_hash(Path(config.recordings))
    if config.noise_folder and Path(config.noise_folder).is_dir():
        folder = Path(config.noise_folder)  # names and sizes: the recordings may be gigabytes
        listed = [[str(path.relative_to(folder)), path.stat().st_size] for path in noise_files(folder)]
        files["noise_folder"] = stable_hash(listed)
    if (model := config.filters.reward_model) is not None and "reward-model" in config.filters.scorers:
        from rbalign.scorers.reward import is_armorm

        is_armorm(model_folder(model))  # one that gives no single number is refused before the teacher writes
        files["reward_model"] = family_digest(model)
    return files | endpoint_inputs(recipe)
