"""Float32 products by oneDNN, which torch holds and uses for half precision alone: its float32 goes through MKL.

MKL is slow on processors that are not Intel's. On an AMD EPYC (Zen 5), a thread, weights of SmolLM2-135M: `F.linear` 90
to 109 GFLOP/s from 64 to 2,000 rows, oneDNN on the same tensors 174 to 240, on weights it packed before 206 to 252. On
Intel's processors it is not measured, and used: both libraries are Intel's own there. ARM is left to torch's choice.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROWS = 64
"""Rows for which a packed layout is chosen: it serves from one row to a thousand, within a tenth of its best."""


def packed(weight: Tensor) -> Tensor:
    """A weight (out, in) for `product`: a copy that oneDNN laid out; the weight itself where it does not apply."""
    if not _applies(weight):
        return weight
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
    return laid_out


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times a weight (out, in), `packed` or not, plus bias (out,): (..., out). No gradient flows."""
    if not (weight.is_mkldnn or _applies(weight)):
        return F.linear(x, weight, bias)
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return made


@cache
def available() -> bool:
    """Whether this is x86 and torch has oneDNN."""
    return platform.machine() in {"x86_64", "AMD64"} and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def _applies(weight: Tensor) -> bool:
    """Not to parameters that a launcher shares out: their class is another."""
    plain = type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu" and weight.dtype == torch.float32
    return plain and available()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, with gradients: x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    if torch.is_autocast_enabled(x.device.type) or not _applies(weight):
        return F.linear(x, weight, bias)
    made: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return made


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


def by_products(model: nn.Module) -> None:
    """Let the plain linear layers of a model multiply by `linear`, in place: names and weights stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


class _Product(torch.autograd.Function):
    """y = x W^T + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if to_x else None,
            product(rows.t(), x.flatten(0, -2).t()) if to_weight else None,
            rows.sum(0) if to_bias else None,
        )
