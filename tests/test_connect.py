"""Training a connector: spelling, the plan, augmentation, and a tiny training that is killed and goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TEXTS, tiny_clip, tiny_lm, tiny_speech_model, tiny_tokenizer

from rbalign.config.sections import ConnectConfig
from rbalign.errors import DataError, UsageError
from rbalign.keys import Key
from rbalign.rundir.journal import Journal
from rbalign.speechlm import from_parts
from rbalign.train import connect_trainer
from rbalign.train.augment import augment_samples, mask_features
from rbalign.train.connect import learnable, train_connector
from rbalign.train.connect_plan import MAX_SECONDS, Clips, plan_easy, plan_epoch, plan_validation
from rbalign.train.connect_trainer import joined_samples
from rbalign.train.resume import last_checkpoint
from rbalign.train.spelling import Spelling, choose_tokens


def made_up(count: int, seed: int = 0) -> Clips:
    """Clips whose lengths and voices vary; clip i lasts its text's length."""
    generator = np.random.default_rng(seed)
    seconds = generator.uniform(2.0, 6.0, count)
    return Clips(
        [f"c{i}" for i in range(count)],
        [TEXTS[i % len(TEXTS)] for i in range(count)],
        [None] * count,
        [f"v{i % 3}" for i in range(count)],
        seconds,
        lambda index: np.full(round(16_000 * seconds[index]), 0.01 * (index + 1), dtype=np.float32),
    )


def spoken(count: int) -> Clips:
    """A tiny task that can be learned: two sentences, each with its own sound."""
    texts = ["How do birds fly?", "Tell me a story"]
    clips = [tiny_clip(2.0 + 0.1 * (i % 3), seed=10 * (i % 2)) for i in range(count)]
    return Clips(
        [f"s{i}" for i in range(count)],
        [texts[i % 2] for i in range(count)],
        ["fine" if i % 4 else None for i in range(count)],
        ["v"] * count,
        np.array([len(clip) / 16_000 for clip in clips]),
        lambda index: clips[index],
    )


class TestSpelling:
    def test_tokens_outside_are_spelled_from_pieces(self) -> None:
        tokenizer = tiny_tokenizer()
        ids = choose_tokens(tokenizer, ["How do birds fly?"], min_count=1)
        spelling = Spelling(tokenizer, ids)
        assert spelling.text(spelling.rows("How do birds fly?") or []) == "How do birds fly?"
        own = tokenizer("How do birds fly?").input_ids
        assert [ids[row] for row in spelling.rows("How do birds fly?") or []] == own
        weather = tokenizer(" weather").input_ids
        assert not set(weather) <= set(ids), "the word must hold a token that was never seen"
        assert spelling.text(spelling.rows("The weather") or []) == "The weather"
        assert len(spelling.rows(" weather") or []) < len(" weather"), "the fewest pieces, not letters"
        assert spelling.rows("日本") is None

    def test_rare_and_special_tokens_stay_out(self) -> None:
        tokenizer = tiny_tokenizer()
        every, frequent = (choose_tokens(tokenizer, TEXTS, min_count=n) for n in (1, 3))
        assert set(frequent) < set(every)
        assert not set(every) & set(tokenizer.all_special_ids)
        letters = {token for c in "aZ9?" for token in tokenizer.convert_tokens_to_ids([c])}
        assert letters <= set(frequent)


class TestPlan:
    def test_every_clip_once_an_epoch_in_batches_of_the_wanted_size(self) -> None:
        clips = made_up(200)
        for splice in (0.0, 0.5):
            plan = plan_epoch(clips, Key(3, "connect", update=1), splice, True, 60.0)
            heard = [clip for batch in plan for item in batch for clip in item.clips]
            assert sorted(heard) == list(range(200))
            for batch in plan:
                assert max(item.seconds for item in batch) * len(batch) <= 60.0 or len(batch) == 1
            padded = sum(max(item.seconds for item in batch) * len(batch) for batch in plan)
            assert padded < 1.15 * sum(item.seconds for batch in plan for item in batch)

    def test_plan_is_named_by_its_key(self) -> None:
        clips = made_up(50)
        first, again, other = (plan_epoch(clips, Key(3, "connect", update=u), 0.2, True, 60.0) for u in (1, 1, 2))
        assert first == again
        assert first != other

    def test_splices_are_one_voice_and_fit_the_encoder(self) -> None:
        clips = made_up(300)
        plan = plan_epoch(clips, Key(3, "connect"), 0.5, True, 60.0)
        splices = [item for batch in plan for item in batch if len(item.clips) > 1]
        assert len(splices) > 20
        for item in splices:
            assert len({clips.voices[clip] for clip in item.clips}) == 1
            assert item.seconds <= MAX_SECONDS
            assert len(joined_samples(clips, item)) / 16_000 == pytest.approx(item.seconds * item.speed, abs=0.01)
        assert max(item.seconds for item in splices) > 20

    def test_validation_is_each_clip_as_it_is(self) -> None:
        plan = plan_validation(made_up(30), 60.0)
        items = [item for batch in plan for item in batch]
        assert sorted(item.clips for item in items) == [(i,) for i in range(30)]
        assert {item.speed for item in items} == {1.0}

    def test_the_easy_epoch_is_plain_and_short_first(self) -> None:
        plan = plan_easy(made_up(100), Key(0, "connect"), 60.0)
        assert sorted(clip for batch in plan for item in batch for clip in item.clips) == list(range(100))
        assert all(item.plain and item.speed == 1.0 for batch in plan for item in batch)
        means = [np.mean([item.seconds for item in batch]) for batch in plan]
        assert means == sorted(means)


class TestAugment:
    def test_keyed_and_bounded(self) -> None:
        clip, key = tiny_clip(2.0), Key(0, "connect", example="a")
        one, same, other = (augment_samples(clip, 1.1, k) for k in (key, key, key.at(update=1)))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)
        assert len(one) == pytest.approx(len(clip) / 1.1, abs=2)
        assert one.dtype == np.float32
        assert np.abs(one).max() <= 1.0

    def test_masks_hide_bands_and_moments(self) -> None:
        features = torch.randn(80, 600, generator=torch.Generator().manual_seed(0))
        masked = mask_features(features, Key(0, "connect", example="b"))
        changed = masked != features
        assert 0 < changed.float().mean() < 0.5
        assert torch.equal(masked, mask_features(features, Key(0, "connect", example="b")))
        assert changed.all(0).any() or changed.all(1).any()


def config(**changes: object) -> ConnectConfig:
    args = {"num_train_epochs": 6, "learning_rate": 5e-3, "eval_steps": 4, "dataloader_num_workers": 0, "bf16": False}
    fields = {"splice": 0.2, "seconds_per_batch": 10.0, "augment": False, "encoder_lr_scale": 0.5}
    fields |= {"encoder_start": 0.0, "args": args}
    return ConnectConfig(**{**fields, **changes})


def train(folder: Path, adapter: str = "ctc", **changes: object) -> tuple[dict, dict]:  # type: ignore[type-arg]
    model = tiny_speech_model(adapter)
    summary = train_connector(model, tiny_tokenizer(), spoken(16), spoken(4), config(**changes), 0, folder)
    return summary, from_parts(folder / "connector", tiny_lm()).state_dict()


class TestTraining:
    def test_learns_and_keeps_the_best(self, tmp_path: Path) -> None:
        args = {**config().args, "num_train_epochs": 80, "eval_steps": 20}
        summary, _ = train(tmp_path, args=args, seconds_per_batch=40.0, splice=0.0, spec_augment=False)
        rows = list(Journal(tmp_path / "metrics.jsonl", key="key").rows())
        judged = [row for row in rows if row["kind"] == "validation"]
        assert judged[-1]["eval_loss"] < 0.3 * judged[0]["eval_loss"]
        assert summary["eval_wer"] == min(row["eval_wer"] for row in judged) < 0.5
        assert {"eval_wer_written", "step"} <= set(judged[0])
        assert summary["train_clips"] == 16

    def test_max_steps_cuts_the_training_and_its_schedule(self, tmp_path: Path) -> None:
        summary, _ = train(tmp_path, args={**config().args, "max_steps": 3, "logging_steps": 1})
        rates = [
            row["learning_rate"]
            for row in Journal(tmp_path / "metrics.jsonl", key="key").rows()
            if "learning_rate" in row
        ]
        assert (summary["updates"], len(rates)) == (3, 3)
        assert rates[-1] < max(rates)

    def test_the_encoder_joins_after_its_share_of_the_updates(self, tmp_path: Path) -> None:
        before = tiny_speech_model().encoder.layers[0].fc1.weight.half().float()
        for share, learns in ((1.0, False), (0.0, True)):
            _, after = train(tmp_path / str(share), encoder_start=share)
            assert torch.equal(after["encoder.layers.0.fc1.weight"].float(), before) is not learns

    def test_killed_and_resumed_equals_uninterrupted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _, whole = train(tmp_path / "whole")
        original = connect_trainer.Curves.on_step_end

        def killed(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            original(self, args, state, control, **kwargs)
            if state.global_step == 10:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(connect_trainer.Curves, "on_step_end", killed)
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path / "torn")
        torn = tmp_path / "torn" / "checkpoints" / "checkpoint-9"
        torn.mkdir()
        (torn / "trainer_state.json").write_text("{")
        assert last_checkpoint(torn.parent) == torn.parent / "checkpoint-8"
        steps: list[int] = []

        def counted(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            original(self, args, state, control, **kwargs)
            steps.append(state.global_step)

        monkeypatch.setattr(connect_trainer.Curves, "on_step_end", counted)
        _, resumed = train(tmp_path / "torn")
        assert steps[0] == 9, "goes on after the last whole checkpoint"
        for name, value in whole.items():
            assert torch.allclose(value.float(), resumed[name].float(), atol=2e-3), name

    def test_mlp_adapter_learns_through_the_llm_which_stays_as_it_was(self, tmp_path: Path) -> None:
        args = {**config().args, "num_train_epochs": 40, "eval_steps": 10}
        _, state = train(tmp_path, "mlp", args=args, seconds_per_batch=40.0)
        judged = [row for row in Journal(tmp_path / "metrics.jsonl", key="key").rows() if row["kind"] == "validation"]
        # Uniform over 320 tokens is 5.77; a random LLM cannot be steered far.
        assert judged[-1]["eval_loss"] < min(5.7, judged[0]["eval_loss"] - 0.2)
        for name, value in tiny_lm().state_dict().items():
            assert torch.equal(state[f"language_model.{name}"], value)

    def test_clips_that_cannot_be_spelled_or_are_too_short_are_left_out(self) -> None:
        clips = made_up(3)
        clips.texts[0] = "日本"
        clips.seconds[1] = 0.3
        ids = choose_tokens(tiny_tokenizer(), TEXTS, min_count=1)
        model = tiny_speech_model(ctc_vocab_size=len(ids))
        model.adapter.ctc_token_ids.copy_(torch.tensor(ids))
        assert learnable(clips, model, tiny_tokenizer()).ids == ["c2"]

    def test_refusals(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot set output_dir"):
            train(tmp_path, args={"output_dir": "elsewhere"})
        with pytest.raises(UsageError, match="learning_rat"):
            train(tmp_path, args={"learning_rat": 1.0})
        nothing = Clips([], [], [], [], np.array([]), lambda index: np.zeros(1, np.float32))
        with pytest.raises(DataError, match="no clip"):
            train_connector(tiny_speech_model(), tiny_tokenizer(), nothing, nothing, config(), 0, tmp_path)
