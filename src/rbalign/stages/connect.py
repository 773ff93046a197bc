"""`rba connect`: this run's speech -> a connector, so that the LLM can hear.

connect/checkpoints/     the Trainer's own, for going on after an interruption
connect/metrics.jsonl    training loss, validation WER and loss by update
connect/connector/       model.safetensors, config.json, recipe.toml, counts.json, metrics.jsonl, signatures.bin
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rbalign.assets import model_folder
from rbalign.config.recipe import Recipe
from rbalign.config.sections import ConnectConfig
from rbalign.data.dataset import Dataset
from rbalign.data.signatures import Signatures
from rbalign.errors import DataError, UsageError
from rbalign.rundir.files import atomic_write, sha256_file
from rbalign.rundir.run import RunDir
from rbalign.stages.base import Plan, PlanRow
from rbalign.stages.policy import heard_by
from rbalign.stages.voices import bank_of_dataset
from rbalign.synth.vocabulary import SOURCE
from rbalign.types import Split
from rbalign.voices.bank import VoiceBank

if TYPE_CHECKING:
    from rbalign.lm.load import LM
    from rbalign.train.connect_plan import Clips

SPEECH_SECONDS_PER_SECOND = {"ctc": 36.0, "mlp": 12.0}
"""Seconds of speech trained on in a second, tiny.en and SmolLM2 on two cores in float32; bfloat16 is 1.7 times it."""
SECONDS_PER_VIEW = 4.0
CHECKPOINT_BYTES = 180_000_000
"""Weights and two moments of 15 million parameters; the last and the best are kept."""
DEFAULT_EPOCHS = 3


def plan(recipe: Recipe, run: RunDir) -> Plan:
    """Seconds of speech times epochs, from the dataset if it is there, else from what [synth] asks for."""
    from rbalign.train.connect_plan import shortened

    config = _config(recipe)
    epochs = float(config.args.get("num_train_epochs", DEFAULT_EPOCHS))
    try:
        seconds = float(Dataset.open(run.path("data")).manifest["splits"].get(Split.TRAIN, {}).get("seconds", 0.0))
    except DataError:
        rules = recipe.synth.views if recipe.synth else ()
        clips = sum(rule.per_example * rule.fraction for rule in rules) * (recipe.synth.train if recipe.synth else 0)
        seconds = clips * SECONDS_PER_VIEW
    planned = round(seconds * epochs / config.seconds_per_batch)
    updates = shortened(planned, int(config.args.get("max_steps", 0)))
    wanted = updates * config.seconds_per_batch / SPEECH_SECONDS_PER_SECOND[config.adapter]
    return Plan((PlanRow("updates of the connector", updates, wanted, 3 * CHECKPOINT_BYTES),))


def inputs(recipe: Recipe) -> Mapping[str, str]:
    """The connector that training starts from, if any."""
    from rbalign.speechlm.connector import WEIGHTS, connector_folder

    start = _config(recipe).start
    if start is None:
        return {}
    weights = connector_folder(start) / WEIGHTS
    return {"start": sha256_file(weights) if weights.is_file() else "missing"}


def check(recipe: Recipe) -> None:
    """A connector to start from must be there, with the signatures of what it has heard."""
    from rbalign.speechlm.connector import SIGNATURES, WEIGHTS, connector_folder

    start = _config(recipe).start
    for name in (WEIGHTS, SIGNATURES) if start is not None else ():
        if not (connector_folder(start or "") / name).is_file():
            raise DataError(
                f"no connector to start from: {connector_folder(start or '') / name} is missing",
                "train that one first (`rba run connect`), name its folder with --connect.start, or leave start out",
            )


def run(recipe: Recipe, run: RunDir) -> Mapping[str, str]:
    """Train on the dataset in this run's folder, going on from the last whole checkpoint."""
    from rbalign.lm.load import load_lm
    from rbalign.speechlm.connector import SIGNATURES, connector_folder, connector_hash, start_from, tokens_of
    from rbalign.train.connect import train_connector
    from rbalign.train.spelling import choose_tokens

    config = _config(recipe)
    data = Dataset.open(run.path("data"))
    train, validation = _clips(data, Split.TRAIN), _clips(data, Split.VALIDATION)
    _check_voices(bank_of_dataset(recipe, data), train, validation)
    lm = load_lm(model_folder(config.language_model), name=config.language_model)
    tokens = choose_tokens(lm.tokenizer, train.texts) if config.adapter == "ctc" else None
    if tokens and config.start is not None:  # what it could say before it can still say
        tokens = sorted({*tokens, *tokens_of(config.start)})
    model = _untrained(config, lm, tokens, recipe.seed)
    known = Signatures.build(())
    if config.start is not None:
        start_from(model, config.start)
        known = heard_by(connector_folder(config.start))
    folder = run.path("connect")
    counts = train_connector(model, lm.tokenizer, train, validation, config, recipe.seed, folder)
    connector = folder / "connector"
    counts |= {
        "dataset": data.content_hash,
        "language_model": lm.digest,
        "sentences": len(set(train.texts)),
        "practice_sentences": sum(e.labels.get("source") == SOURCE for e in data.examples(Split.TRAIN)),
        "voices": sorted(set(train.voices)),
        "speech_hours": round(float(train.seconds.sum()) / 3600, 2),
        "ctc_tokens": len(tokens or ()),
        "parameters": sum(p.numel() for part in (model.encoder, model.adapter) for p in part.parameters()),
    }
    if config.start is not None:
        before = connector_folder(config.start) / "counts.json"
        counts["start"] = json.loads(before.read_text(encoding="utf-8")) if before.is_file() else None
    heard = Signatures.build(sorted({*train.texts, *validation.texts}))
    known.union(heard).save(connector / SIGNATURES)
    atomic_write(connector / "counts.json", json.dumps(counts, indent=1, sort_keys=True) + "\n")
    shutil.copyfile(folder / "metrics.jsonl", connector / "metrics.jsonl")
    shutil.copyfile(run.path("recipe.toml"), connector / "recipe.toml")
    return {"connector": connector_hash(connector)}


def _untrained(config: ConnectConfig, lm: LM, tokens: list[int] | None, seed: int) -> Any:
    """The speech LLM before its first update, for a ctc adapter over these tokens."""
    from rbalign.lm.templates import prequery_ids
    from rbalign.speechlm.connector import new_model

    reads_along = config.fusion.beams and tokens is not None
    shape = {"width": config.width, "layers": config.layers, "heads": config.heads, "stack": config.stack}
    return new_model(
        model_folder(config.encoder),
        lm.model,
        tokens,
        lm.tokenizer.batch_decode([[token] for token in tokens or ()]),
        seed=seed,
        adapter_type=config.adapter,
        ctc_letters=config.letters if tokens else 0,
        ctc_speller_layers=config.speller_layers if tokens else 0,
        fusion={**config.fusion.model_dump(), "context_ids": prequery_ids(lm.tokenizer)} if reads_along else None,
        **{f"adapter_{name}": value for name, value in shape.items()},
    )


def _config(recipe: Recipe) -> ConnectConfig:
    if recipe.connect is None:
        raise UsageError(f"recipe {recipe.name} has no [connect] section", "add one, or choose another recipe")
    return recipe.connect


def _clips(data: Dataset, split: str) -> Clips:
    """The views of one split."""
    import numpy as np

    from rbalign.audio.io import read_audio
    from rbalign.train.connect_plan import Clips

    examples = {example.id: example for example in data.examples(split)}
    views = data.views(split)
    return Clips(
        [view.id for view in views],
        [examples[view.example_id].spoken for view in views],
        [examples[view.example_id].answer for view in views],
        [view.spec.voice for view in views],
        np.array([view.seconds for view in views]),
        lambda index: read_audio(views[index].flac),
    )


def _check_voices(bank: VoiceBank, train: Clips, validation: Clips) -> None:
    """Test and test-only voices never teach, and never choose a checkpoint."""
    bank.require(sorted(set(train.voices)), {Split.TRAIN}, "connect")
    bank.require(sorted(set(validation.voices)), {Split.TRAIN, Split.VALIDATION}, "connect")
