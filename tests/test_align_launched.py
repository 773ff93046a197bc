"""What launchers change: DeepSpeed's engine steps inside the backward pass, FSDP shares weights out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from aligning import tiny_items, tiny_policy
from test_align_trainer import ByLength, config

from rbalign.errors import RunError, UsageError
from rbalign.train import launched
from rbalign.train.batches import MicroBatch
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


@pytest.mark.parametrize("arm", ["sft", "everything"])
def test_an_update_of_several_pieces_is_one_step_of_the_engine(tmp_path, monkeypatch, arm):
    rows = []
    for engine in (False, True):
        policy = tiny_policy()
        items = tiny_items(policy)[:2]
        scorer = ByLength() if arm == "everything" else None
        made = AlignTrainer(policy, arm, config(micro_batch=1), items, tmp_path, seed=0, scorer=scorer)
        if engine:
            engine = driven(made, monkeypatch)
        made.training_step(policy, items)
        rows.append({name: made._row[name] for name in ("loss", f"{next(iter(made.mixture))}_loss")})
        if engine:
            assert engine.boundaries == [False] * (3 if arm == "sft" else 1) + [True]  # a group stays together
            assert engine.steps == 1
            assert all(one.grad is None for one in policy.trainable().values())
            norm = launched.gradient_norm(made.accelerator, [])
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)
    gradients = {name: value for name, value in made._row.items() if name.startswith("gradient_norm")}
    assert gradients == ({"gradient_norm_ce": norm} if arm == "sft" else {})  # terms share the engine's backward pass
    assert norm == pytest.approx(float(engine.norm))
    assert norm > 0


def test_the_engine_never_steps_on_a_loss_that_is_no_number(tmp_path, monkeypatch):
    policy = tiny_policy()
    items = tiny_items(policy)[:2]
    made = AlignTrainer(policy, "sft", config(micro_batch=1), items, tmp_path, seed=0)
    engine = driven(made, monkeypatch)
    with torch.no_grad():
        next(value for name, value in policy.trainable().items() if "lora_B" in name).fill_(float("nan"))
    with pytest.raises(RunError, match=r"sft at update 1 has loss nan.*no step was taken"):
        made.training_step(policy, items)
    assert engine.steps == 0
    assert True not in engine.boundaries
    for loss, norm in ((float("nan"), 0.0), (1.0, float("inf"))):
        with pytest.raises(RunError, match=r"sft at update 3 has loss .*no step was taken"):
            launched.check_finite("sft", 3, loss, norm)


def test_deepspeed_gets_no_scalars_and_keeps_no_frozen_weights():
    policy = tiny_policy()
    before = policy.speech.adapter.log_scale.clone()
    lifted = launched.lift(policy)
    assert [one.shape for one in lifted] == [(1,)]
    assert all(one.dim() for one in policy.parameters())
    kept = []
    engine = SimpleNamespace(save_checkpoint=lambda folder, **named: kept.append((folder, named)))
    launched.taken(engine, lifted)
    assert torch.equal(policy.speech.adapter.log_scale, before)
    engine.save_checkpoint("here")
    assert kept == [("here", {"exclude_frozen_parameters": True})]


def test_every_process_takes_as_many_pieces_as_the_one_that_has_most(monkeypatch):
    policy = tiny_policy()
    item = tiny_items(policy)[0]
    monkeypatch.setattr(launched, "gather_object", lambda mine: [*mine, 3])
    own = MicroBatch([item.views[1]], [[item.answer]], [False], [1.0], answers=[0], items=[item])
    pieces = launched.in_step([own], item)
    assert pieces[0] is own
    assert [len(piece.views) for piece in pieces] == [1, 1, 1]
    assert [piece.answers for piece in pieces] == [[0], [], []]
    assert len(launched.in_step([own] * 5, item)) == 5


@pytest.mark.parametrize(
    ("arm", "changes", "checkpointing", "said"),
    [
        ("grpo", {}, True, r"grpo samples, .* whole weights.*ddp\.yaml"),
        ("kd", {}, True, r"kd samples, or asks teacher or reference"),
        ("everything", {}, True, "everything samples"),
        ("sft", {"full_finetuning": True, "lora": {}}, True, "leave out .*full_finetuning"),
        ("sft", {"train_adapter": True}, True, "leave out .*train_adapter"),
        ("sft", {"answers_every": 2}, True, "leave out .*answers_every"),
        ("sft", {}, False, "gradient_checkpointing = true"),
    ],
)
def test_what_fsdp_cannot_train_is_refused(arm, changes, checkpointing, said):
    policy, settings = tiny_policy(), config(**changes)
    policy.gradient_checkpointing = checkpointing
    with pytest.raises(UsageError, match=said):
        launched.check_fsdp(policy, arm, settings, settings.mixture(arm))


def test_fsdp_trains_sft_and_shards_the_language_model_alone():
    policy, settings, plugin = tiny_policy(), config(), SimpleNamespace()
    policy.gradient_checkpointing = True
    launched.check_fsdp(policy, "sft", settings, settings.mixture("sft"))
    launched.share_out(plugin, policy)
    assert plugin.transformer_cls_names_to_wrap == ["LlamaDecoderLayer"]
    left = {id(one) for module in plugin.ignored_modules for one in module.parameters()}
    names = {name for name, one in policy.named_parameters() if id(one) not in left}
    assert names == {name for name, _ in policy.named_parameters() if name.startswith("speech.language_model.")}
