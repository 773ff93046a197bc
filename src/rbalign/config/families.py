"""Speech LLMs of transformers that rba aligns: what is particular about each, one record a family. No torch.

All follow one convention: `processor(text with a placeholder, clip) -> inputs`, `model(**inputs)`. So a record says
how a prompt is written and where the language model lives, and nothing about features: what the processor returns goes
to the model untouched (`speechlm/family.py`). Templates are the released ones, read from the model's own folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from rbalign.errors import UsageError

RANDOM, REAL = "random weights", "real weights"
"""What a family was proven with. Random: a tiny model of the real class, real audio bytes (tests/test_families.py)."""


@dataclass(frozen=True, slots=True)
class Family:
    """One family of speech LLMs."""

    name: str
    model_class: str
    """transformers' class, which loads the folder; the processor is AutoProcessor's."""
    placeholder: str
    """The token that stands for audio: the processor repeats it once for each audio position."""
    end: str
    """The token that ends an answer in the released template."""
    turn: Literal["parts", "inline", "whole"]
    """How a clip gets into the user's turn: "parts", a content part for the template; "inline", the placeholder written
    before the words; "whole", the processor's `apply_chat_template` takes clip and words and returns the inputs."""
    source: str
    """Where the template and the placeholder rule come from."""
    decoder: str = "model.language_model"
    """Path of the language model without its head: LoRA touches what lies below it and nothing else."""
    call: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({"sampling_rate": 16_000}))
    """What the processor wants to be told beside text and clip."""
    system: bool = True
    """Whether a system prompt may stand before audio. If not, it is written into the user's turn."""
    longest: float = 30.0
    """Seconds of a clip that the processor takes whole; longer ones it would cut without a word."""
    packages: tuple[str, ...] = ()
    """What the processor needs beside transformers: not among rba's own requirements."""
    proven: str = RANDOM


_OMNI = Family(
    name="Qwen2.5-Omni",
    model_class="Qwen2_5OmniThinkerForConditionalGeneration",
    placeholder="<|AUDIO|>",
    end="<|im_end|>",
    turn="parts",
    source="Qwen/Qwen2.5-Omni-7B, as public code quotes it; transformers, Qwen2_5OmniProcessor",
    packages=("torchvision",),
)

FAMILIES: Mapping[str, Family] = {
    "qwen2_audio": Family(
        name="Qwen2-Audio",
        model_class="Qwen2AudioForConditionalGeneration",
        placeholder="<|AUDIO|>",
        end="<|im_end|>",
        turn="parts",
        source="Qwen/Qwen2-Audio-7B-Instruct; transformers, Qwen2AudioProcessor.default_chat_template",
    ),
    "audioflamingo3": Family(
        name="Audio Flamingo 3",
        model_class="AudioFlamingo3ForConditionalGeneration",
        placeholder="<sound>",
        end="<|im_end|>",
        turn="parts",
        source="nvidia/audio-flamingo-3-hf; transformers, convert_audioflamingo3_to_hf.py, processor_chat_template",
        longest=600.0,
    ),
    "voxtral": Family(
        name="Voxtral",
        model_class="VoxtralForConditionalGeneration",
        placeholder="[AUDIO]",
        end="</s>",
        turn="whole",
        source="mistralai/Voxtral-Mini-3B-2507; mistral-common, InstructTokenizerV7 and its tests with audio",
        system=False,
        longest=1800.0,
        packages=("mistral_common",),
    ),
    "granite_speech": Family(
        name="Granite Speech",
        model_class="GraniteSpeechForConditionalGeneration",
        placeholder="<|audio|>",
        end="<|end_of_text|>",
        turn="inline",
        source="ibm-granite/granite-speech-3.3-2b, chat template of its tokenizer and the usage on its card",
        call=MappingProxyType({}),
        longest=600.0,
        packages=("torchaudio",),
    ),
    "glmasr": Family(
        name="GLM-ASR",
        model_class="GlmAsrForConditionalGeneration",
        placeholder="<|pad|>",
        end="<|user|>",
        turn="parts",
        source="zai-org/GLM-ASR-Nano-2512; transformers, convert_glmasr_weights_to_hf.py, chat_template",
        longest=655.0,
    ),
    "qwen2_5_omni": _OMNI,
    "qwen2_5_omni_thinker": _OMNI,
}
"""By `model_type` in config.json. Of Qwen2.5-Omni the thinker: alone, or out of the whole release."""

REFUSED: Mapping[str, str] = {
    "gemma3n": "each layer of its language model takes an input of its own, looked up by token id, which embeddings "
    "alone do not bring",
    "phi4_multimodal": "its encoders sit inside its decoder, and it hears only with LoRA that is loaded apart",
    "qwen3_omni_moe": "LoRA on the experts of its language model is not tried",
    "ultravox": "it is not among transformers' own classes, and code from model folders is not run",
}
"""`model_type` -> why a speech LLM that looks alike cannot be aligned."""


def family_of(model_type: str, folder: str) -> Family:
    """The family of a model folder. UsageError, with the reason where it is known, for any other."""
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    known = "choose one of " + ", ".join(dict.fromkeys(family.name for family in FAMILIES.values()))
    if model_type in REFUSED:
        raise UsageError(f"{folder} is of type {model_type}, which rba refuses: {REFUSED[model_type]}", known)
    raise UsageError(f"{folder} is of type {model_type!r}, no speech LLM that rba knows", known)
