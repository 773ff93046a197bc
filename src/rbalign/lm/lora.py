"""The language model as it was before LoRA: text teacher, reference, and reader of what is heard."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def lora_off(model: Any) -> Iterator[None]:
    """The untouched model for as long as the block runs, whether peft wraps it or has only put its layers in.

    Layers that are off already stay off.
    """
    peft = sys.modules.get("peft.tuners.tuners_utils")  # not imported: no layer can be there
    on = [m for m in model.modules() if peft and isinstance(m, peft.BaseTunerLayer) and not m.disable_adapters]
    for layer in on:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in on:
            layer.enable_adapters(True)
