"""What transformers' loggers (TensorBoard, Weights & Biases, ...) get to hear of an update."""

from __future__ import annotations

import pytest
from aligning import tiny_items, tiny_policy
from test_align_trainer import ByLength, config
from transformers import TrainerCallback

from rbalign.rundir.journal import read_rows
from rbalign.train.diagnostics import scalars
from rbalign.train.trainer import AlignTrainer


class Recorder(TrainerCallback):
    """A logger that keeps what it is told."""

    def __init__(self):
        self.told = []

    def on_log(self, args, state, control, logs=None, **more):
        self.told.append((state.global_step, dict(logs)))


def test_loggers_hear_every_number_of_an_update_and_of_validation(tmp_path):
    policy, recorder = tiny_policy(), Recorder()
    items = tiny_items(policy)
    chosen = config(select_by="validation")
    made = AlignTrainer(policy, "grpo", chosen, items, tmp_path, seed=3, scorer=ByLength(), validation=items[:2])
    made.add_callback(recorder)
    made.fit()
    updates = {step: logs for step, logs in recorder.told if "grad_norm" in logs}
    for row in read_rows(tmp_path / "metrics.jsonl"):
        told = updates[row["update"]]
        for name in ("reward", "operations", "grpo_loss"):
            assert told[name] == pytest.approx(row[name]), name
    told = {step: logs["eval_nll"] for step, logs in recorder.told if "eval_nll" in logs}
    assert told == {row["update"]: pytest.approx(row["nll"]) for row in read_rows(tmp_path / "validation.jsonl")}
    assert told


def test_what_is_no_number_is_not_drawn():
    row = {
        "update": 3,
        "arm": "sft",
        "loss": 1,
        "kl": float("nan"),
        "seconds": {"step": 1.0},
        "done": True,
        "margin": None,
    }
    assert scalars(row) == {"loss": 1.0}
