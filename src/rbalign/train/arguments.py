"""TrainingArguments of an arm: the recipe's own fields, beside those that the algorithm fixes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from rbalign.config.sections import AlignConfig
from rbalign.errors import UsageError, unknown

FIXED = {
    "output_dir": "the run's own folder is taken",
    "max_steps": "set [align] updates",
    "num_train_epochs": "set [align] updates",
    "per_device_train_batch_size": "set [align] examples_per_update",
    "gradient_accumulation_steps": "set [align] micro_batch: one dataloader batch is one update",
    "save_strategy": "set [align] save_every",
    "save_steps": "set [align] save_every",
    "eval_strategy": "set [align] select_by",
    "eval_steps": "set [align] save_every",
    "load_best_model_at_end": "set [align] select_by",
    "metric_for_best_model": "set [align] select_by",
    "restore_callback_states_from_checkpoint": "set [align] patience",
    "seed": "set [align] seeds",
    "data_seed": "set [align] seeds",
    "logging_steps": "every update writes its row",
    "logging_strategy": "every update writes its row",
    "remove_unused_columns": "views must reach the trainer",
    "train_sampling_strategy": "the order of the data is keyed",
    "ignore_data_skip": "a resumed run must go on where it stopped",
    "auto_find_batch_size": "set [align] micro_batch",
    "save_only_model": "a resumed run needs the optimizer",
    "dataloader_drop_last": "every update is full",
    "activation_checkpointing": "set [align] gradient_checkpointing",
    "gradient_checkpointing": "set [align] gradient_checkpointing",
    "neftune_noise_alpha": "every draw here is keyed",
    "label_smoothing_factor": "the objectives are what they say",
}
"""Fields that a recipe may not set, and what to do instead."""


def training_arguments(config: AlignConfig, folder: Path, seed: int) -> TrainingArguments:
    """Checkpoints go to `folder`. Raises UsageError for a field that does not exist or is not the recipe's to set."""
    known = {field.name for field in fields(TrainingArguments)}
    for name in config.args:
        if name not in known:
            raise unknown("[align.args] field", name, known - set(FIXED), "see transformers' TrainingArguments")
        if name in FIXED:
            raise UsageError(f"[align.args] {name} is fixed", FIXED[name])
    select = config.select_by == "validation"
    settled: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": config.updates,
        "gradient_accumulation_steps": 1,
        "save_strategy": "steps",
        "save_steps": config.save_every,
        "save_total_limit": 2,
        "eval_strategy": "steps" if select else "no",
        "eval_steps": config.save_every if select else None,
        "load_best_model_at_end": select,
        "metric_for_best_model": "eval_nll" if select else None,
        "greater_is_better": False if select else None,
        "restore_callback_states_from_checkpoint": bool(config.patience),
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",
        "seed": seed % 2**31,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "report_to": [],
    }
    try:
        return TrainingArguments(**{**settled, **config.args})
    except (TypeError, ValueError) as error:
        raise UsageError(f"[align.args]: {error}", "see transformers' TrainingArguments") from error
