"""How tokens are written, as vectors: with them a connector can hear a word that it has seldom or never met.

An output row that is the LLM's embedding says what a token means, and meaning has no sound: "France" has to be met to
be known. Letters do have one. Each feature of a token's spelling (a letter at a place from the start, from the end, a
pair of letters) has a fixed random sign vector; a token's row is their sum, of unit length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rbalign.keys import Key

LONGEST = 16
"""Letters kept of a token."""
_KINDS = 28  # padding, a to z, anything else
_FROM_START, _FROM_END = 7, 5
"""Places told apart; beyond them letters count as one place."""
_BLOCKS = np.cumsum([0, _KINDS * _FROM_START, _KINDS * _FROM_END, _KINDS * _KINDS, 4])


def spelled(pieces: Sequence[str]) -> Tensor:
    """Decoded tokens -> (V, 1 + LONGEST) uint8: 1 for a space before it plus 2 for a capital, then its letters."""
    codes = np.zeros((len(pieces), 1 + LONGEST), np.uint8)
    for row, piece in enumerate(pieces):
        bare = piece.strip(" ")
        codes[row, 0] = piece.startswith(" ") + 2 * bare[:1].isupper()
        for place, letter in enumerate(bare.lower()[:LONGEST], start=1):
            codes[row, place] = ord(letter) - 96 if "a" <= letter <= "z" else _KINDS - 1
    return torch.from_numpy(codes)


def letter_rows(codes: Tensor, size: int) -> Tensor:
    """What `spelled` gave -> (V, size) float32 rows of unit length; the same on every machine."""
    letters = codes[:, 1:].long().cpu()
    there = letters > 0
    length = there.sum(1, keepdim=True)
    place = torch.arange(LONGEST).expand_as(letters)
    following = torch.cat([letters[:, 1:], torch.zeros_like(letters[:, :1])], dim=1)
    found = [
        _BLOCKS[0] + letters * _FROM_START + place.clamp(max=_FROM_START - 1),
        _BLOCKS[1] + letters * _FROM_END + (length - 1 - place).clamp(0, _FROM_END - 1),
        _BLOCKS[2] + letters * _KINDS + following,
    ]
    features = torch.zeros(len(codes), int(_BLOCKS[-1]))
    for columns in found:
        features.scatter_add_(1, columns, there.float())
    features.scatter_(1, int(_BLOCKS[3]) + codes[:, :1].long().cpu(), 1.0)
    signs = Key(0, "letters").generator().integers(0, 2, (int(_BLOCKS[-1]), size)) * 2.0 - 1.0
    return torch.nn.functional.normalize(features @ torch.from_numpy(signs).float(), dim=-1)
