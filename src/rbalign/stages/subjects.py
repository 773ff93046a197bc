"""Who is evaluated: the model behind what `rba eval --model` was given, its name, its hash, and how to open it.

embedded                       the speech LLM that ships, before alignment
RUN, RUN:ARM, RUN/arms/ARM     a run's arm; of a run with one arm, that one
FOLDER                         of `rba export`, or a speech LLM of transformers (config/families.py)
OWNER/NAME, OWNER/NAME@REV     such a folder on the hub
FILE.toml                      a server (config/endpoints.py, SpeechEndpoint)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rbalign.assets import model_folder
from rbalign.config.endpoints import FREE, SpeechEndpoint
from rbalign.config.load import load_recipe, load_speech_endpoint
from rbalign.config.recipe import Recipe
from rbalign.config.sections import AlignConfig, TeacherConfig
from rbalign.config.synth import SynthConfig
from rbalign.errors import ServiceError, UsageError
from rbalign.eval.metrics import optimised_by
from rbalign.rundir.files import sha256_file, stable_hash
from rbalign.rundir.run import RunDir
from rbalign.stages.named import BASE, arm_weights, run_named

if TYPE_CHECKING:
    from rbalign.speechlm.base import Policy

EMBEDDED = "embedded"
FORMS = f"`{EMBEDDED}`, a run, RUN:ARM, a model folder, OWNER/NAME of the hub, or a server's FILE.toml"
_HUB = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Subject:
    """A model under test. Picklable: worker processes open it, too."""

    name: str
    """Small letters, digits, dots and dashes: it names files."""
    what: str
    """What it is, in words and without a path."""
    digest: str
    """Names weights and prompt: other ones are another model."""
    system: str | None
    open: Callable[[], Policy] | None = None
    """None for a server."""
    endpoint: SpeechEndpoint | None = None
    base: bool = True
    """Whether it answers with LoRA off."""
    teacher: TeacherConfig | None = None
    """Who taught it, where its run says so."""
    optimised: frozenset[str] = frozenset()
    """Metrics that its training raises by itself (`eval.metrics.optimised_by`): they judge nothing."""
    text_reference: str = "the same text LLM, untouched"
    """Who reads, as the reference `text` and after the ASR in the cascade."""


def subject_named(given: str, system: str | None = None) -> Subject:
    """The model behind a word of the command line; `system` is the prompt of a server or a folder without its own.

    Loads no weights into memory. UsageError for what is no model, ServiceError where the hub does not give it.
    """
    folder = Path(given).expanduser()
    if given == EMBEDDED:
        _own_prompt(given, system)
        return _of_run(_embedded_run(), BASE, EMBEDDED, "the speech LLM that ships with rba")
    if folder.suffix == ".toml":
        return _of_server(load_speech_endpoint(folder), system)
    if (found := _run_and_arm(folder, given)) is not None:
        run, arm = found
        _own_prompt(given, system)
        what = f"run {run.recipe.name}, arm {arm}" if arm != BASE else f"run {run.recipe.name} before alignment"
        return _of_run(run, arm, f"{run.folder.name}-{arm}", what)
    if folder.is_dir():
        return _of_folder(folder, folder.resolve().name, system)
    if hub := _HUB.fullmatch(given):
        return _of_folder(_fetched(hub["name"], hub["revision"]), hub["name"], system)
    raise UsageError(f"--model {given} is no model", f"allowed: {FORMS}")


def embedded_recipe() -> Recipe:
    """The recipe of the speech LLM that ships."""
    return Recipe(name="default", align=AlignConfig(), synth=SynthConfig())


def _embedded_run() -> RunDir:
    return RunDir.look(Path("runs"), embedded_recipe())


def _own_prompt(given: str, system: str | None) -> None:
    if system is not None:
        raise UsageError(f"--system beside --model {given}", "a run's model keeps the prompt that it was trained under")


def _run_and_arm(folder: Path, given: str) -> tuple[RunDir, str] | None:
    """The run and the arm that a folder or RUN:ARM names; None if it names neither."""
    if folder.name == "final":
        folder = folder.parent
    if folder.parent.name == "arms" and (folder.parent.parent / "status.json").is_file():
        return run_named(str(folder.parent.parent)), folder.name
    place, colon, arm = given.rpartition(":")
    if colon and (Path(place) / "status.json").is_file():
        run = run_named(place)
        return run, weights.parent.name if (weights := arm_weights(run, arm)) else BASE
    if not (folder / "status.json").is_file():
        return None
    arms = sorted(path.parent.parent.name for path in folder.glob("arms/*/final/arm.json"))
    if len(arms) > 1:
        raise UsageError(f"run {folder.name} has {len(arms)} arms", f"name one: {folder}:{arms[0]}, {folder}:{BASE}")
    return run_named(str(folder)), arms[0] if arms else BASE


def _of_run(run: RunDir, arm: str, name: str, what: str) -> Subject:
    from rbalign.stages.policy import backbone, system_prompt

    recipe = run.recipe
    if recipe.align is None and recipe.connect is None:
        raise UsageError(f"run {recipe.name} has no speech LLM", "give a run that connects or aligns one")
    weights = arm_weights(run, arm)
    system = system_prompt(recipe)
    files = sorted(weights.glob("*.safetensors")) if weights else []
    digest = stable_hash([_hears(run), backbone(recipe), system, {path.name: sha256_file(path) for path in files}])
    opened = partial(_open_run, run.folder.parent, recipe, weights)
    return Subject(
        _file_name(name),
        what,
        digest[:16],
        system,
        opened,
        base=weights is None,
        teacher=recipe.teacher,
        optimised=_optimised(recipe.align, arm) if weights else frozenset(),
    )


def _optimised(align: AlignConfig | None, arm: str) -> frozenset[str]:
    arm = re.sub(r"-s\d+$", "", arm)
    return optimised_by(align.mixture(arm), align.scorer) if align else frozenset()


def _hears(run: RunDir) -> dict[str, str]:
    """Hashes of what hears and of the language model."""
    from rbalign.lm.load import folder_digest
    from rbalign.speechlm.connector import connector_hash
    from rbalign.stages.policy import backbone, connector_of, family_digest

    align = run.recipe.align
    if align is not None and align.model is not None:
        return {"model": family_digest(align.model)}
    language_model = folder_digest(model_folder(backbone(run.recipe)))
    return {"connector": connector_hash(connector_of(run.recipe, run)), "language_model": language_model}


def _open_run(root: Path, recipe: Recipe, weights: Path | None) -> Policy:
    from rbalign.stages.policy import open_policy

    policy = open_policy(recipe, RunDir.look(root, recipe), share=True)
    if weights is not None:
        policy.load(weights)
    return policy


def _of_folder(folder: Path, name: str, system: str | None) -> Subject:
    from rbalign.lm.load import folder_digest, model_type
    from rbalign.speechlm.configuration import RbaSpeechConfig
    from rbalign.speechlm.family import family_in

    own = _exported_prompt(folder)
    system = own if system is None else system
    if model_type(folder) == RbaSpeechConfig.model_type:
        opened, what = partial(_open_exported, folder, system), "a folder of `rba export`"
    else:
        family = family_in(folder, system)
        opened, what = partial(_open_family, folder, system), family.name
    digest = stable_hash([folder_digest(folder), system])[:16]
    reads = "its own language model as it is in the folder (LoRA merged, where it was aligned)"
    return Subject(_file_name(name), what, digest, system, opened, text_reference=reads)


def _open_exported(folder: Path, system: str | None) -> Policy:
    from rbalign.speechlm.whole import open_whole

    return open_whole(folder, system)


def _open_family(folder: Path, system: str | None) -> Policy:
    from rbalign.stages.policy import open_policy

    recipe = Recipe(name="family", align=AlignConfig(model=str(folder), answer_system=system))
    return open_policy(recipe, RunDir.look(Path("runs"), recipe), share=True)


def _exported_prompt(folder: Path) -> str | None:
    """The system prompt of a folder that `rba export` wrote, by the recipe in it."""
    from rbalign.stages.policy import system_prompt

    with suppress(UsageError):  # a recipe of another version, or of something else
        return system_prompt(load_recipe(folder / "recipe.toml"))
    return None


def _fetched(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision))
    except Exception as error:  # whatever the hub's client and its transport raise, none of it is a fault of rba
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ServiceError(f"the hub does not give {name} ({said})", "copy it to a folder and give that") from None


def _of_server(endpoint: SpeechEndpoint, system: str | None) -> Subject:
    named = {key: value for key, value in endpoint.model_dump().items() if key not in FREE}
    digest = stable_hash([named, system])[:16]
    return Subject(
        _file_name(endpoint.model),
        f"{endpoint.model} behind a server",
        digest,
        system,
        endpoint=endpoint,
        text_reference="the same server, sent words",
    )


def _file_name(name: str) -> str:
    """What may stand in a file's name on every system; never one of the references' own."""
    plain = re.sub(r"[^a-z0-9.-]+", "-", name.lower()).strip(".-")[:64] or "model"
    return f"model-{plain}" if plain in ("text", "own-reading", "teacher", "cascade", "self-cascade") else plain
