"""What launchers change: DeepSpeed's engine steps inside the backward pass, FSDP shares weights out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from aligning import tiny_items, tiny_policy
from test_align_trainer import config

from rbalign.errors import RunError, UsageError
from rbalign.train import launched
from rbalign.train.trainer import AlignTrainer


class Engine:
    """As accelerate drives DeepSpeed's: adds up gradients, steps and clears them when it is told of a boundary."""

    def __init__(self, weights):
        self.weights, self.boundaries, self.steps, self.norm = weights, [], 0, 0.0

    def set_gradient_accumulation_boundary(self, is_boundary):
        self.boundaries.append(is_boundary)

    def backward(self, loss):
        loss.backward()

    def step(self):
        self.steps += 1
        self.norm = torch.nn.utils.get_total_norm([one.grad for one in self.weights if one.grad is not None])
        for one in self.weights:
            one.grad = None

    def get_global_grad_norm(self):
        return self.norm


def driven(trainer, monkeypatch):
    """The trainer's accelerator under the fake engine."""
    engine = Engine(list(trainer.policy.trainable().values()))
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType.DEEPSPEED))
    trainer.accelerator.deepspeed_engine_wrapped = DeepSpeedEngineWrapper(engine)
    return engine


def test_an_engine_steps_once_an_update_whatever_the_number_of_pieces(tmp_path, monkeypatch):
    policy = tiny_policy()
    made = AlignTrainer(policy, "sft", config(micro_batch=1), tiny_items(policy), tmp_path, seed=0)
    engine = driven(made, monkeypatch)
    for last in (False, False, True, False, True):
        loss = sum(one.square().sum() for one in policy.trainable().values())
        launched.backward(made.accelerator, loss, last)
    assert engine.boundaries == [False, False, True, False, True]
    assert engine.steps == 2
    assert launched.gradient_norm(made.accelerator, []) == float(engine.norm) > 0
    assert all(one.grad is None for one in policy.trainable().values())


def test_a_loss_that_is_no_number_is_refused_before_it_is_known_where_the_engine_steps():
    launched.check_finite("sft", 3, 1.0)
    for loss, norm in ((float("nan"), 0.0), (1.0, float("inf"))):
        with pytest.raises(RunError, match=r"sft at update 3 has loss .*no step was taken"):
            launched.check_finite("sft", 3, loss, norm)


def test_arms_that_sample_are_refused_where_weights_are_shared_out():
    launched.check_sampling(True, "sft", samples=False)
    launched.check_sampling(False, "grpo", samples=True)
    with pytest.raises(UsageError, match=r"grpo samples, which needs whole weights.*ddp\.yaml"):
        launched.check_sampling(True, "grpo", samples=True)


def test_shared_out_tensors_are_saved_whole():
    parts = SimpleNamespace(full_tensor=lambda: torch.arange(4.0))
    found = launched.whole({"shared": parts, "plain": torch.ones(2, requires_grad=True)})
    assert found["shared"].tolist() == [0, 1, 2, 3]
    assert not found["plain"].requires_grad
