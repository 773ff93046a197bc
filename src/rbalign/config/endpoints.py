"""Servers that a recipe names: text teachers and voices behind OpenAI-compatible HTTP. See docs/endpoints.md.

A key is never part of a recipe: `key_env` names the environment variable that holds it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from rbalign.config.section import Positive, Section

_FIELD = r"[A-Za-z_][A-Za-z0-9_]*(\.(0|[A-Za-z_][A-Za-z0-9_]*))*"
Price = Annotated[float, Field(ge=0.0)]

FREE = frozenset(
    {
        "key_env",
        "concurrency",
        "retries",
        "timeout",
        "rpm",
        "tpm",
        "cache",
        "adapters",
        "price_in",
        "price_out",
        "price_characters",
        "licence",
    }
)
"""Keys that change time, money and cards, never a result: a run may go on with other values."""


class EndpointConfig(Section):
    """How to reach a server and how hard to press it."""

    younger: ClassVar[tuple[str, ...]] = ("licence",)

    url: Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#@]*)?$")]
    """Up to the version: "http://127.0.0.1:8000/v1". Redirects are not followed."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name as the server knows it."""
    key_env: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None
    """NAME of the environment variable that holds the key; None sends none. Never the key itself."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 8
    """Requests under way at once."""
    retries: Annotated[int, Field(ge=0, le=20)] = 5
    """Further attempts after a failure that may pass: 429, 5xx, a broken connection, an answer that is no answer."""
    timeout: Annotated[float, Field(gt=0.0)] = 120.0
    """Seconds for one attempt."""
    rpm: Positive | None = None
    """Requests a minute at most, spread evenly."""
    cache: bool = True
    """Keep replies on this machine, by address, model and request: a restart pays for nothing twice."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Fields added to every request as they are: `{top_k = 0, min_p = 0.0}`, `{language = "English"}`."""
    licence: Annotated[str, Field(min_length=1)] | None = None
    """Of the model and what it makes, for cards: an SPDX id ("Apache-2.0") where there is one, else words of yours."""


class ChatEndpoint(EndpointConfig):
    """A text model behind a server: what it is called, paced and paid by."""

    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the chat request calls its cap; some clouds know only the second."""
    tpm: Positive | None = None
    """Tokens a minute at most, prompts and completions together."""
    price_in: Price = 0.0
    """Of a million prompt tokens, in any currency."""
    price_out: Price = 0.0
    """Of a million completion tokens."""


class TeacherEndpoint(ChatEndpoint):
    """A text teacher behind /v1/chat/completions and /v1/completions (vLLM, llama.cpp, SGLang, a cloud)."""

    template: str | None = None
    """Folder or asset name of the model's tokenizer, whose chat template gives the pre-query prefix; score needs it."""
    pre_query: Annotated[str, Field(min_length=1)] | None = None
    """The pre-query prefix itself, if there is no tokenizer; {system} in it is where a system prompt goes."""
    can: Annotated[tuple[Literal["chat", "continue", "score"], ...], Field(min_length=1)]
    """What the server offers: each is tried before any work. Magpie needs continue, answers need chat."""
    stop: tuple[str, ...] = ()
    """Texts that end an instruction; with `template` the end tokens' own texts are there already."""
    score_by: Literal["echo", "prompt_logprobs"] = "echo"
    """How to ask for log-probs of given tokens: `echo` with `logprobs`, or vLLM's `prompt_logprobs`."""
    seed_field: Annotated[str, Field(min_length=1)] = "seed"
    """What requests call the seed: each sample has its own."""

    @field_validator("can")
    @classmethod
    def _has_prefix(cls, can: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        template, literal = info.data.get("template"), info.data.get("pre_query")
        if template is not None and literal is not None:
            raise ValueError("template and pre_query exclude each other")
        if "continue" in can and template is None and literal is None:
            raise ValueError("continue needs template (a tokenizer's folder) or pre_query beside it")
        if "score" in can and template is None:
            raise ValueError("score needs template: it counts the tokens of an answer")
        return can


class JudgeEndpoint(ChatEndpoint):
    """An LLM that judges answers, behind /v1/chat/completions: [align] judge, or the file of `rba score --judge`."""

    max_tokens: Annotated[int, Field(ge=1, le=65_536)] = 512
    """Of a judgement, its reasons included."""
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | Literal["none"] = 0.0
    """"none" sends none: some models refuse the field."""


class SpeechEndpoint(ChatEndpoint):
    """A speech LLM behind /v1/chat/completions, sent clips as `input_audio` parts: what `rba eval --model` names."""

    audio_format: Literal["wav", "flac"] = "wav"
    """How a clip is sent: 16 kHz, mono, 16 bits. OpenAI's own servers take wav; flac is half as long."""
    seed_field: str = "seed"
    """What requests call the seed, one for each item; "" sends none."""
    sampling: bool = True
    """False sends neither temperature nor top_p: some models refuse them."""


class RolloutEndpoint(ChatEndpoint):
    """A server that samples for `rba align` ([align.rollout]): vLLM, or one that answers as it does. docs/scale.md."""

    cache: bool = False
    """An update's samples are asked for once: by the next one the weights are others."""
    extra_body: dict[str, Any] = Field(default_factory=lambda: {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0})
    """Fields added to every request. These undo what a model's own generation_config would do to its samples."""
    audio_format: Literal["wav", "flac"] = "wav"
    """How a clip is sent: 16 kHz, mono, 16 bits."""
    adapters: str | None = None
    """Folder where LoRA is put for the server, which sees it under the same path; None: the arm's own."""
    max_weight: Annotated[float, Field(ge=1.0)] = 2.0
    """Importance weights, our probability over the server's, are cut here (truncated importance sampling)."""
    max_gap: Annotated[float, Field(gt=0.0)] = 0.5
    """Nats a token, mean of absolute differences, past which the server samples no policy of ours: training stops."""


class VoiceEndpoint(EndpointConfig):
    """Voices behind /v1/audio/speech: named ones, or one for each reference speaker of a folder (zero-shot cloning)."""

    split: Literal["train", "validation", "test"]
    """The one split that these voices may speak."""
    voices: tuple[str, ...] = ()
    """Their names; with `speakers`, which of its speakers (empty: all)."""
    speakers: str | None = Field(default=None, validate_default=True)
    """Folder of reference speakers: a sub-folder or a file for each, named like the voice, with clips of 3 to 30 s."""
    accent: Annotated[str, Field(min_length=1)] = "unknown"
    """Of these voices, for reports."""
    gender: Annotated[str, Field(min_length=1)] = "unknown"
    """Of these voices, for reports."""
    format: Literal["wav", "flac", "mp3", "opus", "pcm"] = "wav"
    """What to ask for as `response_format`."""
    pcm_rate: Annotated[int, Field(ge=8_000, le=192_000)] = 24_000
    """Hz of "pcm" (16 bits, mono), which has no header."""
    clone_voice: str | None = None
    """What to send as `voice` beside a reference clip; None leaves the field out."""
    reference_audio: Annotated[str, Field(pattern=f"^{_FIELD}$")] = "ref_audio"
    """The field of the reference clip; dots and 0 go into tables and lists: "references.0.audio_path"."""
    reference_text: Annotated[str, Field(pattern=f"^({_FIELD})?$")] = "ref_text"
    """The field of its transcript (CLIP.txt or CLIP.normalized.txt beside the clip, if there); "" sends none."""
    reference_as: Literal["data-url", "base64"] = "data-url"
    """How the clip is written: data:audio/wav;base64,... or base64 alone."""
    price_characters: Price = 0.0
    """Of a million characters of text."""

    @field_validator("speakers")
    @classmethod
    def _has_voices(cls, speakers: str | None, info: ValidationInfo) -> str | None:
        if speakers is None and not info.data.get("voices"):
            raise ValueError("a folder, or name the server's voices in `voices`")
        return speakers
