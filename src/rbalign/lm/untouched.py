"""The language model as it was before training: text teacher, reference, and reader of what is heard."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

START = "_rba_start"
"""Attribute of a language model whose own weights train: them, and frozen copies of them."""


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """The untouched model for as long as the block runs: LoRA off, whether peft wraps it or has only put its layers in,
    and weights that train themselves at their start.

    May be nested: layers that are off already stay off, weights at their start stay there.
    """
    peft = sys.modules.get("peft.tuners.tuners_utils")  # not imported: no layer can be there
    on = [m for m in model.modules() if peft and isinstance(m, peft.BaseTunerLayer) and not m.disable_adapters]
    moved = [(parameter, parameter.data, start) for parameter, start in starts(model).values()]
    for layer in on:
        layer.enable_adapters(False)
    for parameter, _, start in moved:
        parameter.data = start
    try:
        yield
    finally:
        for parameter, current, _ in moved:
            parameter.data = current
        for layer in on:
            layer.enable_adapters(True)


def train_whole(model: Any) -> None:
    """Let the decoder's weights train, and keep a frozen copy of them, the start. Embeddings and output layer stay:
    what was heard lies in their space, and is heard once."""
    tables = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    named = model.get_decoder().named_parameters()
    kept = {name: (value.requires_grad_(), value.detach().clone()) for name, value in named if id(value) not in tables}
    setattr(model, START, kept)


def starts(model: Any) -> Mapping[str, tuple[nn.Parameter, Tensor]]:
    """Weights that train themselves and the copies of their start, by their names in the decoder; empty under LoRA."""
    kept: Mapping[str, tuple[nn.Parameter, Tensor]] = getattr(model, START, {})
    return kept


def forget_start(model: Any) -> None:
    """What was trained is the model from now on."""
    if START in vars(model):
        delattr(model, START)
