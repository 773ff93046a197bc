"""From the raw files of an asset to the folder that a library loads: exact conversions, done once into the cache."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rbalign.errors import AssetError


def build(kind: str, raw: Path, folder: Path) -> None:
    """Turn the files in `raw` into the finished `folder` (which must not exist); `raw` may be used up."""
    if kind not in BUILDERS:
        raise AssetError(f"no builder {kind!r}; there are: {', '.join(BUILDERS)}")
    BUILDERS[kind](raw, folder)


def _copy(raw: Path, folder: Path) -> None:
    raw.rename(folder)


PLAIN_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}\
{% if message.role == 'system' %}{{ message.content }}

{% elif message.role == 'user' %}{{ message.content }}
=\
{% else %} {{ message.content }}

{% endif %}{% endfor %}"""
"""The chat of a base model, which no release gave a template: examples in the system prompt look like what follows."""


def _gguf_base_to_hf(raw: Path, folder: Path) -> None:
    """The same for a base model: its tokenizer gets `PLAIN_TEMPLATE`, whose empty line ends a turn."""
    _gguf_to_hf(raw, folder, chat_template=PLAIN_TEMPLATE, eos_token="\n\n")


def _gguf_to_hf(raw: Path, folder: Path, **of_tokenizer: str) -> None:
    """GGUF -> float32 safetensors with the dequantised weights as they are: 20 s once instead of at every load.

    transformers refuses to save a model that it loaded from GGUF ("quantized with gguf"), so the weights move into a
    fresh model of the same config without its `quantization_config`. What else lies in `raw` (terms) goes along.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(raw, gguf_file="model.gguf", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(raw, gguf_file="model.gguf")
    config = type(loaded.config).from_dict(
        {name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
    )
    config.dtype = torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    for name, value in of_tokenizer.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    for path in raw.iterdir():
        if path.name != "model.gguf":
            shutil.copy(path, folder)


def _openai_whisper_to_hf(raw: Path, folder: Path) -> None:
    """OpenAI's .pt (fp16, read with weights_only) -> WhisperForConditionalGeneration in float32: equal numbers."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    (path,) = raw.glob("*.pt")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    config = WhisperConfig(**whisper_config(checkpoint["dims"]), dtype=torch.float32)
    model = WhisperForConditionalGeneration(config)
    state = {f"model.{whisper_key(name)}": value.float() for name, value in checkpoint["model_state_dict"].items()}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)


def whisper_config(dims: dict[str, int]) -> dict[str, Any]:
    """OpenAI's `dims` -> fields of WhisperConfig. A vocabulary of 51864 is the English-only one (ids one lower)."""
    english = dims["n_vocab"] == 51864
    end = 50256 if english else 50257
    return {
        "vocab_size": dims["n_vocab"],
        "num_mel_bins": dims["n_mels"],
        "d_model": dims["n_audio_state"],
        "encoder_layers": dims["n_audio_layer"],
        "encoder_attention_heads": dims["n_audio_head"],
        "encoder_ffn_dim": 4 * dims["n_audio_state"],
        "decoder_layers": dims["n_text_layer"],
        "decoder_attention_heads": dims["n_text_head"],
        "decoder_ffn_dim": 4 * dims["n_text_state"],
        "max_source_positions": dims["n_audio_ctx"],
        "max_target_positions": dims["n_text_ctx"],
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": end + 1,
        "suppress_tokens": None,
        "begin_suppress_tokens": [220, end],
    }


_WHISPER_RENAMES = (
    (r"blocks\.", "layers."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.attn\.", ".self_attn."),
    (r"_attn\.query\.", "_attn.q_proj."),
    (r"_attn\.key\.", "_attn.k_proj."),
    (r"_attn\.value\.", "_attn.v_proj."),
    (r"_attn\.out\.", "_attn.out_proj."),
    (r"^encoder\.ln_post\.", "encoder.layer_norm."),
    (r"^decoder\.ln\.", "decoder.layer_norm."),
    (r"^encoder\.positional_embedding$", "encoder.embed_positions.weight"),
    (r"^decoder\.positional_embedding$", "decoder.embed_positions.weight"),
    (r"^decoder\.token_embedding\.", "decoder.embed_tokens."),
)


def whisper_key(name: str) -> str:
    """OpenAI's parameter name -> transformers' (below `model.`)."""
    for pattern, replacement in _WHISPER_RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _g722_to_wav(raw: Path, folder: Path) -> None:
    """Asterisk's prompts: G.722 -> 16 kHz WAV, and `prompts.jsonl` with {"file", "text"} for each that has words."""
    import av
    import numpy as np
    import soundfile

    texts = dict(re.findall(r"^([^;:\s]+):\s+(\S.*)$", _gunzip(raw / "core-sounds-en.txt.gz"), flags=re.MULTILINE))
    rows = []
    for clip in sorted((raw / "g722").rglob("*.g722")):
        name = clip.relative_to(raw / "g722").with_suffix("").as_posix()
        if name not in texts or texts[name].lstrip().startswith(("[", "(", "<")):
            continue  # tones, silences and noises
        with av.open(str(clip), format="g722") as stream:
            samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in stream.decode(audio=0)])
        target = folder / f"{name}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, samples, 16_000, subtype="PCM_16")
        rows.append({"file": f"{name}.wav", "text": texts[name].strip()})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.copy(raw / "copyright", folder / "copyright")


def _gunzip(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode("utf-8")


BUILDERS: dict[str, Callable[[Path, Path], None]] = {
    "copy": _copy,
    "gguf-to-hf": _gguf_to_hf,
    "gguf-base-to-hf": _gguf_base_to_hf,
    "openai-whisper-to-hf": _openai_whisper_to_hf,
    "g722-to-wav": _g722_to_wav,
}
