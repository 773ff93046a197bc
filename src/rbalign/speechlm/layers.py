"""What adapters are made of: frames joined, and transformer layers that look both ways."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rbalign.speechlm.encoder import EncoderStates, valid_frames

ROTARY_BASE = 10_000.0


def stack_frames(states: EncoderStates, stack: int) -> tuple[Tensor, Tensor]:
    """Join `stack` neighbouring frames: (B,F',D) -> (B,T,stack*D), lengths (B,). A short last group is zero-padded."""
    hidden, (batch, frames, width) = states.hidden, states.hidden.shape
    hidden = F.pad(hidden, (0, 0, 0, -frames % stack))
    return hidden.reshape(batch, -1, stack * width), (states.lengths + stack - 1) // stack


def rotate(x: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) on (B,H,T,d): relative, so that 30 s work after training on 2 to 12 s."""
    half = x.shape[-1] // 2
    speeds = ROTARY_BASE ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * speeds
    sine, cosine = angles.sin().to(x.dtype), angles.cos().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class AdapterLayer(nn.Module):
    """A pre-norm transformer layer that looks both ways: attention with rotary positions, GELU MLP of 4x width."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x (B,T,W); mask (B,1,T,T) bool, true where a query may look."""
        batch, frames, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, frames, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, attn_mask=mask)
        mixed = self.out(mixed.transpose(1, 2).reshape(batch, frames, width))
        x = x + F.dropout(mixed, self.dropout, self.training)
        changed = self.down(F.gelu(self.up(self.mlp_norm(x))))
        return x + F.dropout(changed, self.dropout, self.training)


def attention_mask(lengths: Tensor, frames: int) -> Tensor | None:
    """(B,1,T,T) bool, true where a frame may look; None where no clip of the batch is padded."""
    keep = valid_frames(lengths, frames)
    return None if bool(keep.all()) else keep[:, None, None, :].expand(-1, 1, frames, -1)
