"""What a connector learns, as modules that a Trainer can hold: encoder and adapter, the LLM only by reference.

So a checkpoint holds 14 million parameters, not the LLM's, and the LLM gets neither optimiser state nor gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rbalign.lm.logprobs import completion_logprobs
from rbalign.lm.sampler import Prompts
from rbalign.speechlm.adapters import CtcAdapter
from rbalign.speechlm.ctc import ctc_loss
from rbalign.speechlm.modeling import IGNORED, RbaSpeechForConditionalGeneration
from rbalign.speechlm.speller import letters_of, spelling_loss


class ConnectTask(nn.Module):
    """Encoder and adapter of a speech LLM, whose LLM stays out of parameters and checkpoints."""

    def __init__(self, model: RbaSpeechForConditionalGeneration, train_encoder: bool) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.adapter = model.adapter
        self._speech = (model,)  # a tuple, so that the LLM is not registered as a part
        self.train_encoder = train_encoder
        self.let_encoder_train(True)
        model.language_model.requires_grad_(False)

    def let_encoder_train(self, now: bool) -> None:
        """Switch the encoder's gradients; a frozen encoder costs a third of a training one."""
        self.encoder.requires_grad_(now and self.train_encoder)
        self.encoder.embed_positions.requires_grad_(False)

    @property
    def speech(self) -> RbaSpeechForConditionalGeneration:
        """The whole speech LLM."""
        return self._speech[0]


class CtcTask(ConnectTask):
    """CTC on the LLM's tokens: summed negative log-likelihood over the batch's target tokens."""

    def forward(self, input_features: Tensor, feature_lengths: Tensor, labels: Tensor) -> dict[str, Any]:
        """labels (B,L) rows of the CTC table, padded with -100 -> `loss` (per token), `impossible` clips (count);
        in eval mode also `heard`: the greedy rows of each clip."""
        adapter = self.adapter
        assert isinstance(adapter, CtcAdapter)
        frames = adapter.frames(self.speech.encode_audio(input_features, feature_lengths))
        table, _ = adapter.tables(self.speech.get_input_embeddings().weight)
        targets = [row[row != IGNORED] for row in labels]
        result = ctc_loss(frames.hidden, frames.blank, frames.lengths, table, targets)
        loss = result.total / max(result.tokens, 1)
        if not self.training:
            return {"loss": loss, "impossible": result.impossible, "heard": adapter.greedy(frames, table)}
        if frames.spelt is not None:
            loss = loss + spelling_loss(frames.spelt, [letters_of(adapter.ctc_spelling[own]) for own in targets])
        return {"loss": loss, "impossible": result.impossible}


class TeachTask(ConnectTask):
    """Teacher forcing through the frozen LLM: the answer after the audio, or the words when asked to repeat them."""

    def __init__(
        self,
        model: RbaSpeechForConditionalGeneration,
        train_encoder: bool,
        frames_around_audio: list[tuple[list[int], list[int]]],
    ) -> None:
        """frames_around_audio[kind]: the ids before and after the audio for that kind of target."""
        super().__init__(model, train_encoder)
        self._around = [(torch.tensor(before), torch.tensor(after)) for before, after in frames_around_audio]

    def forward(
        self, input_features: Tensor, feature_lengths: Tensor, labels: Tensor, kinds: Tensor
    ) -> dict[str, Tensor]:
        """labels (B,L) LLM ids padded with -100, kinds (B,) which frame stands around -> `loss` per token."""
        audio = self.speech.adapt(self.speech.encode_audio(input_features, feature_lengths))
        rows = []
        for clip, kind in zip(audio, kinds.tolist(), strict=True):
            before, after = self._around[kind]
            rows.append(torch.cat([self.speech.embed(before), clip, self.speech.embed(after)]))
        completions = [row[row != IGNORED] for row in labels]
        logprobs, mask = completion_logprobs(self.speech.language_model, Prompts(rows), completions)
        return {"loss": -(logprobs * mask).sum() / mask.sum()}
