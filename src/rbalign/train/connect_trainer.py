"""Connector training on transformers' Trainer: its dataset of whole batches, its hooks, its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, WhisperFeatureExtractor

from rbalign.config.sections import ConnectConfig
from rbalign.keys import Key
from rbalign.rundir.journal import Journal
from rbalign.rundir.progress import Advance
from rbalign.speechlm.modeling import IGNORED
from rbalign.speechlm.processing import RATE, collate_features, log_mel
from rbalign.train.augment import augment_samples, mask_features
from rbalign.train.connect_plan import Clips, Item
from rbalign.train.connect_tasks import ConnectTask

Target = Callable[[Item], tuple[list[int], int]]
"""An item's label ids and the kind of target they are (TeachTask.kinds)."""


class Batches(Dataset[dict[str, Tensor]]):
    """Row i is batch i of the whole training, ready for the model. Keyed: nothing depends on worker or resume."""

    def __init__(self, clips: Clips, batches: list[list[Item]], target: Target, config: ConnectConfig) -> None:
        self.clips, self.batches, self.target = clips, batches, target
        self.augment, self.spec_augment = config.augment, config.spec_augment
        self.extractor = WhisperFeatureExtractor()

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch = self.batches[index]
        features = [self._features(item) for item in batch]
        targets = [self.target(item) for item in batch]
        labels = [torch.tensor(ids) for ids, _ in targets]
        return {
            **collate_features(features),
            "labels": nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            "kinds": torch.tensor([kind for _, kind in targets]),
        }

    def _features(self, item: Item) -> Tensor:
        samples = joined_samples(self.clips, item)
        if self.augment and not item.plain:
            samples = augment_samples(samples, item.speed, item.key)
        features = log_mel(samples, self.extractor)
        return mask_features(features, item.key) if self.spec_augment and not item.plain else features


def joined_samples(clips: Clips, item: Item) -> np.ndarray:
    """The item's clips one after another with its silences: (n,) float32 at 16 kHz."""
    parts = [clips.read(item.clips[0])]
    for gap, index in zip(item.gaps, item.clips[1:], strict=True):
        parts += [np.zeros(round(gap * RATE), dtype=np.float32), clips.read(index)]
    return np.concatenate(parts)


def joined_text(clips: Clips, item: Item) -> str:
    """What the item says."""
    return " ".join(clips.texts[index] for index in item.clips)


class ConnectTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer by its public hooks: one dataset row is one batch, dropout is keyed by the step."""

    def __init__(self, task: ConnectTask, seed: int, frozen_updates: int, **kwargs: Any) -> None:
        """The encoder stays as it is for the first `frozen_updates`."""
        super().__init__(model=task, data_collator=_only_row, **kwargs)
        self.remove_callback(PrinterCallback)
        self.key = Key(seed, "connect-dropout")
        self.frozen_updates = frozen_updates

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """One update; the global generator serves dropout alone and starts anew at every step."""
        self.model.let_encoder_train(self.state.global_step >= self.frozen_updates)
        torch.manual_seed(self.key.at(update=self.state.global_step).digest() % 2**63)
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Loss, greedy CTC rows (B,L) and labels (B,L), both padded with -100; the MLP adapter has a loss only."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        loss = outputs["loss"].detach()
        if "heard" not in outputs:
            return loss, None, None
        rows = [torch.tensor(row, device=loss.device) for row in outputs["heard"]]
        return loss, nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED), inputs["labels"]


def _only_row(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    (row,) = rows
    return row


class Curves(TrainerCallback):  # type: ignore[misc]
    """Writes every log row to the journal and moves the progress bar."""

    def __init__(self, journal: Journal, advance: Advance) -> None:
        self.journal, self.advance = journal, advance
        self.started = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One update is done."""
        self.advance()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """A resumed run repeats the rows since its checkpoint under their old keys; the journal ignores them."""
        logs = dict(logs or {})
        kind = "validation" if any(name.startswith("eval_") for name in logs) else "train"
        if "train_runtime" in logs or not state.is_world_process_zero:
            return
        seconds = round(time.monotonic() - self.started, 1)
        self.journal.append([{"key": f"{kind}-{state.global_step}", "step": state.global_step, "kind": kind,
                              "seconds": seconds, **logs}])  # fmt: skip
