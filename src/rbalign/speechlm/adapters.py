"""From encoder frames to positions in the LLM's input space: CTC over its vocabulary, or a frame-stacking MLP."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rbalign.lm.products import linear
from rbalign.speechlm.configuration import RbaSpeechConfig
from rbalign.speechlm.ctc import segments
from rbalign.speechlm.encoder import EncoderStates
from rbalign.speechlm.fusion import FLOOR, Fusion, Slots
from rbalign.speechlm.layers import AdapterLayer, attention_mask, stack_frames
from rbalign.speechlm.letters import LONGEST, letter_rows
from rbalign.speechlm.speller import Speller, Spelt

LETTERS_ALONE = 0.5
"""Share of training clips whose tokens are told by their letters alone. Otherwise the rows of meaning, which can be
learned by heart, leave the letters nothing to do: 96 % of words never practised came out wrong from letters alone."""


@dataclass(frozen=True)
class CtcFrames:
    """What the CTC adapter says of each frame: `hidden` (B,T,D_llm) scaled so that hidden.table is a logit,
    `blank` (B,T) logits, `lengths` (B,); `spelt` if there is a speller."""

    hidden: Tensor
    blank: Tensor
    lengths: Tensor
    spelt: Spelt | None = None


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
        self.speller = Speller(config) if config.ctc_speller_layers else None
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
        spelt = self.speller(states) if self.speller else None
        if spelt is not None:
            x = x + spelt.told
        mask = attention_mask(lengths, x.shape[1])
        for layer in self.layers:
            x = layer(x, mask)
        x = self.norm(x)
        hidden = self.project(x) * self.log_scale.exp()
        if self.letters:
            if self.training and spelt is not None:
                hidden = hidden * (torch.rand(len(x), 1, 1, device=x.device) >= LETTERS_ALONE)
            hidden = torch.cat([hidden, self.spell(x)], dim=-1)
        return CtcFrames(hidden, self.blank(x).squeeze(-1), lengths, spelt)

    def slots(self, frames: CtcFrames, table: Tensor) -> list[Slots]:
        """Where each clip may say a token: one slot for each token of its greedy path.

        A slot's distribution is the mean over its frames, each weighted by how little it is blank.
        """
        clips = []
        for index, length in enumerate(frames.lengths.tolist()):
            logits = linear(frames.hidden[index, :length].to(table.dtype), table).float()
            normaliser = logits.logsumexp(-1)
            blank = torch.sigmoid(frames.blank[index, :length].float() - normaliser)
            tokens = (logits - normaliser[:, None]).exp()
            pooled, said, empty = [], [], []
            for segment in segments(logits.detach().argmax(-1), blank.detach(), self.blank_threshold):
                own = blank[segment.start : segment.end]
                weights = 1.0 - own + 1e-6
                pooled.append((weights / weights.sum()) @ tokens[segment.start : segment.end])
                said.append((1.0 - own.min()).clamp_min(FLOOR).log())
                empty.append(own.clamp_min(FLOOR).log().sum())
            clips.append(Slots(torch.stack(pooled), torch.stack(said), torch.stack(empty)))
        return clips

    def forward(
        self, states: EncoderStates, embedding: Tensor, fusion: Fusion | None = None, paths: list[Tensor] | None = None
    ) -> list[Tensor]:
        """Audio positions of each clip: list of (N_i, D_llm), N_i >= 1: sum_v p(v) E_v over the speakable tokens.

        Without `fusion` p is what each slot says; with it, what the language model makes of that along the best path
        (`paths`, if they are known).
        """
        table, spoken = self.tables(embedding)
        slots = self.slots(self.frames(states), table)
        tokens = fusion.fused(slots, paths or fusion.best_paths(slots)) if fusion else [clip.tokens for clip in slots]
        return [linear(own.to(spoken.dtype), spoken.T) for own in tokens]

    @torch.no_grad()
    def hear(self, states: EncoderStates, embedding: Tensor, fusion: Fusion | None = None) -> list[Tensor]:
        """The path (N_i, 2) through each clip, slot and row of the table: greedy CTC, or the best of `fusion`."""
        slots = self.slots(self.frames(states), self.tables(embedding)[0])
        return fusion.best_paths(slots) if fusion else [clip.greedy() for clip in slots]

    @torch.no_grad()
    def greedy(self, frames: CtcFrames, table: Tensor) -> list[list[int]]:
        """Greedy CTC: rows of the table for each clip."""
        return [clip.greedy()[:, 1].tolist() for clip in self.slots(frames, table)]


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
