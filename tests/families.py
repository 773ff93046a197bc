"""Tiny random instances of transformers' real speech LLMs, with processors that need no hub.

Each has the real model class, the real processor class, the released chat template word for word and real audio bytes;
tokenizers are the tiny one of tests/tiny.py with the family's own special tokens.
"""

from __future__ import annotations

import torch
from tiny import tiny_tokenizer
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    GenerationConfig,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

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


TINY = {"qwen2_audio": qwen2_audio, "audioflamingo3": audioflamingo3}


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
