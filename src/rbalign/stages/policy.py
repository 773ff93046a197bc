"""The speech LLM of a recipe as a `Policy`: one wiring for alignment and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbalign.assets import home, model_folder
from rbalign.config.recipe import Recipe
from rbalign.data.signatures import Signatures
from rbalign.rundir.files import stable_hash
from rbalign.rundir.progress import note
from rbalign.rundir.run import RunDir
from rbalign.stages.licences import last_name

if TYPE_CHECKING:
    from rbalign.speechlm.base import Policy


HEARD = "hearing"
"""Folder of the cache directory for what connectors heard."""
HEARING_VERSION = 1
"""To be raised when code changes what a connector hears."""


def open_policy(recipe: Recipe, run: RunDir, share: bool = False, **options: Any) -> Policy:
    """The recipe's speech LLM, in memory once; `options` are the policy's.

    `share` keeps what is heard on the disk, where other processes and runs find it.

    It is [align] model, or else a connector and a language model: the one that the connector was trained against,
    [connect]'s in a run that connects, else the teacher's own, so that text teacher, reference and student share their
    weights.
    """
    if recipe.align is not None and recipe.align.model is not None:
        return _open_family(recipe, recipe.align.model, share, **options)
    from transformers import WhisperFeatureExtractor

    from rbalign.lm.load import load_lm
    from rbalign.speechlm import RbaSpeechProcessor
    from rbalign.speechlm.clipcache import ClipFolder
    from rbalign.speechlm.connector import connector_hash, from_parts
    from rbalign.speechlm.policy import SpeechPolicy

    name = backbone(recipe)
    lm = load_lm(model_folder(name), name=name)
    connector = connector_of(recipe, run)
    speech = from_parts(connector, lm.model)
    processor = RbaSpeechProcessor(WhisperFeatureExtractor(), lm.tokenizer)
    if share:
        key = stable_hash([HEARING_VERSION, connector_hash(connector), lm.digest])
        options["heard"] = ClipFolder(home() / HEARD, key)
    return SpeechPolicy(speech, processor, system=system_prompt(recipe), **options)


def _open_family(recipe: Recipe, model: str, share: bool, train_adapter: bool = False, **options: Any) -> Policy:
    import transformers

    from rbalign.speechlm.clipcache import ClipFolder
    from rbalign.speechlm.family import FamilyPolicy, load_family

    assert not train_adapter  # AlignConfig refuses it
    system = system_prompt(recipe)
    speech, processor, family = load_family(model_folder(model), system)
    if share:
        key = stable_hash([HEARING_VERSION, transformers.__version__, family_digest(model)])
        options["heard"] = ClipFolder(home() / HEARD, key)
    return FamilyPolicy(speech, processor, family, system=system, **options)


def family_digest(model: str) -> str:
    """Hash of a speech LLM's folder; read again in this process only when a file of it has changed."""
    folder = model_folder(model)
    return _digest(folder, tuple((path.name, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())))


@cache
def _digest(folder: Path, _: tuple[tuple[str, int], ...]) -> str:
    from rbalign.lm.load import folder_digest

    return folder_digest(folder)


def hearing_hash(recipe: Recipe) -> Mapping[str, str]:
    """What hears, by name and hash, where it comes from outside the run."""
    from rbalign.speechlm.connector import connector_folder, connector_hash

    if recipe.align is not None and recipe.align.model is not None:
        return {"model": family_digest(recipe.align.model)}
    connector = recipe.align.connector if recipe.align else "connect" if recipe.connect else "default"
    return {} if connector == "connect" else {"connector": connector_hash(connector_folder(connector))}


def backbone(recipe: Recipe) -> str:
    """Name of the language model that learns; of a speech LLM of transformers the whole."""
    if recipe.align is not None and recipe.align.model is not None:
        return recipe.align.model
    return recipe.connect.language_model if recipe.connect else recipe.teacher.model


def model_bytes(model: str | None) -> int:
    """Memory that [align] model takes beyond the embedded one: its weights, which releases store in half precision."""
    return 0 if model is None else 2 * sum(path.stat().st_size for path in model_folder(model).glob("*.safetensors"))


def reads_as_before(recipe: Recipe, model: str) -> bool:
    """Whether a speech LLM reads as its text LLM does. UsageError for a folder that no policy can be made of."""
    from rbalign.lm.load import OWN_LORA
    from rbalign.speechlm.family import family_in

    folder = model_folder(model)
    family_in(folder, system_prompt(recipe))
    return not (folder / OWN_LORA).is_file()


def known_texts(recipe: Recipe, run: RunDir) -> Signatures:
    """Signatures of what the recipe's speech LLM heard in training, as far as that is known."""
    if recipe.align is not None and recipe.align.model is not None:
        note(f"what {last_name(recipe.align.model)} heard in training is not known: no text is left out for it")
        return Signatures.build(())
    return heard_by(connector_of(recipe, run))


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
