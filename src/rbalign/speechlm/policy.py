"""The embedded speech LLM as a policy: encoder, adapter, language model.

Whatever is frozen is computed once per clip: encoder outputs, and audio positions too while the adapter is frozen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rbalign.audio.io import read_audio
from rbalign.lm.sampler import Prompts
from rbalign.lm.templates import around_user, end_ids
from rbalign.speechlm.base import REPEAT, Policy
from rbalign.speechlm.clipcache import ClipFolder
from rbalign.speechlm.encoder import EncoderStates
from rbalign.types import View

CONNECTOR_FILE = "connector_adapter.safetensors"


class SpeechPolicy(Policy):
    """The embedded speech LLM as training and evaluation need it, with an adapter that may train, too."""

    def __init__(
        self,
        speech: Any,
        processor: Any,
        *,
        system: str | None = None,
        lora: Mapping[str, Any] | None = None,
        full: bool = False,
        train_adapter: bool = False,
        seed: int = 0,
        heard: ClipFolder | None = None,
    ) -> None:
        """See `Policy`; `train_adapter` lets the adapter train."""
        ends = end_ids(processor.tokenizer)
        super().__init__(speech, processor, ends, system=system, lora=lora, full=full, seed=seed, heard=heard)
        self.before_ids, self.after_ids = around_user(self.tokenizer, system)
        self.train_adapter = train_adapter
        self._own_adapter = not train_adapter
        """Whether the adapter is the connector's own: only then is what it hears shared."""
        self._connector: dict[str, Tensor] = {}
        if train_adapter:
            speech.adapter.requires_grad_(True)
            self._connector = {name: value.clone() for name, value in speech.adapter.state_dict().items()}

    @property
    def lm(self) -> Any:
        """The causal language model."""
        return self.speech.language_model

    @property
    def has_transcript(self) -> bool:
        """The ctc adapter knows what it heard."""
        return bool(self.speech.config.adapter_type == "ctc")

    # Hearing

    def audio(self, views: Sequence[View]) -> list[Tensor]:
        """Audio positions (N_i, D) of each view. Differentiable in the adapter while it trains, else cached."""
        if self.train_adapter:
            return list(self.speech.adapt(EncoderStates.stack(self.encoder_rows(views))))
        return self.cache.get("positions", views, self._positions, share=self._own_adapter)

    def encoder_rows(self, views: Sequence[View]) -> list[Tensor]:
        """Encoder frames (F_i, D_enc) of each view, 50 a second; computed once per clip."""
        return self.cache.get("frames", views, self._encode)

    @torch.no_grad()
    def heard(self, views: Sequence[View]) -> list[str]:
        """What was understood, as words: what the self-cascade reads.

        The ctc adapter has a transcript; behind any other the untouched language model is asked to repeat the words.
        """
        if self.has_transcript:
            paths = self._paths(views) if self.train_adapter else self._known_paths(views)
            return [self.decode(row) for row in self.speech.transcribe(paths)]
        prompts = self.speech.audio_prompts(self.audio(views), *around_user(self.tokenizer, REPEAT))
        return self._repeated(prompts, views)

    @torch.no_grad()
    def _positions(self, views: list[View]) -> list[Tensor]:
        paths = self._known_paths(views) if self.speech.fusion else None
        return list(self.speech.adapt(EncoderStates.stack(self.encoder_rows(views)), paths))

    def _known_paths(self, views: Sequence[View]) -> list[Tensor]:
        return self.cache.get("paths", views, self._paths, share=self._own_adapter)

    @torch.no_grad()
    def _paths(self, views: Sequence[View]) -> list[Tensor]:
        return list(self.speech.hear(EncoderStates.stack(self.encoder_rows(views))))

    @torch.no_grad()
    def _encode(self, views: list[View]) -> list[Tensor]:
        inputs = self.processor(audio=[read_audio(view.flac) for view in views], return_tensors="pt")
        states = self.speech.encode_audio(inputs["input_features"], inputs["feature_lengths"])
        return [states.row(index).clone() for index in range(len(views))]

    # Prompts

    def prompts(self, views: Sequence[View], beside: str = "") -> Prompts:
        """Speech prompts: system prompt and user header shared, then each view's audio and the answer's header."""
        after = [*self.tokenizer.encode(beside, add_special_tokens=False), *self.after_ids]
        made: Prompts = self.speech.audio_prompts(self.audio(views), self.before_ids, after)
        return made

    def text_prompts(self, texts: Sequence[str]) -> Prompts:
        """The same prompts with written words in the place of the audio."""
        encode = self.tokenizer.encode
        rows = [torch.tensor([*encode(text, add_special_tokens=False), *self.after_ids]) for text in texts]
        return Prompts(rows, torch.tensor(self.before_ids))

    # Arms

    def save(self, folder: Path) -> None:
        """See `Policy`; the audio adapter is written beside LoRA if it trained."""
        from safetensors.torch import save_file

        super().save(folder)
        if self.train_adapter:
            save_file(dict(self.speech.adapter.state_dict()), folder / CONNECTOR_FILE)

    def restart(self, seed: int) -> None:
        """See `Policy`; the connector's own adapter."""
        super().restart(seed)
        self._load_connector(None)

    def load(self, folder: Path) -> None:
        """See `Policy`; the arm's adapter with it, or the connector's own."""
        super().load(folder)
        connector = folder / CONNECTOR_FILE
        self._load_connector(connector if connector.is_file() else None)

    def _load_connector(self, path: Path | None) -> None:
        """The arm's audio adapter, or (None) the connector's own again."""
        from safetensors.torch import load_file

        if path is None and not self._connector:
            return
        if not self._connector:
            self._connector = {name: value.clone() for name, value in self.speech.adapter.state_dict().items()}
        self.speech.adapter.load_state_dict(self._connector if path is None else load_file(path))
        self._own_adapter = path is None and not self.train_adapter
        self.cache.drop("positions")
        self.cache.drop("paths")
