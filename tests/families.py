"""Tiny random instances of transformers' real speech LLMs, with processors that need no hub.

Each has the real model class, the real processor class, the released chat template (docs/models.md says from where) and
real audio bytes; tokenizers are the tiny one of tests/tiny.py with the family's own special tokens.
"""

from __future__ import annotations

import base64
from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_bpe, tiny_tokenizer
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    GenerationConfig,
    GlmAsrConfig,
    GlmAsrForConditionalGeneration,
    GlmAsrProcessor,
    GraniteSpeechConfig,
    GraniteSpeechFeatureExtractor,
    GraniteSpeechForConditionalGeneration,
    GraniteSpeechProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    VoxtralProcessor,
    WhisperFeatureExtractor,
)
from transformers.audio_utils import mel_filter_bank
from transformers.models.granite_speech import feature_extraction_granite_speech as granite_features

from rbalign.audio.io import read_audio
from rbalign.config.families import FAMILIES
from rbalign.speechlm.family import FamilyPolicy

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
SYSTEM = "Be brief."
WHISPER = {
    "d_model": 32,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "num_mel_bins": 128,
    "initializer_range": 0.2,
}

AUDIO_FLAMINGO_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "{% for m in messages if m['content'] is not none %}"
    "<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}"
    "{{ m['content'] }}"
    "{% else %}"
    "{% set audio = namespace(found=False) %}"
    "{% set text_buf = namespace(v='') %}"
    "{% for c in m['content'] %}"
    "{% if c.get('type') == 'audio' or 'audio' in c %}"
    "{% set audio.found = True %}"
    "{% elif c.get('type') == 'text' or 'text' in c %}"
    "{% set text_buf.v = text_buf.v + c['text'] %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if audio.found %}{{ '<sound>' }}{% endif %}{{ text_buf.v }}"
    "{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "<|im_start|>assistant\n"
    "{% endif %}"
)
"""transformers, convert_audioflamingo3_to_hf.py, `processor_chat_template`."""


def with_tokens(*tokens):
    """The tiny tokenizer, and it knows these special tokens, too."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    return tokenizer


def text_config(tokenizer, model_type="qwen2", **changes):
    """Two layers, width 32, grouped-query attention; large random weights, so that tokens and clips differ."""
    return {
        "model_type": model_type,
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        **changes,
    }


def qwen2_audio():
    """Template: the processor's own default, which is the released one."""
    tokenizer = with_tokens("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
    processor = Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer)
    config = Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", **WHISPER},
        text_config=text_config(tokenizer),
        audio_token_index=processor.audio_token_id,
    )
    return Qwen2AudioForConditionalGeneration(config), processor


def audioflamingo3():
    """With the release's generation settings, whose repetition penalty the sampler must not heed."""
    tokenizer = with_tokens("<sound>")
    extractor = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)
    processor = AudioFlamingo3Processor(extractor, tokenizer, chat_template=AUDIO_FLAMINGO_TEMPLATE)
    config = AudioFlamingo3Config(
        audio_config={"model_type": "audioflamingo3_encoder", **WHISPER},
        text_config=text_config(tokenizer),
        audio_token_id=processor.audio_token_id,
    )
    model = AudioFlamingo3ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=0, do_sample=True, eos_token_id=[2, 0], pad_token_id=0,
        repetition_penalty=1.05, temperature=0.7, top_k=20, top_p=0.8,
    )  # fmt: skip
    return model, processor


class MistralStandIn(PreTrainedTokenizerFast):
    """What MistralCommonBackend does for one user's turn, for mistral-common is not among the tests' packages.

    By its InstructTokenizerV7: `<s>[INST]` chunks in their order `[/INST]`, a clip as `[BEGIN_AUDIO]` and one `[AUDIO]`
    for each 80 ms of it after padding to whole 30 s; at most one text chunk, and no system prompt beside audio.
    """

    def apply_chat_template(self, conversations, **settings):
        (messages,) = conversations
        (turn,) = messages
        assert turn["role"] == "user"
        chunks = [{"type": "text", "text": turn["content"]}] if isinstance(turn["content"], str) else turn["content"]
        assert sum(chunk["type"] == "text" for chunk in chunks) <= 1
        ids, clips = self.convert_tokens_to_ids(["<s>", "[INST]"]), []
        for chunk in chunks:
            if chunk["type"] == "text":
                ids += self.encode(chunk["text"], add_special_tokens=False)
            else:
                clips.append(read_audio(base64.b64decode(chunk["base64"])))
                frames = 375 * -(-len(clips[-1]) // 480_000)
                ids += self.convert_tokens_to_ids(["[BEGIN_AUDIO]"] + ["[AUDIO]"] * frames)
        ids += self.convert_tokens_to_ids(["[/INST]"])
        made = {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}
        return made | ({"audio": clips} if clips else {})


def voxtral():
    """Special tokens at tekken's places: VoxtralProcessor expects [AUDIO] at 24."""
    specials = [
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        *[f"<{n}>" for n in range(5, 24)],
        "[AUDIO]",
        "[BEGIN_AUDIO]",
    ]
    tokenizer = MistralStandIn(
        tokenizer_object=tiny_bpe(specials), bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    processor = VoxtralProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
    config = VoxtralConfig(
        audio_config={"model_type": "voxtral_encoder", "num_mel_bins": 128, "initializer_range": 0.2, **sizes},
        text_config=text_config(tokenizer, "llama", head_dim=16),
        audio_token_id=processor.audio_token_id,
    )
    return VoxtralForConditionalGeneration(config), processor


GRANITE_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}"
    "{%- else %}"
    "{%- set system_message = \"Knowledge Cutoff Date: April 2024.\\nToday's Date: \" + strftime_now('%B %d, %Y') + "
    '".\\nYou are Granite, developed by IBM. You are a helpful AI assistant." %}'
    "{%- set loop_messages = messages %}"
    "{%- endif %}"
    "{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}"
    "{%- for message in loop_messages %}"
    "{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}"
    "{%- if loop.last and add_generation_prompt %}"
    "{{- '<|start_of_role|>assistant' }}"
    "{{- '<|end_of_role|>' }}"
    "{%- endif %}"
    "{%- endfor %}"
)
"""Granite 3.3's, without its branches for tools, documents, controls and thinking, which no prompt here takes."""


class MelStandIn(torch.nn.Module):
    """torchaudio's MelSpectrogram with its defaults (HTK mels, power 2, reflected edges): it is no test package."""

    def __init__(self, sample_rate, n_fft, win_length, hop_length, n_mels):
        super().__init__()
        self.sizes = {"n_fft": n_fft, "win_length": win_length, "hop_length": hop_length}
        self.window = torch.hann_window(win_length)
        filters = mel_filter_bank(n_fft // 2 + 1, n_mels, 0.0, sample_rate / 2, sample_rate, mel_scale="htk")
        self.filters = torch.from_numpy(filters).float()

    def forward(self, audio):
        power = torch.stft(audio, window=self.window, return_complex=True, **self.sizes).abs().square()
        return (power.transpose(-1, -2) @ self.filters).transpose(-1, -2)


def granite_speech():
    """Its features need torchaudio: `torchaudio_stand_in` first."""
    tokenizer = with_tokens("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|audio|>")
    tokenizer.chat_template = GRANITE_TEMPLATE
    processor = GraniteSpeechProcessor(GraniteSpeechFeatureExtractor(), tokenizer, chat_template=GRANITE_TEMPLATE)
    multipliers = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3}
    end = tokenizer.convert_tokens_to_ids("<|end_of_text|>")
    config = GraniteSpeechConfig(
        text_config=text_config(tokenizer, "granite", eos_token_id=end, **multipliers),
        encoder_config={"hidden_dim": 32, "num_layers": 2, "num_heads": 4, "output_dim": 12, "initializer_range": 0.2},
        projector_config={
            "model_type": "blip_2_qformer", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
            "intermediate_size": 64, "encoder_hidden_size": 32, "initializer_range": 0.2,
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"),
        has_lora_adapter=False,
        initializer_range=0.2,
    )  # fmt: skip
    return GraniteSpeechForConditionalGeneration(config), processor


@pytest.fixture(scope="session", autouse=True)
def torchaudio_stand_in():
    """Lets Granite's feature extractor work without torchaudio. A test module imports it."""
    with pytest.MonkeyPatch.context() as patch:
        if not granite_features.is_torchaudio_available():
            fake = SimpleNamespace(transforms=SimpleNamespace(MelSpectrogram=MelStandIn))
            patch.setattr(granite_features, "torchaudio", fake, raising=False)
            patch.setattr(granite_features, "requires_backends", lambda *_: None)
        yield


GLM_TEMPLATE = """{%- macro to_text(content) -%}
{%- if content is string -%}
{{- content -}}
{%- elif content is iterable and content is not mapping -%}
{%- for item in content -%}
{%- if item is mapping and item.type == 'text' and item.text is defined -%}
{{- item.text -}}
{%- elif item is mapping and (item.type == 'audio' or 'audio' in item) -%}
<|begin_of_audio|><|pad|><|end_of_audio|><|user|>
{% elif item is string -%}
{{- item -}}
{%- endif -%}
{%- endfor -%}
{%- else -%}
{{- content -}}
{%- endif -%}
{%- endmacro -%}
{%- for m in messages -%}
{%- if m.role == 'system' -%}
<|system|>
{{ to_text(m.content) | trim }}
{%- elif m.role == 'user' -%}
<|user|>
{{ to_text(m.content) | trim }}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{{ to_text(m.content) | trim }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>
{% endif -%}"""
"""transformers, convert_glmasr_weights_to_hf.py, `chat_template`."""


def glmasr():
    """Its answers end where the template would open the next turn."""
    roles = ("<|system|>", "<|user|>", "<|assistant|>")
    tokenizer = with_tokens(*roles, "<|begin_of_audio|>", "<|end_of_audio|>", "<|pad|>")
    tokenizer.pad_token = tokenizer.eos_token
    processor = GlmAsrProcessor(WhisperFeatureExtractor(feature_size=128), tokenizer, chat_template=GLM_TEMPLATE)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 128}
    config = GlmAsrConfig(
        audio_config={"model_type": "glmasr_encoder", "num_mel_bins": 128, "initializer_range": 0.2, **sizes},
        text_config=text_config(tokenizer, "llama", head_dim=8),
        audio_token_id=processor.audio_token_id,
        tie_word_embeddings=False,
    )
    return GlmAsrForConditionalGeneration(config), processor


OMNI_TEMPLATE = (
    "{% set audio_count = namespace(value=0) %}{% set image_count = namespace(value=0) %}"
    "{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif content['type'] == 'audio' or 'audio' in content or 'audio_url' in content %}"
    "{% set audio_count.value = audio_count.value + 1 %}"
    "{% if add_audio_id %}Audio {{ audio_count.value }}: {% endif %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen/Qwen2.5-Omni-7B's, as public code quotes it."""
OMNI_TOKENS = {
    "image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
}  # fmt: skip


class OmniStandIn(Qwen2_5OmniProcessor):
    """The real processor without its eyes, for which torchvision is needed: it is among no test's packages."""

    def check_argument_for_proper_class(self, argument_name, argument):
        eyes = ("image_processor", "video_processor")
        return None if argument_name in eyes else super().check_argument_for_proper_class(argument_name, argument)


def qwen2_5_omni():
    """The thinker."""
    tokenizer = with_tokens(*OMNI_TOKENS.values())
    tokenizer._set_model_specific_special_tokens(special_tokens=OMNI_TOKENS)
    extractor = WhisperFeatureExtractor(feature_size=128)
    processor = OmniStandIn(None, None, extractor, tokenizer, chat_template=OMNI_TEMPLATE)
    ids = {f"{kind}_token_index": getattr(tokenizer, f"{kind}_token_id") for kind in ("audio", "image", "video")}
    marks = {"vision_start": "<|vision_bos|>", "audio_start": "<|audio_bos|>", "audio_end": "<|audio_eos|>"}
    ids |= {f"{mark}_token_id": tokenizer.convert_tokens_to_ids(token) for mark, token in marks.items()}
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
    config = Qwen2_5OmniThinkerConfig(
        audio_config={**WHISPER, "output_dim": 32, "n_window": 25},
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
        text_config=text_config(tokenizer, "qwen2_5_omni_text", rope_parameters=rope),
        initializer_range=0.2,
        **ids,
    )  # fmt: skip
    return Qwen2_5OmniThinkerForConditionalGeneration(config), processor


TINY = {
    "qwen2_audio": qwen2_audio,
    "audioflamingo3": audioflamingo3,
    "voxtral": voxtral,
    "granite_speech": granite_speech,
    "glmasr": glmasr,
    "qwen2_5_omni_thinker": qwen2_5_omni,
}


def family_model(name):
    """(model, processor) of a family, weights drawn from one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = TINY[name]()
    for value_name, value in model.named_parameters():  # what __init__ leaves at 0 or 1 is no test of anything
        if value.ndim == 1 and "norm" not in value_name:
            torch.nn.init.normal_(value, 0.0, 0.1, generator=torch.Generator().manual_seed(1))
    return model.eval(), processor


def family_policy(name, lora=LORA, system=SYSTEM, **options):
    """As aligning.tiny_policy: 80 other tokens end a sample, too, so that some samples end."""
    model, processor = family_model(name)
    policy = FamilyPolicy(model, processor, FAMILIES[name], system=system, lora=lora, **options)
    policy.end_ids = (*policy.end_ids, *range(100, 180))
    return policy
