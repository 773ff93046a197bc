"""What launchers change in an update: DeepSpeed steps inside the backward pass, FSDP2 keeps parts of every weight."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from rbalign.config.sections import AlignConfig
from rbalign.errors import RunError, UsageError
from rbalign.speechlm.base import Policy
from rbalign.train.batches import MicroBatch
from rbalign.train.rollout import Item


def check_fsdp(policy: Policy, arm: str, config: AlignConfig, mixture: Collection[str]) -> None:
    """UsageError for what FSDP cannot train right: weights are whole inside the policy's own forward pass alone."""
    whole_weights = "take launchers/ddp.yaml or deepspeed_zero2.yaml"
    if set(mixture) != {"ce"}:
        raise UsageError(
            f"{arm} samples, or asks teacher or reference, which needs whole weights; FSDP keeps a part of them in "
            "each process",
            f"{whole_weights}; FSDP trains sft",
        )
    if config.full_finetuning or config.train_adapter or config.answers_every:
        raise UsageError(
            "FSDP trains LoRA alone, and shows no answers in between",
            f"leave out [align] full_finetuning, train_adapter and answers_every, or {whole_weights}",
        )
    if not policy.gradient_checkpointing:
        # A shared prefix, run once, reaches the loss by its cache and not by what its layers return: FSDP, which waits
        # for a gradient of that, would have let go of their weights. Checkpointing gives every row a prefix of its own.
        raise UsageError("FSDP needs gradient checkpointing", "set [align] gradient_checkpointing = true")
    if any(isinstance(module, FSDPModule) for module in policy.modules()):
        raise UsageError("FSDP trains one arm a launch", "start again, once for each arm: finished ones are kept")


def share_out(plugin: Any, policy: Policy) -> None:
    """FSDP shards the decoder's layers and what else the language model has. The rest of the policy is frozen and stays
    whole: it hears outside of forward passes, too, and the embedded adapter's scale has no dimension to shard."""
    plugin.transformer_cls_names_to_wrap = sorted(policy.lm._no_split_modules or ())
    shared = {id(parameter) for parameter in policy.lm.parameters()}
    plugin.ignored_modules = [module for module in policy.modules() if shared.isdisjoint(map(id, module.parameters()))]


def lift(policy: Policy) -> list[nn.Parameter]:
    """Give parameters without dimensions one, and say which those are: DeepSpeed 0.19 cannot broadcast them."""
    scalars = [parameter for parameter in policy.parameters() if not parameter.dim()]
    for parameter in scalars:
        parameter.data = parameter.data.reshape(1)
    return scalars


def taken(engine: Any, lifted: Sequence[nn.Parameter]) -> None:
    """After DeepSpeed has taken the policy: its shapes are its own again; frozen weights are in no checkpoint."""
    for parameter in lifted:
        parameter.data = parameter.data.reshape(())
    engine.save_checkpoint = partial(engine.save_checkpoint, exclude_frozen_parameters=True)


def in_step(pieces: Sequence[MicroBatch], item: Item) -> list[MicroBatch]:
    """As many pieces as the process that has most: each forward pass of FSDP and each backward pass of both is one of
    all processes. A piece that is added has no term, and is about `item`."""
    most = max(gather_object([len(pieces)]))
    idle = MicroBatch([item.views[0]], [[item.answer]], [False], [1.0])
    return [*pieces, *[idle] * (most - len(pieces))]


def check_finite(arm: str, update: int, loss: float, norm: float = 0.0) -> None:
    """RunError, which ends the run, for a loss or gradient that is no number."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise RunError(
            f"{arm} at update {update} has loss {loss} and gradient norm {norm}; no step was taken",
            "lower [align.args] learning_rate or beta; the last checkpoint is untouched",
        )


def backward(accelerator: Any, loss: Tensor, last: bool) -> None:
    """Add a piece's gradients. DeepSpeed's engine steps at once in what it takes for an update's last piece, and has no
    `no_sync` that would say which that is; everywhere else saying so changes nothing."""
    accelerator.sync_gradients = last
    accelerator.backward(loss)


def gradient_norm(accelerator: Any, gradients: Sequence[Tensor]) -> float:
    """Of the whole update; under DeepSpeed, which has stepped and let its gradients go, as its engine had it."""
    engine = getattr(accelerator, "deepspeed_engine_wrapped", None)
    if engine is not None:
        return float(engine.get_global_grad_norm())
    return float(torch.nn.utils.get_total_norm(gradients))


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors to be saved, gathered where they are shared out: every process must ask."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().contiguous()
        for name, value in tensors.items()
    }


def make_whole(policy: Policy) -> None:
    """Every process gets the trained policy's own tensors back; FSDP's hooks stay, so it cannot train again."""
    for module in policy.modules():
        for name, value in module.named_parameters(recurse=False):
            if isinstance(value, DTensor):
                setattr(module, name, nn.Parameter(value.full_tensor(), value.requires_grad))


def summed(rows: list[dict[str, float]]) -> dict[str, float]:
    """Sums by name over rows and ranks."""
    total: dict[str, float] = {}
    for row in gather_object(rows):
        for name, value in row.items():
            total[name] = total.get(name, 0.0) + value
    return total


def means(values: dict[str, list[float]]) -> dict[str, float | None]:
    """Means by name over values and ranks; None where there is none."""
    every: dict[str, list[float]] = {}
    for own in gather_object([values]):
        for name, numbers in own.items():
            every.setdefault(name, []).extend(numbers)
    return {name: sum(numbers) / len(numbers) if numbers else None for name, numbers in sorted(every.items())}
