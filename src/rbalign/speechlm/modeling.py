"""The speech LLM as a transformers model: `from_pretrained`, `generate`, PEFT and Trainer work as for any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from rbalign.errors import UsageError
from rbalign.speechlm.adapters import CtcAdapter, MlpAdapter
from rbalign.speechlm.configuration import AUDIO_TOKEN, RbaSpeechConfig
from rbalign.speechlm.encoder import EncoderStates, UnpaddedWhisperEncoder
from rbalign.speechlm.fusion import Fusion

if TYPE_CHECKING:
    from rbalign.lm.sampler import Prompts

IGNORED = -100


class RbaSpeechForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Whisper encoder + adapter + any causal LM.

    Give it `input_ids` with one "<|audio|>" for each clip; the model replaces that one id by as many positions as
    the adapter makes of the clip (the CTC adapter decides the number itself). `generate` returns new tokens only.
    """

    config_class = RbaSpeechConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ("WhisperEncoderLayer", "AdapterLayer")

    encoder: UnpaddedWhisperEncoder
    adapter: CtcAdapter | MlpAdapter
    language_model: Any

    def __init__(self, config: RbaSpeechConfig, language_model: PreTrainedModel | None = None) -> None:
        """Random encoder and adapter. `language_model` is taken as it is (no copy); None makes a random one."""
        if config.connector_only and language_model is None:
            raise UsageError(
                "this folder is a connector: encoder and adapter without an LLM",
                "attach it to one with rbalign.speechlm.from_parts(folder, language_model)",
            )
        super().__init__(config)
        self.encoder = UnpaddedWhisperEncoder(config.audio_config)
        self.adapter = CtcAdapter(config) if config.adapter_type == "ctc" else MlpAdapter(config)
        if language_model is None:
            self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()
        if language_model is not None:  # after post_init, which would draw new weights for it
            self.language_model = language_model
            self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)

    def get_input_embeddings(self) -> nn.Embedding:
        """The LLM's input embedding."""
        module: nn.Embedding = self.language_model.get_input_embeddings()
        return module

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the LLM's input embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The LLM's output layer."""
        module: nn.Module | None = self.language_model.get_output_embeddings()
        return module

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the LLM's output layer."""
        self.language_model.set_output_embeddings(value)

    def encode_audio(self, input_features: Tensor, feature_lengths: Tensor) -> EncoderStates:
        """Log-mel features (B,80,F) with valid lengths (B,) -> encoder frames (B,F',D), 50 a second."""
        states: EncoderStates = self.encoder(input_features.to(self.encoder.conv1.weight.dtype), feature_lengths)
        return states

    @property
    def fusion(self) -> Fusion | None:
        """The language model as one that reads along, if the configuration asks for it."""
        if self.config.fusion is None or not isinstance(self.adapter, CtcAdapter):
            return None
        return Fusion(self.language_model, self.adapter.ctc_token_ids, **self.config.fusion)

    def adapt(self, states: EncoderStates, paths: list[Tensor] | None = None) -> list[Tensor]:
        """Encoder frames -> audio positions in the LLM's input space, list of (N_i, D_llm), differentiable.

        `paths`: what `hear` made of the same frames, if that is known.
        """
        module = self.get_input_embeddings()
        if not isinstance(self.adapter, CtcAdapter):
            positions: list[Tensor] = self.adapter(states, module.weight)
            return positions
        clips: list[Tensor] = self.adapter(states, module.weight, self.fusion, paths)
        scale = getattr(module, "embed_scale", None)  # Gemma multiplies its embeddings on the way in
        return clips if scale is None else [clip * scale for clip in clips]

    def hear(self, states: EncoderStates) -> list[Tensor]:
        """What the CTC adapter heard: the path (N_i, 2) through each clip, slot and row of its table."""
        if not isinstance(self.adapter, CtcAdapter):
            raise UsageError(
                f"the {self.config.adapter_type!r} adapter has no transcript",
                "use a connector with the ctc adapter, or ask the model to repeat the words",
            )
        return self.adapter.hear(states, self.get_input_embeddings().weight, self.fusion)

    def transcribe(self, paths: list[Tensor]) -> list[list[int]]:
        """The same as the LLM's token ids."""
        assert isinstance(self.adapter, CtcAdapter)  # others give no path
        ids = self.adapter.ctc_token_ids.cpu()
        return [ids[path[:, 1]].tolist() for path in paths]

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (...,) -> LLM input embeddings (...,D). The audio placeholder, which has none, counts as id 0."""
        known = torch.where(ids < self.config.text_config.vocab_size, ids, 0)
        embedded: Tensor = self.get_input_embeddings()(known)
        return embedded

    def audio_prompts(self, audio: list[Tensor], before_ids: list[int], after_ids: list[int]) -> Prompts:
        """Prompts for a sampler: shared prefix `before_ids`, then each clip's positions (N_i,D) and `after_ids`."""
        from rbalign.lm.sampler import Prompts

        before, after = (self.embed(torch.tensor(ids, device=self.device)) for ids in (before_ids, after_ids))
        return Prompts(rows=[torch.cat([clip, after]) for clip in audio], shared=before)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        feature_lengths: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The LLM's output over the expanded sequence, right-padded; `loss` if `labels` (B,T) are given.

        input_ids (B,T) with placeholders, input_features (clips,80,F) in the order of the placeholders, row by row.
        """
        if input_features is not None and inputs_embeds is None:
            rows = self._expand(input_ids, attention_mask, input_features, feature_lengths, labels)
            inputs_embeds, attention_mask, labels = rows.padded("right")
            input_ids = None
        output: CausalLMOutputWithPast = self.language_model(
            input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask, labels=labels, **kwargs
        )
        return output

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        feature_lengths: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate` after the expansion: new token ids (B,T'), without the prompt."""
        if input_ids is not None:
            rows = self._expand(input_ids, attention_mask, input_features, feature_lengths, None)
            kwargs["inputs_embeds"], attention_mask, _ = rows.padded("left")
        return super().generate(attention_mask=attention_mask, **kwargs)

    def _expand(
        self,
        ids: Tensor | None,
        mask: Tensor | None,
        features: Tensor | None,
        lengths: Tensor | None,
        labels: Tensor | None,
    ) -> ExpandedRows:
        """Replace each placeholder by its clip's positions and drop padding: one row of embeddings each."""
        if ids is None:
            raise UsageError("audio features came without input_ids", f"pass text that holds {AUDIO_TOKEN!r}")
        if (features is None) != (lengths is None):
            raise UsageError("input_features and feature_lengths belong together", "pass all the processor returns")
        clips = [] if features is None or lengths is None else self.adapt(self.encode_audio(features, lengths))
        places = int((ids == self.config.audio_token_id).sum())
        if places != len(clips):
            raise UsageError(
                f"{places} {AUDIO_TOKEN} placeholders for {len(clips)} clips", "write one placeholder for each clip"
            )
        mask = torch.ones_like(ids) if mask is None else mask
        labels = torch.full_like(ids, IGNORED) if labels is None else labels
        remaining, rows = iter(clips), ExpandedRows([], [])
        for row, keep, label in zip(ids, mask.bool(), labels, strict=True):
            embeds, targets = [], []
            row, label = row[keep], label[keep]
            start = 0
            for place in [*(row == self.config.audio_token_id).nonzero().flatten().tolist(), len(row)]:
                embeds.append(self.embed(row[start:place]))
                targets.append(label[start:place])
                if place < len(row):
                    embeds.append(next(remaining))
                    targets.append(label.new_full((len(embeds[-1]),), IGNORED))
                start = place + 1
            rows.embeds.append(torch.cat(embeds))
            rows.labels.append(torch.cat(targets))
        return rows


@dataclass(frozen=True)
class ExpandedRows:
    """Rows of different lengths: embeddings (P_i,D) and labels (P_i,)."""

    embeds: list[Tensor]
    labels: list[Tensor]

    def padded(self, side: str) -> tuple[Tensor, Tensor, Tensor]:
        """(B,P,D) embeddings, (B,P) attention mask, (B,P) labels, padded on `side`."""
        ones = [torch.ones_like(label) for label in self.labels]

        def pad(rows: list[Tensor], value: float) -> Tensor:
            return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)

        return pad(self.embeds, 0.0), pad(ones, 0), pad(self.labels, IGNORED)
