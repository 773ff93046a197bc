"""`rba connect` from a dataset folder to a connector folder, on tiny models."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_clip, tiny_lm, tiny_tokenizer, tiny_whisper_config
from transformers import WhisperModel

from rbalign.audio.io import to_flac
from rbalign.config.recipe import Recipe
from rbalign.config.sections import ConnectConfig
from rbalign.data.dataset import DatasetWriter
from rbalign.data.signatures import Signatures
from rbalign.errors import DataError, UsageError
from rbalign.rundir.files import sha256_file
from rbalign.rundir.run import RunDir
from rbalign.speechlm import from_parts
from rbalign.speechlm.connector import connector_hash, save_connector, tokens_of
from rbalign.stages import connect
from rbalign.train import spelling
from rbalign.types import Example, View, ViewSpec
from rbalign.voices.bank import load_bank

TEXTS = ["How do birds fly?", "Tell me a story"]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    tiny_lm().save_pretrained(tmp_path / "lm")
    tiny_tokenizer().save_pretrained(tmp_path / "lm")
    WhisperModel(tiny_whisper_config()).save_pretrained(tmp_path / "whisper")
    section = {
        "encoder": str(tmp_path / "whisper"),
        "language_model": str(tmp_path / "lm"),
        "width": 32,
        "layers": 1,
        "heads": 4,
        "seconds_per_batch": 10.0,
        "args": {"num_train_epochs": 2, "eval_steps": 2, "dataloader_num_workers": 0, "bf16": False},
    }
    return Recipe(name="tiny", connect=section)  # type: ignore[arg-type]


def speak(folder: Path, voices: dict[str, str]) -> None:
    writer = DatasetWriter(folder, {"teacher": "none", "recipe": "none"})
    for split, voice in voices.items():
        examples = [Example(f"{split}{i}", split, TEXTS[i % 2], TEXTS[i % 2]) for i in range(8)]
        clips = [tiny_clip(2.0, seed=10 * (i % 2)) for i in range(8)]
        writer.add_examples(examples)
        views = [View(e.id, 0, split, ViewSpec(voice), 2.0, to_flac(c)) for e, c in zip(examples, clips, strict=True)]
        writer.commit_views(split, 0, views)
    writer.finish()


def test_from_dataset_to_connector(recipe: Recipe, tmp_path: Path) -> None:
    bank = load_bank()
    voices = {split: bank.names(split)[0] for split in ("train", "validation")}
    with RunDir.open(tmp_path / "runs", recipe) as run:
        speak(run.path("data"), voices)
        (row,) = connect.plan(recipe, run).rows
        assert row.count == 3  # 8 clips x 2 s x 2 epochs in updates of 10 s
        outputs = connect.run(recipe, run)
        folder = run.path("connect", "connector")
        counts = json.loads((folder / "counts.json").read_text())
        assert counts["sentences"] == 2
        assert counts["voices"] == [voices["train"]]
        assert counts["train_clips"] == 8
        assert 0 < counts["ctc_tokens"] < 320
        assert Signatures.load(folder / "signatures.bin").worst("tell me a story!") == 1.0
        assert tomllib.loads((folder / "recipe.toml").read_text())["name"] == "tiny"
        assert '"eval_wer"' in (folder / "metrics.jsonl").read_text()
        model = from_parts(folder, tiny_lm())
        assert len(model.adapter.ctc_token_ids) == counts["ctc_tokens"]
        assert outputs["connector"] == connector_hash(folder)
        assert model.config.fusion["context_ids"][0] == 1, "the LLM reads along from the start of a user's turn"
        model.config.fusion["beams"] += 1
        save_connector(model, folder)
        assert connector_hash(folder) != outputs["connector"]


def test_a_connector_to_start_from_is_missed_before_any_work(recipe: Recipe, tmp_path: Path) -> None:
    connect.check(recipe)
    further = changed(recipe, start=str(tmp_path))
    with pytest.raises(DataError, match=r"model.safetensors is missing"):
        connect.check(further)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(DataError, match=r"signatures.bin is missing"):
        connect.check(further)
    (tmp_path / "signatures.bin").touch()
    connect.check(further)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adapter": "mlp", "letters": 8}, "belong to the ctc adapter"),
        ({"speller_layers": 1}, "a speller needs letters"),
        ({"speller_layers": 1, "letters": 8, "stack": 3}, "an even stack"),
        ({"width": 100, "heads": 6}, "not a multiple"),
    ],
)
def test_shapes_that_cannot_be_are_refused_with_the_recipe(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConnectConfig.model_validate(fields)


def test_training_starts_from_a_connector_and_learns_letters(recipe: Recipe, tmp_path: Path, monkeypatch) -> None:
    voices = {split: load_bank().names(split)[0] for split in ("train", "validation")}
    frozen = changed(recipe, train_encoder=False)
    with RunDir.open(tmp_path / "runs", frozen) as run:
        speak(run.path("data"), voices)
        connect.run(frozen, run)
        first = run.path("connect", "connector")
    Signatures.build(["Only the first one heard this.", "Tell me a story."]).save(first / "signatures.bin")
    further = changed(frozen, start=str(first), letters=16).model_copy(update={"name": "further"})
    assert connect.inputs(further) == {"start": sha256_file(first / "model.safetensors")}
    assert connect.inputs(frozen) == {}
    fewer = spelling.choose_tokens
    monkeypatch.setattr("rbalign.train.spelling.choose_tokens", lambda *given: fewer(*given)[3:])
    with RunDir.open(tmp_path / "runs", further) as run:
        speak(run.path("data"), voices)
        connect.run(further, run)
        assert tokens_of(run.path("connect", "connector")) == tokens_of(first), "what was sayable stays so"
        one, two = (from_parts(path, tiny_lm()) for path in (first, run.path("connect", "connector")))
    assert two.adapter.spell.weight.abs().max() > 0
    assert (two.adapter.ctc_spelling[:, 1:] > 0).any()
    heard = Signatures.load(run.path("connect", "connector", "signatures.bin"))
    assert len(heard) == 3  # what the first one heard, what both heard, what the second heard
    assert heard.worst("Only the first one heard this.") == 1.0
    for name, value in one.encoder.state_dict().items():
        assert torch.equal(value, two.encoder.state_dict()[name])


def test_half_the_way_back_to_the_start(recipe: Recipe, tmp_path: Path) -> None:
    voices = {split: load_bank().names(split)[0] for split in ("train", "validation")}
    states = {}
    start = str(tmp_path / "runs" / "first" / "connect" / "connector")
    for name, fields in (("first", {}), ("plain", {"start": start}), ("half", {"start": start, "keep_start": 0.5})):
        named = changed(recipe, train_encoder=False, **fields).model_copy(update={"name": name})
        with RunDir.open(tmp_path / "runs", named) as run:
            speak(run.path("data"), voices)
            connect.run(named, run)
            states[name] = load_file(run.path("connect", "connector", "model.safetensors"))
            counts = json.loads(run.path("connect", "connector", "counts.json").read_text())
    moved = [name for name, value in states["first"].items() if not torch.equal(value, states["plain"][name])]
    assert moved
    for name in moved:
        middle = (states["first"][name].float() + states["plain"][name].float()) / 2
        torch.testing.assert_close(states["half"][name].float(), middle, atol=2e-3, rtol=2e-3)
        assert not torch.equal(states["half"][name], states["plain"][name])
    assert counts["before_averaging"] is not None


def changed(recipe: Recipe, **fields: object) -> Recipe:
    assert recipe.connect is not None
    return recipe.model_copy(update={"connect": recipe.connect.model_copy(update=fields)})


def test_test_voices_teach_nothing(recipe: Recipe, tmp_path: Path) -> None:
    test_voice = load_bank().names("test")[0]
    with RunDir.open(tmp_path / "runs", recipe) as run:
        speak(run.path("data"), {"train": test_voice, "validation": test_voice})
        with pytest.raises(UsageError, match="connect may not use voice"):
            connect.run(recipe, run)
