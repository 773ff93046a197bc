"""The speech LLM of a recipe as a `SpeechPolicy`: one wiring for alignment and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbalign.assets import home, model_folder
from rbalign.config.recipe import Recipe
from rbalign.data.signatures import Signatures
from rbalign.rundir.files import stable_hash
from rbalign.rundir.progress import note
from rbalign.rundir.run import RunDir

if TYPE_CHECKING:
    from rbalign.speechlm.policy import SpeechPolicy


HEARD = "hearing"
"""Folder of the cache directory for what connectors heard."""
HEARING_VERSION = 1
"""To be raised when code changes what a connector hears."""


def open_policy(recipe: Recipe, run: RunDir, share: bool = False, **options: Any) -> SpeechPolicy:
    """Connector and language model of the recipe, in memory once; `options` are SpeechPolicy's.

    `share` keeps what is heard on the disk, where other processes and runs find it.

    The language model is the one that the connector was trained against: [connect]'s in a run that connects, else
    the teacher's own, so that text teacher, reference and student share their weights.
    """
    from transformers import WhisperFeatureExtractor

    from rbalign.lm.load import load_lm
    from rbalign.speechlm import RbaSpeechProcessor
    from rbalign.speechlm.clipcache import ClipFolder
    from rbalign.speechlm.connector import connector_hash, from_parts
    from rbalign.speechlm.policy import SpeechPolicy

    name = recipe.connect.language_model if recipe.connect else recipe.teacher.model
    lm = load_lm(model_folder(name), name=name)
    connector = connector_of(recipe, run)
    speech = from_parts(connector, lm.model)
    processor = RbaSpeechProcessor(WhisperFeatureExtractor(), lm.tokenizer)
    if share:
        key = stable_hash([HEARING_VERSION, connector_hash(connector), lm.digest])
        options["heard"] = ClipFolder(home() / HEARD, key)
    return SpeechPolicy(speech, processor, system=system_prompt(recipe), **options)


def connector_of(recipe: Recipe, run: RunDir) -> Any:
    """Folder of the connector: this run's own for "connect", else the packaged one or the user's folder."""
    from rbalign.speechlm.connector import connector_folder

    wanted = recipe.align.connector if recipe.align else "connect" if recipe.connect else "default"
    return run.path("connect", "connector") if wanted == "connect" else connector_folder(wanted)


def heard_by(folder: Path) -> Signatures:
    """Signatures of what a connector heard in training: such texts show no gap, because it knows them by heart."""
    from rbalign.speechlm.connector import SIGNATURES

    path = folder / SIGNATURES
    if path.is_file():
        return Signatures.load(path)
    note(f"{folder} has no {SIGNATURES}: texts that this connector has heard cannot be told from new ones")
    return Signatures.build(())


def system_prompt(recipe: Recipe) -> str | None:
    """What stands before every request: [align]'s system prompt, else the one that y_ref was written under."""
    if recipe.align and recipe.align.answer_system is not None:
        return recipe.align.answer_system
    return recipe.synth.answer_system if recipe.synth else None
