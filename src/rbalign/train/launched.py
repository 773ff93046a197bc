"""What launchers change in an update: DeepSpeed steps inside the backward pass, FSDP2 keeps parts of every weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rbalign.errors import RunError, UsageError


def check_sampling(fsdp: bool, arm: str, samples: bool) -> None:
    """UsageError where an arm would sample, in this process, from weights that FSDP shares out."""
    if fsdp and samples:
        raise UsageError(
            f"{arm} samples, which needs whole weights; FSDP keeps a part of them in each process",
            "take launchers/ddp.yaml or deepspeed_zero2.yaml, or samples from a server: [align.rollout]",
        )


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
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().contiguous()
        for name, value in tensors.items()
    }
