"""Tiny random models for tests: a 2-layer Llama, a byte-level tokenizer with ChatML, a speech LLM around them."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor

from rbalign.speechlm import RbaSpeechConfig, RbaSpeechForConditionalGeneration, RbaSpeechProcessor

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "What is the capital of France?",
    "Could you please tell me how to make a cup of tea?",
    "Tell me a short story about a friendly dragon.",
    "How do birds fly?",
    "The weather in London is cold today, so please bring a warm coat and an umbrella.",
]


def tiny_bpe(specials: list[str]) -> Tokenizer:
    """A byte-level BPE of about 320 tokens trained on TEXTS; `specials` have the first ids."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS, trainer)
    return core


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """`tiny_bpe` as a tokenizer with ChatML; `<|im_end|>` ends, ids 0, 1, 2 are special."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
    )


def tiny_lm(seed: int = 0, vocab_size: int = 320, **changes: object) -> LlamaForCausalLM:
    """A random 2-layer Llama, width 32, grouped-query attention, tied embeddings, float32, eval."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            **changes,
        }
    )
    return LlamaForCausalLM(config).eval()


def tiny_whisper_config(layers: int = 1) -> WhisperConfig:
    """Encoder shapes only: width 32, up to 30 s."""
    return WhisperConfig(
        d_model=32,
        encoder_layers=layers,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )


def tiny_processor() -> RbaSpeechProcessor:
    """Whisper features and the tiny tokenizer, with the placeholder token added."""
    return RbaSpeechProcessor(WhisperFeatureExtractor(), tiny_tokenizer())


def tiny_speech_model(
    adapter: str = "ctc", seed: int = 0, language_model: LlamaForCausalLM | None = None, **changes: object
) -> RbaSpeechForConditionalGeneration:
    """A random speech LLM: 1-layer encoder, 1-layer adapter, the tiny LM (yours if given)."""
    language_model = language_model or tiny_lm(seed)
    torch.manual_seed(seed + 1)
    config = RbaSpeechConfig(
        **{
            "audio_config": tiny_whisper_config(),
            "text_config": language_model.config,
            "adapter_type": adapter,
            "adapter_width": 32,
            "adapter_layers": 1,
            "adapter_heads": 4,
            "adapter_stack": 4 if adapter == "ctc" else 8,
            "audio_token_id": tiny_processor().audio_token_id,
            **changes,
        }
    )
    return RbaSpeechForConditionalGeneration(config, language_model=language_model).eval()


def tiny_clip(seconds: float, seed: int = 0) -> np.ndarray:
    """A made-up clip: a tone that glides, in noise. (n,) float32 at 16 kHz."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16_000)) / 16_000
    tone = np.sin(2 * np.pi * (200 + 150 * seed + 80 * time) * time)
    return (0.3 * tone + 0.05 * generator.standard_normal(len(time))).astype(np.float32)
