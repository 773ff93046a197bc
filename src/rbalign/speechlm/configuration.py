"""The configuration of a speech LLM: a Whisper encoder, an adapter, any causal LM."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig, WhisperConfig

from rbalign.errors import UsageError, unknown

AUDIO_TOKEN = "<|audio|>"
ADAPTERS = ("ctc", "mlp")


class RbaSpeechConfig(PreTrainedConfig):  # type: ignore[misc]
    """Shapes of the three parts.

    `adapter_stack` encoder frames (50 a second) are joined into one adapter frame: 4 gives 12.5 Hz, 8 gives 6.25 Hz.
    `ctc_vocab_size` counts the LLM tokens that the CTC adapter can emit (0: all of them); which ones they are stands
    in the checkpoint as `adapter.ctc_token_ids`. `ctc_letters` is the width of the rows that say how tokens are
    written (speechlm/letters.py), beside the embedding's, which say what they mean; 0 leaves them out.
    `ctc_speller_layers` counts the layers of the branch that hears letters first (speechlm/speller.py); 0 leaves it
    out. A frame is dropped where P(blank) is at least `blank_threshold`.
    `fusion` lets the LLM choose among the tokens heard: the fields of `speechlm.fusion.Fusion` from `context_ids` on;
    None is greedy CTC.
    `audio_token_id` is the id of "<|audio|>"; it may lie beyond the LLM's embedding, which never sees it.
    `connector_only` marks a folder that holds encoder and adapter but no LLM.
    """

    model_type = "rba_speech"
    sub_configs: ClassVar[dict[str, Any]] = {"audio_config": WhisperConfig, "text_config": AutoConfig}

    def __init__(
        self,
        audio_config: dict[str, Any] | WhisperConfig | None = None,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        adapter_type: str = "ctc",
        adapter_width: int = 384,
        adapter_layers: int = 3,
        adapter_heads: int = 6,
        adapter_stack: int = 4,
        adapter_dropout: float = 0.1,
        ctc_vocab_size: int = 0,
        ctc_letters: int = 0,
        ctc_speller_layers: int = 0,
        blank_threshold: float = 0.5,
        fusion: dict[str, Any] | None = None,
        audio_token_id: int = 49152,
        connector_only: bool = False,
        **kwargs: Any,
    ) -> None:
        if adapter_type not in ADAPTERS:
            raise unknown("adapter", adapter_type, ADAPTERS)
        if adapter_width % adapter_heads:
            raise UsageError(
                f"adapter_width {adapter_width} is not a multiple of adapter_heads {adapter_heads}",
                "choose a width that the heads divide",
            )
        if ctc_speller_layers and (adapter_stack % 2 or not ctc_letters):
            raise UsageError(
                f"a speller needs an even adapter_stack and letters, not {adapter_stack} and {ctc_letters}",
                "set [connect] stack = 4 and letters = 256, or speller_layers = 0",
            )
        self.audio_config = _sub_config(audio_config, "whisper")
        self.text_config = _sub_config(text_config, "llama")
        self.adapter_type = adapter_type
        self.adapter_width = adapter_width
        self.adapter_layers = adapter_layers
        self.adapter_heads = adapter_heads
        self.adapter_stack = adapter_stack
        self.adapter_dropout = adapter_dropout
        self.ctc_vocab_size = ctc_vocab_size
        self.ctc_letters = ctc_letters
        self.ctc_speller_layers = ctc_speller_layers
        self.blank_threshold = blank_threshold
        self.fusion = fusion
        self.audio_token_id = audio_token_id
        self.connector_only = connector_only
        super().__init__(**kwargs)

    @property
    def max_audio_seconds(self) -> float:
        """The longest clip that the encoder has positions for (Whisper: 1,500 positions at 50 a second)."""
        return float(self.audio_config.max_source_positions) / 50.0


def _sub_config(given: dict[str, Any] | PreTrainedConfig | None, default_type: str) -> PreTrainedConfig:
    """A config of its own: transformers writes attention settings into sub-configs, and a shared one would change
    the attention of an LLM that is already in use."""
    if isinstance(given, PreTrainedConfig):
        return copy.deepcopy(given)
    fields = dict(given or {})
    return AutoConfig.for_model(fields.pop("model_type", default_type), **fields)
