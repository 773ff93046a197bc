"""From encoder frames to positions in the LLM's input space: CTC over its vocabulary, or a frame-stacking MLP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rbalign.speechlm.configuration import RbaSpeechConfig
from rbalign.speechlm.ctc import Segment, segments
from rbalign.speechlm.encoder import EncoderStates, valid_frames
from rbalign.speechlm.letters import LONGEST, letter_rows

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


@dataclass(frozen=True)
class CtcFrames:
    """What the CTC adapter says of each frame: `hidden` (B,T,D_llm) scaled so that hidden.table is a logit,
    `blank` (B,T) logits, `lengths` (B,)."""

    hidden: Tensor
    blank: Tensor
    lengths: Tensor


class CtcAdapter(nn.Module):
    """LegoSLM (arXiv 2505.11352): posteriors over the LLM's own tokens, then weighted sums of its embeddings.

    The output layer is the LLM's frozen embedding matrix, centred (its rows share a large mean) and of unit norm,
    times a learned scale; beside it, if `ctc_letters` asks for them, stand rows of how tokens are written. Frames
    where blank wins vanish: the LLM sees about one position for each spoken token.
    """

    ctc_token_ids: Tensor
    ctc_spelling: Tensor

    def __init__(self, config: RbaSpeechConfig) -> None:
        super().__init__()
        width, text_width = config.adapter_width, config.text_config.hidden_size
        size = config.ctc_vocab_size or config.text_config.vocab_size
        self.stack = config.adapter_stack
        self.blank_threshold = config.blank_threshold
        self.dropout = config.adapter_dropout
        self.inputs = nn.Linear(config.adapter_stack * config.audio_config.d_model, width)
        self.layers = nn.ModuleList(
            AdapterLayer(width, config.adapter_heads, config.adapter_dropout) for _ in range(config.adapter_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, text_width)
        self.blank = nn.Linear(width, 1)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("ctc_token_ids", torch.arange(size))
        self.letters = config.ctc_letters
        if self.letters:
            self.spell = nn.Linear(width, self.letters)
            self.register_buffer("ctc_spelling", torch.zeros(size, 1 + LONGEST, dtype=torch.uint8))
        self._tables: tuple[object, tuple[Tensor, Tensor]] | None = None

    def tables(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """For the tokens that can be spoken: the frozen output rows (V,D+letters) and the LLM's own rows (V,D).

        Cached until the embedding (V_llm,D) or the token list changes: 5 ms a call otherwise.
        """
        ids = self.ctc_token_ids
        state = (embedding.data_ptr(), embedding._version, ids.data_ptr(), ids._version, embedding.dtype)
        if self._tables is None or self._tables[0] != state:
            with torch.no_grad():
                rows = embedding.detach()[ids]
                table = F.normalize(rows.float() - rows.float().mean(0), dim=-1).to(rows.dtype)
                if self.letters:
                    spelling = letter_rows(self.ctc_spelling, self.letters).to(table)
                    table = torch.cat([table, spelling], dim=1)
                self._tables = (state, (table, rows))
        return self._tables[1]

    def frames(self, states: EncoderStates) -> CtcFrames:
        """Encoder frames (B,F',D) -> what each stacked frame says."""
        x, lengths = stack_frames(states, self.stack)
        x = F.dropout(self.inputs(x), self.dropout, self.training)
        keep = valid_frames(lengths, x.shape[1])
        mask = None if bool(keep.all()) else keep[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        hidden = self.project(x) * self.log_scale.exp()
        if self.letters:
            hidden = torch.cat([hidden, self.spell(x)], dim=-1)
        return CtcFrames(hidden, self.blank(x).squeeze(-1), lengths)

    def read(self, frames: CtcFrames, index: int, table: Tensor) -> tuple[Tensor, Tensor, list[Segment]]:
        """Posteriors of clip `index`: P(token | not blank) (T,V), P(blank) (T,), its greedy segments."""
        length = int(frames.lengths[index])
        logits = (frames.hidden[index, :length].to(table.dtype) @ table.T).float()
        normaliser = logits.logsumexp(-1)
        blank = torch.sigmoid(frames.blank[index, :length].float() - normaliser)
        found = segments(logits.detach().argmax(-1), blank.detach(), self.blank_threshold)
        return (logits - normaliser[:, None]).exp(), blank, found

    def forward(self, states: EncoderStates, embedding: Tensor) -> list[Tensor]:
        """Audio positions of each clip: list of (N_i, D_llm), one for each greedy token, N_i >= 1.

        A position is sum_v p(v) E_v over the speakable tokens, p being the segment's mean posterior, its frames
        weighted by how little they are blank.
        """
        frames, (table, spoken) = self.frames(states), self.tables(embedding)
        clips = []
        for index in range(len(frames.hidden)):
            tokens, blank, found = self.read(frames, index, table)
            pooled = []
            for segment in found:
                rows = slice(segment.start, segment.end)
                weights = 1.0 - blank[rows] + 1e-6
                pooled.append((weights / weights.sum()) @ tokens[rows])
            clips.append(torch.stack(pooled).to(spoken.dtype) @ spoken)
        return clips

    @torch.no_grad()
    def greedy(self, frames: CtcFrames, table: Tensor) -> list[list[int]]:
        """Greedy CTC: rows of the table for each clip."""
        return [[segment.token for segment in self.read(frames, i, table)[2]] for i in range(len(frames.hidden))]

    @torch.no_grad()
    def transcribe(self, states: EncoderStates, embedding: Tensor) -> list[list[int]]:
        """Greedy CTC: LLM token ids of each clip."""
        ids, (table, _) = self.ctc_token_ids.tolist(), self.tables(embedding)
        return [[ids[row] for row in rows] for rows in self.greedy(self.frames(states), table)]


class MlpAdapter(nn.Module):
    """Frame stacking and SwiGLU (Ultravox): one position for every `adapter_stack` frames."""

    def __init__(self, config: RbaSpeechConfig) -> None:
        super().__init__()
        width, text_width = config.adapter_width, config.text_config.hidden_size
        self.stack = config.adapter_stack
        self.inputs_norm = nn.RMSNorm(config.adapter_stack * config.audio_config.d_model)
        self.up = nn.Linear(config.adapter_stack * config.audio_config.d_model, 2 * width)
        self.norm = nn.RMSNorm(width)
        self.project = nn.Linear(width, text_width)
        self.output_norm = nn.RMSNorm(text_width)

    def forward(self, states: EncoderStates, embedding: Tensor) -> list[Tensor]:
        """Audio positions of each clip: list of (ceil(F_i/stack), D_llm), in the scale of the LLM's embeddings."""
        x, lengths = stack_frames(states, self.stack)
        value, gate = self.up(self.inputs_norm(x)).chunk(2, dim=-1)
        x = self.output_norm(self.project(self.norm(F.silu(gate) * value)))
        x = x * embedding.detach().float().pow(2).mean().sqrt().to(x.dtype)
        return [x[index, : int(length)] for index, length in enumerate(lengths)]
