"""Gradient checkpointing for a model that stays in eval mode (Chen et al. 2016, arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from rbalign.errors import UsageError


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Forward passes in the block keep each layer's input only; use no cache in them, a layer that runs twice would
    fill it twice.

    transformers does this in training mode alone, so the layers say that they train. What is inside of them does not
    hear of it: there is no dropout. UsageError for a model whose layers cannot.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UsageError(
            f"{type(model).__name__} has no layers that gradient checkpointing knows",
            "set [align] gradient_checkpointing = false and a smaller micro_batch",
        )
    model.activation_checkpointing_enable({"use_reentrant": False})
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
