"""Speech LLMs of transformers as policies, by the one convention that all of them follow.

A clip is heard alone: the processor's inputs for the whole prompt go to the model untouched, and what arrives at the
door of its language model is kept, the audio positions among it. From there on a family is like the embedded model:
positions between ids, one sampler, one way to recompute log-probs. tests/test_families.py holds that beside the plain
way, `model(**inputs)` with the completion appended. Hearing each clip alone, once, costs no more (the encoder is
frozen) and makes a clip independent of its batch, which Granite's unmasked encoder would not be.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rbalign.audio.io import read_audio, to_flac
from rbalign.config.families import Family, family_of
from rbalign.errors import DataError, RbaError, UsageError
from rbalign.lm.load import load_model, model_type
from rbalign.lm.sampler import Prompts
from rbalign.lm.templates import APART
from rbalign.speechlm.base import REPEAT, Policy
from rbalign.speechlm.clipcache import ClipFolder
from rbalign.types import View

RATE = 16_000


class FamilyPolicy(Policy):
    """One of `config.families` as training and evaluation need it. Encoder and projector stay frozen."""

    def __init__(
        self,
        speech: Any,
        processor: Any,
        family: Family,
        *,
        system: str | None = None,
        lora: Mapping[str, Any] | None = None,
        seed: int = 0,
        heard: ClipFolder | None = None,
    ) -> None:
        """See `Policy`; `speech` and `processor` are transformers' own objects of that family."""
        self.family = family
        self._around: dict[tuple[str | None, str], tuple[Tensor, Tensor]] = {}
        ends = _end_ids(speech, processor.tokenizer, family)
        super().__init__(speech, processor, ends, system=system, lora=lora, seed=seed, heard=heard)
        self.audio_id: int = processor.tokenizer.convert_tokens_to_ids(family.placeholder)
        if self.audio_id != speech.config.audio_token_id:
            raise DataError(
                f"the processor writes {family.placeholder} as {self.audio_id}, and the model waits for "
                f"{speech.config.audio_token_id}",
                "take processor and model from the same release",
            )

    @property
    def lm(self) -> Any:
        """The whole model: without features it is a causal LM."""
        return self.speech

    # Hearing

    def audio(self, views: Sequence[View]) -> list[Tensor]:
        """Audio positions (N_i, D) of each view, heard once."""
        return self.cache.get("positions", views, self._positions, share=True)

    def heard(self, views: Sequence[View]) -> list[str]:
        """What the untouched model says when it is asked to repeat the user's words."""
        return self._repeated(self._prompts(views, REPEAT, ""), views)

    @torch.no_grad()
    def _positions(self, views: list[View]) -> list[Tensor]:
        return [self.positions(self._clip_inputs(view)) for view in views]

    def _clip_inputs(self, view: View) -> Mapping[str, Any]:
        if view.seconds > self.family.longest:
            raise DataError(
                f"clip {view.id} lasts {view.seconds:.1f} s, and {self.family.name} takes {self.family.longest:g}",
                "leave it out: [synth.filters] keeps instructions short",
            )
        return self.inputs(clip=read_audio(view.flac), system=self.system)

    def positions(self, inputs: Mapping[str, Any]) -> Tensor:
        """Audio positions (N, D) of one prompt with one clip; differentiable in `input_features`."""
        start, end = self._span(inputs)
        return _at_the_door(self.speech, inputs)[0, start:end]

    def _span(self, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """First place of the clip in the ids (1, P), and the place after its last."""
        places = (inputs["input_ids"][0] == self.audio_id).nonzero()[:, 0]
        if not len(places):
            raise DataError(
                f"{self.family.name}'s processor wrote no {self.family.placeholder} for a clip",
                f"compare the folder's chat template with the released one: {self.family.source}",
            )
        return int(places[0]), int(places[-1]) + 1

    # Prompts

    def inputs(self, words: str = "", clip: np.ndarray | None = None, system: str | None = None) -> Mapping[str, Any]:
        """What the family's own processor makes of one user's turn: `words`, and a clip (n,) float32 before them.

        The answer's header stands at the end. Tensors are torch's, of one row, unpadded.
        """
        family = self.family
        told = None if clip is None else _bytes_of(clip) if family.turn == "whole" else {}
        messages = self.messages(words, told, system)
        if family.turn == "whole":
            made: Mapping[str, Any] = self.processor.apply_chat_template(messages, return_tensors="pt")
            return made
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        audio = {} if clip is None else {"audio": [clip], **family.call}
        made = self.processor(text=[text], return_tensors="pt", **audio)
        return made

    def messages(
        self, words: str = "", clip: Mapping[str, str] | None = None, system: str | None = None
    ) -> list[dict[str, Any]]:
        """The chat whose template the family's prompt is. `clip` is {}, or says where a "whole" turn finds the clip."""
        messages: list[dict[str, Any]] = []
        if system is not None and self.family.system:
            messages.append({"role": "system", "content": system})
        elif system is not None:
            words = system + APART + words if words else system
        return [*messages, {"role": "user", "content": _turn(self.family, words, clip)}]

    def prompts(self, views: Sequence[View], beside: str = "") -> Prompts:
        """Speech prompts: what the template writes before a clip is shared; a written instruction stands after it."""
        return self._prompts(views, self.system, beside)

    def _prompts(self, views: Sequence[View], system: str | None, beside: str) -> Prompts:
        before, after = self._around_clip(system, beside)
        tail = self.speech.get_input_embeddings()(after)
        return Prompts([torch.cat([clip, tail]) for clip in self.audio(views)], before)

    def _around_clip(self, system: str | None, beside: str) -> tuple[Tensor, Tensor]:
        """Ids before and after a clip, read off the processor's own ids for a second of silence."""
        if (system, beside) not in self._around:
            inputs = self.inputs(beside, np.zeros(RATE, dtype=np.float32), system)
            start, end = self._span(inputs)
            ids = inputs["input_ids"][0]
            self._around[system, beside] = ids[:start].clone(), ids[end:].clone()
        return self._around[system, beside]

    def text_prompts(self, texts: Sequence[str]) -> Prompts:
        """The same prompts with written words in the place of the audio."""
        return Prompts([self.inputs(text, system=self.system)["input_ids"][0] for text in texts])

    def turn(self) -> tuple[str | None, str]:
        """See `Policy.turn`: without a place of its own the system prompt goes into the user's turn."""
        return (self.system, "") if self.family.system else (None, self.system or "")

    # LoRA

    def _lora_scope(self) -> dict[str, Any]:
        """Only below the decoder: encoders have layers of the same names."""
        return {"exclude_modules": rf"(?!{re.escape(self.family.decoder)}\.).*"}


class _ArrivedError(Exception):
    """Carries what has arrived at the language model's door out of the model."""

    def __init__(self, embeds: Tensor) -> None:
        super().__init__()
        self.embeds = embeds


def _at_the_door(speech: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Input embeddings (1, P, D) of the language model for the processor's inputs; it does not run itself."""

    def take(_: Any, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _ArrivedError(kwargs["inputs_embeds"])

    hook = speech.get_decoder().register_forward_pre_hook(take, with_kwargs=True)
    try:
        speech(**inputs)
    except _ArrivedError as door:
        return door.embeds
    finally:
        hook.remove()
    raise DataError("the model ended without its language model", "rba and transformers do not fit: report it")


def _bytes_of(clip: np.ndarray) -> dict[str, str]:
    return {"base64": base64.b64encode(to_flac(clip, RATE)).decode("ascii")}


def _turn(family: Family, words: str, clip: Mapping[str, str] | None) -> Any:
    """The content of the user's turn; written words alone are a plain string in every template."""
    if clip is None:
        return words
    if family.turn == "inline":
        return family.placeholder + words
    audio = {"type": "audio", **clip}
    return [audio, {"type": "text", "text": words}] if words else [audio]


def _end_ids(speech: Any, tokenizer: Any, family: Family) -> tuple[int, ...]:
    """Tokens that end an answer: the template's own first, then those of the release's generation settings."""
    own = tokenizer.get_vocab().get(family.end)
    if own is None:
        raise DataError(
            f"the tokenizer has no {family.end}, which ends {family.name}'s answers", "take the released one"
        )
    released = speech.generation_config.eos_token_id
    more = released if isinstance(released, list) else [released]
    return tuple(dict.fromkeys(token for token in (own, *more, tokenizer.eos_token_id) if token is not None))


def family_in(folder: Path, system: str | None) -> Family:
    """The family of a model folder, by its config.json. UsageError where no policy can be made of it as things are."""
    family = family_of(model_type(folder), str(folder))
    missing = [name for name in family.packages if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{family.name}'s processor needs {', '.join(missing)}, not installed here",
            f"pip install {' '.join(name.replace('_', '-') for name in missing)}",
        )
    if system is None and any("strftime_now" in path.read_text("utf-8") for path in _templates(folder)):
        raise UsageError(
            f"without a system prompt {family.name}'s template writes today's date into every prompt",
            "set [align] answer_system, so that a run gives the same tomorrow",
        )
    return family


def _templates(folder: Path) -> list[Path]:
    """Files in which a release may keep its chat template."""
    names = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json", "processor_config.json")
    return [folder / name for name in names if (folder / name).is_file()]


def load_family(folder: Path, system: str | None) -> tuple[Any, Any, Family]:
    """Model in float32, processor and family of a folder that `save_pretrained` wrote or a release holds.

    `system` is the prompt under which it will answer.
    """
    from transformers import AutoProcessor

    family = family_in(folder, system)
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        model = load_model(folder, family.model_class)
    except RbaError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UsageError(f"{folder} cannot be loaded as {family.name}: {reason}", "take the whole release") from None
    _merge_own_lora(model)
    return model, processor, family


def _merge_own_lora(model: Any) -> None:
    """Put the LoRA that a release came with into the weights, for good. Granite switches its own on and off by whether
    features are there, and knows one set: samples from positions would be drawn without it, and ours be lost to it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    own = [(path, module) for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for path, layer in own:
        layer.merge()
        model.set_submodule(path, layer.get_base_layer())
    if own:
        model._hf_peft_config_loaded = False
        del model.peft_config
