"""Load a causal LM with its tokenizer, once, in float32."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbalign.config.families import FAMILIES
from rbalign.errors import DataError, UsageError
from rbalign.rundir.files import sha256_file, stable_hash

OWN_LORA = "adapter_config.json"
"""Beside a speech LLM that adds LoRA of its own to hear, as Granite Speech 3.3 does."""
OWN_CODE = {"trust_remote_code": False}
"""Code in a folder of weights is never run. Said nothing, transformers would ask at the terminal whether it may."""


@dataclass(frozen=True, slots=True)
class LM:
    """A causal LM in memory. Teacher, backbone and reference may be one and the same."""

    model: Any
    """transformers' `*ForCausalLM`, float32, in eval mode."""
    tokenizer: Any
    name: str
    digest: str
    """Hash of the configuration and weight files: names these weights in manifests and stage inputs."""


def load_lm(path: Path | str, *, name: str | None = None) -> LM:
    """Read a folder that `from_pretrained` takes.

    A speech LLM of `config.families` is a causal LM, too, as long as it hears nothing.
    """
    folder = Path(path)
    family = FAMILIES.get(model_type(folder))
    if family and (folder / OWN_LORA).is_file():
        raise UsageError(
            f"{folder} comes with LoRA of its own to hear, and does not read as its text LLM does",
            "give the text LLM that it was made from",
        )
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, family.model_class if family else "AutoModelForCausalLM")
    return LM(model.eval().requires_grad_(False), tokenizer, name or folder.name, folder_digest(folder))


def model_type(folder: Path) -> str:
    """What config.json says that a folder holds. UsageError if there is none."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError, AttributeError):
        raise UsageError(
            f"no model in {folder}: config.json is missing", "give a folder that save_pretrained wrote"
        ) from None


def load_model(folder: Path, class_name: str) -> Any:
    """The weights of a folder in one of transformers' classes."""
    import transformers

    return load_weights(folder, getattr(transformers, class_name), attn_implementation="sdpa")


def load_weights(folder: Path, loader: Any, *, exact: bool = False, **settings: Any) -> Any:
    """The weights of a folder by `loader.from_pretrained`. DataError if some are missing, or (`exact`) left over.

    Float32, because two-core AVX2 machines run bfloat16 matrix products about 100 times slower.
    """
    import torch

    from rbalign.lm.products import by_products

    settings |= {"dtype": torch.float32, "local_files_only": True, **OWN_CODE}
    model, told = loader.from_pretrained(folder, output_loading_info=True, **settings)
    if told["missing_keys"]:  # transformers would go on with random ones
        lost = sorted(told["missing_keys"])
        name = type(model).__name__
        raise DataError(f"{folder} lacks {len(lost)} of the weights of {name}, first {lost[0]}", "fetch it again")
    if exact and told["unexpected_keys"]:  # and without these, which some other class would have used
        more = sorted(told["unexpected_keys"])
        raise DataError(
            f"{folder} holds {len(more)} weights that {type(model).__name__} has no place for, first {more[0]}",
            "give a folder that was saved from that very class",
        )
    by_products(model)
    return model


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, with its chat template. UsageError if there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **OWN_CODE)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UsageError(f"no tokenizer in {folder}: {reason}", "give a folder that save_pretrained wrote") from None
    if tokenizer.chat_template is None:
        raise UsageError(f"{folder} has no chat template", "rba needs an instruction-tuned model")
    return tokenizer


def folder_digest(folder: Path) -> str:
    """One hash for a model folder: names and contents of its configuration, weights and tokenizer."""
    files = sorted(p for p in folder.iterdir() if p.suffix in {".json", ".safetensors", ".jinja", ".model"})
    return stable_hash({p.name: sha256_file(p) for p in files})[:16]
