"""Letters by CTC at 25 Hz, before tokens at 12.5: how a word is written can be heard, even if it was never met.

Conditioning a coarse CTC on a finer one (Higuchi et al. 2022, arXiv 2110.04109): the fine one has 53 symbols, which
all occur in every minute of speech, so it needs no word to have been practised.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rbalign.speechlm.configuration import RbaSpeechConfig
from rbalign.speechlm.encoder import EncoderStates, valid_frames
from rbalign.speechlm.layers import AdapterLayer, attention_mask, stack_frames

STACK = 2
"""Encoder frames a speller frame: people say some 13 letters a second, and 12.5 Hz could not hold them."""
WIDTH, HEADS = 256, 4
ALPHABET = 26
SYMBOLS = 1 + 2 * ALPHABET
"""Blank, letters inside a token, letters at the start of a word."""


@dataclass(frozen=True)
class Spelt:
    """`letters` (B,2T,SYMBOLS) logits of `lengths` (B,) frames; `told` (B,T,W): what the adapter's frames learn."""

    letters: Tensor
    lengths: Tensor
    told: Tensor


class Speller(nn.Module):
    """Encoder frames -> letters, and what they tell the adapter; it starts silent."""

    def __init__(self, config: RbaSpeechConfig) -> None:
        super().__init__()
        self.share = config.adapter_stack // STACK
        self.inputs = nn.Linear(STACK * config.audio_config.d_model, WIDTH)
        self.layers = nn.ModuleList(
            AdapterLayer(WIDTH, HEADS, config.adapter_dropout) for _ in range(config.ctc_speller_layers)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.letters = nn.Linear(WIDTH, SYMBOLS)
        self.tell = nn.Linear(self.share * WIDTH, config.adapter_width)

    def forward(self, states: EncoderStates) -> Spelt:
        """Frames (B,F',D) -> what is spelt; T is the adapter's own number of frames."""
        x, lengths = stack_frames(states, STACK)
        x = self.inputs(x)
        mask = attention_mask(lengths, x.shape[1])
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x) * valid_frames(lengths, x.shape[1])[..., None]  # padding tells what it would alone: nothing
        wide = F.pad(x, (0, 0, 0, -x.shape[1] % self.share))
        return Spelt(self.letters(x), lengths, self.tell(wide.reshape(len(x), -1, self.share * WIDTH)))


def letters_of(codes: Tensor) -> Tensor:
    """Rows of `letters.spelled` of a clip's tokens (L, 1 + LONGEST) -> its letters as symbols (N,) int64.

    What is no letter is silent; the first letter after a space is another symbol than the same letter inside.
    """
    letters = codes[:, 1:].long()
    symbols = letters.clone()
    symbols[:, 0] += ALPHABET * (codes[:, 0].long() & 1)
    chosen: Tensor = symbols[(letters > 0) & (letters <= ALPHABET)]
    return chosen


def spelling_loss(spelt: Spelt, targets: list[Tensor]) -> Tensor:
    """CTC of the letters `targets` B x (N_i,), a letter; clips that are too short for theirs add nothing."""
    counts = torch.tensor([len(target) for target in targets])
    losses = F.ctc_loss(
        spelt.letters.float().log_softmax(-1).transpose(0, 1),
        nn.utils.rnn.pad_sequence(targets, batch_first=True),
        spelt.lengths,
        counts,
        reduction="none",
        zero_infinity=True,
    )
    return losses.sum() / counts.sum().clamp(min=1)
