"""Products with weights that stay: packed once by oneDNN, where torch has it, for the layout that its kernels read.

torch's own float32 products go through MKL, which is slow on processors that are not Intel's: on an AMD EPYC (Zen 5) 50
to 65 GFLOP/s a thread from 32 to 1,000 rows, oneDNN's 130 to 220. Packing 134 M weights takes about 0.2 s.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 64
"""Rows for which a packed layout is chosen: it serves from one row to a thousand, within a tenth of its best."""


def packed(weight: Tensor) -> Tensor:
    """A weight (out, in) for `product`: a copy that oneDNN laid out; the weight itself where it does not apply."""
    there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    applies = there and weight.device.type == "cpu" and weight.dtype == torch.float32
    if not applies:
        return weight
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
    return laid_out


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., in) times a `packed` weight (out, in): (..., out). No gradient flows."""
    if not weight.is_mkldnn:
        return F.linear(x, weight)
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return made
