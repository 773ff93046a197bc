"""Train a connector: encoder and adapter learn to turn speech into positions that a frozen LLM understands."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction, TrainingArguments

from rbalign.config.sections import ConnectConfig
from rbalign.errors import DataError, UsageError
from rbalign.keys import Key
from rbalign.lm.templates import around_user, end_ids
from rbalign.rundir.files import sha256_file
from rbalign.rundir.journal import Journal
from rbalign.rundir.progress import note, progress
from rbalign.speechlm.adapters import CtcAdapter
from rbalign.speechlm.base import REPEAT
from rbalign.speechlm.connector import WEIGHTS, average_with, connector_folder, save_connector
from rbalign.speechlm.ctc import frames_needed
from rbalign.speechlm.modeling import IGNORED, RbaSpeechForConditionalGeneration
from rbalign.text.normalise import wer
from rbalign.train.connect_plan import SPEEDS, Clips, Item, plan_easy, plan_epoch, plan_validation, shortened
from rbalign.train.connect_tasks import ConnectTask, CtcTask, TeachTask
from rbalign.train.connect_trainer import Batches, ConnectTrainer, Curves, Target, joined_text
from rbalign.train.resume import last_checkpoint
from rbalign.train.spelling import Spelling

DEFAULT_ARGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.08,
    "weight_decay": 0.01,
    "adam_beta2": 0.98,
    "max_grad_norm": 1.0,
    "logging_steps": 10,
    "save_total_limit": 2,
    # Elsewhere workers are spawned, not forked, and would have to pickle the clips.
    "dataloader_num_workers": 1 if sys.platform == "linux" else 0,
}
DEFAULT_EPOCHS = 3
EVALUATIONS = 12
"""Times the validation split is heard in a whole training, unless `eval_steps` says otherwise."""


def learnable(clips: Clips, model: RbaSpeechForConditionalGeneration, tokenizer: Any) -> Clips:
    """The clips whose words CTC can spell in the frames that they have, even at the fastest speed; all for the MLP."""
    if not isinstance(model.adapter, CtcAdapter):
        return clips
    spelling = _spelling(model.adapter, tokenizer)
    rate = 50.0 / model.config.adapter_stack / SPEEDS[1]
    kept = []
    for position, text in enumerate(clips.texts):
        rows = spelling.rows(text)
        if rows and frames_needed(torch.tensor(rows)) <= int(clips.seconds[position] * rate):
            kept.append(position)
    return clips.only(kept)


def train_connector(
    model: RbaSpeechForConditionalGeneration,
    tokenizer: Any,
    train: Clips,
    validation: Clips,
    config: ConnectConfig,
    seed: int,
    folder: Path,
) -> dict[str, Any]:
    """Train encoder and adapter; write the best connector (by validation) to `folder`/connector.

    Goes on from the last whole checkpoint in `folder`/checkpoints. Returns counts, the best metric and its step.
    """
    heard, judged = learnable(train, model, tokenizer), learnable(validation, model, tokenizer)
    if not heard.ids or not judged.ids:
        raise DataError("no clip can be learned from", "check that the dataset has train and validation views")
    given = dict(config.args)
    epochs = int(given.pop("num_train_epochs", DEFAULT_EPOCHS))
    batches = _plan(heard, config, seed, epochs)
    # The schedule is cut with the training.
    batches = batches[: shortened(len(batches), int(given.pop("max_steps", 0)))]
    adapter, tests = model.adapter, plan_validation(judged, config.seconds_per_batch)
    task, target, judge_target = _task(model, tokenizer, config, heard, judged)
    args = _arguments(given, len(batches), folder / "checkpoints", isinstance(task, CtcTask))
    checkpoint = last_checkpoint(folder / "checkpoints", note)
    done = int(checkpoint.name.removeprefix("checkpoint-")) if checkpoint else 0
    with (
        Journal(folder / "metrics.jsonl", key="key") as journal,
        progress(len(batches), "connect", done, "updates") as advance,
    ):
        trainer = ConnectTrainer(
            task,
            seed,
            frozen_updates=round(config.encoder_start * len(batches)),
            args=args,
            train_dataset=Batches(heard, batches, target, config),
            eval_dataset=Batches(judged, tests, judge_target, config),
            optimizers=(_optimizer(task, args, config), None),
            compute_metrics=_Wer(_spelling(adapter, tokenizer)) if isinstance(adapter, CtcAdapter) else None,
            callbacks=[Curves(journal, advance)],
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        best = {args.metric_for_best_model: trainer.state.best_metric}
        if config.start is not None and config.keep_start:
            average_with(model, config.start, config.keep_start)
            measured = trainer.evaluate()[args.metric_for_best_model]
            best = {args.metric_for_best_model: measured, "before_averaging": trainer.state.best_metric}
    save_connector(model, folder / "connector")
    return {
        "train_clips": len(heard.ids),
        "train_clips_left_out": len(train.ids) - len(heard.ids),
        "validation_clips": len(judged.ids),
        "updates": len(batches),
        "hours_heard": round(sum(item.seconds for batch in batches for item in batch) / 3600, 2),
        "epochs": epochs,
        "bf16": args.bf16,
        "best_step": trainer.state.best_global_step,
        **best,
    }


def _plan(clips: Clips, config: ConnectConfig, seed: int, epochs: int) -> list[list[Item]]:
    """The batches of all epochs; of several, the first is easy. What goes on from a connector has an order of its own:
    cut short, it would else hear only what that one has heard."""
    name = "connect"
    if config.start is not None:
        name += f"-after-{sha256_file(connector_folder(config.start) / WEIGHTS)}"
    keys = [Key(seed, name, update=epoch) for epoch in range(epochs)]
    easy = plan_easy(clips, keys.pop(0), config.seconds_per_batch) if epochs > 1 else []
    hard = [plan_epoch(clips, key, config.splice, config.augment, config.seconds_per_batch) for key in keys]
    return [*easy, *(batch for plan in hard for batch in plan)]


def fast_bfloat16() -> bool:
    """True if this machine multiplies bfloat16 matrices at least 1.5 times as fast as float32, by trying (0.1 s).

    Measured: AVX2 CPUs are 100 times slower in bfloat16, AVX512-BF16 CPUs 3 times faster (a training step 1.7 times).
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def seconds(size: int, dtype: torch.dtype) -> float:
        a = torch.ones(size, size, dtype=dtype, device=device)
        times = []
        for _ in range(6):
            start = time.perf_counter()
            (a @ a).sum().item()
            times.append(time.perf_counter() - start)
        return min(times)

    # The small product first: where bfloat16 is emulated the large one would take a second.
    return all(
        seconds(size, torch.float32) > gain * seconds(size, torch.bfloat16) for size, gain in ((128, 0.2), (768, 1.5))
    )


def _task(
    model: RbaSpeechForConditionalGeneration, tokenizer: Any, config: ConnectConfig, heard: Clips, judged: Clips
) -> tuple[ConnectTask, Target, Target]:
    """The module to train and what an item of each split should become."""
    if isinstance(model.adapter, CtcAdapter):
        spelling = _spelling(model.adapter, tokenizer)

        def spelled(clips: Clips) -> Target:
            return lambda item: (spelling.rows(joined_text(clips, item)) or [], 0)

        return CtcTask(model, config.train_encoder), spelled(heard), spelled(judged)

    end = end_ids(tokenizer)[0]

    def taught(clips: Clips) -> Target:
        def target(item: Item) -> tuple[list[int], int]:
            answer = clips.answers[item.clips[0]] if len(item.clips) == 1 else None
            use_answer = answer is not None and item.key.at(view=3).generator().random() < 0.5
            text = answer if use_answer else joined_text(clips, item)
            return [*tokenizer.encode(text, add_special_tokens=False), end], int(use_answer)

        return target

    frames = [around_user(tokenizer, REPEAT), around_user(tokenizer)]
    return TeachTask(model, config.train_encoder, frames), taught(heard), taught(judged)


def _spelling(adapter: CtcAdapter, tokenizer: Any) -> Spelling:
    return Spelling(tokenizer, adapter.ctc_token_ids.tolist())


def _arguments(given: dict[str, Any], updates: int, folder: Path, ctc: bool) -> TrainingArguments:
    """TrainingArguments: ours, then the recipe's, then what the design of the data fixes."""
    metric = "eval_wer" if ctc else "eval_loss"
    every = int(given.pop("eval_steps", max(1, updates // EVALUATIONS)))
    fixed = {
        "output_dir": str(folder),
        "num_train_epochs": 1,  # the plan holds every epoch
        "per_device_train_batch_size": 1,  # a row is a batch
        "per_device_eval_batch_size": 1,
        "train_sampling_strategy": "sequential",
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "load_best_model_at_end": True,
        "metric_for_best_model": metric,
        "greater_is_better": False,
        "label_names": ["labels"],
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    clash = sorted(set(given) & set(fixed))
    if clash:
        raise UsageError(f"[connect.args] cannot set {', '.join(clash)}: rba sets them", "remove them")
    try:
        return TrainingArguments(**{**DEFAULT_ARGS, "bf16": fast_bfloat16(), **given, **fixed})
    except TypeError as error:
        raise UsageError(f"[connect.args]: {error}", "use the field names of transformers.TrainingArguments") from None


def _optimizer(task: ConnectTask, args: TrainingArguments, config: ConnectConfig) -> torch.optim.Optimizer:
    """AdamW; the encoder, which already hears, at `encoder_lr_scale` of the adapter's rate; no decay on vectors."""
    groups = []
    for part, rate in (
        (task.adapter, args.learning_rate),
        (task.encoder, args.learning_rate * config.encoder_lr_scale),
    ):
        weights = [p for p in part.parameters() if p.requires_grad]
        groups += [
            {"params": [p for p in weights if p.ndim > 1], "lr": rate, "weight_decay": args.weight_decay},
            {"params": [p for p in weights if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon)


class _Wer:
    """Corpus word error rate of greedy CTC: `wer` after Whisper's normaliser, `wer_written` with case and marks."""

    def __init__(self, spelling: Spelling) -> None:
        self.spelling = spelling

    def __call__(self, result: EvalPrediction) -> dict[str, float]:
        import jiwer

        said = [self._text(row) for row in np.asarray(result.label_ids)]
        heard = [self._text(row) for row in np.asarray(result.predictions)]
        return {"wer": wer(said, heard), "wer_written": float(jiwer.wer(said, heard))}

    def _text(self, row: np.ndarray) -> str:
        return self.spelling.text(int(value) for value in row if value != IGNORED)
