"""Load a causal LM with its tokenizer, once, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbalign.errors import UsageError
from rbalign.rundir.files import sha256_file, stable_hash


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

    Float32, because two-core AVX2 machines run bfloat16 matrix products about 100 times slower.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise UsageError(f"no model in {folder}: config.json is missing", "give a folder that save_pretrained wrote")
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    return LM(model.eval().requires_grad_(False), tokenizer, name or folder.name, folder_digest(folder))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, with its chat template. UsageError if there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
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
