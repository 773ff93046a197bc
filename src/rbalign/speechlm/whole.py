"""A whole speech LLM in one folder: encoder, adapter and language model with LoRA merged, processor, tokenizer.

`AutoModel` and `AutoProcessor` load it once `rbalign.speechlm` is imported, which tells them the model type.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rbalign.speechlm.base import Policy


def size_of(policy: Policy) -> int:
    """Bytes of the weights that `save_whole` writes; LoRA, which vanishes in them, counts too."""
    return sum(value.numel() * value.element_size() for value in policy.speech.parameters())


def _umask() -> int:
    """The process's own; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def save_whole(policy: Policy, folder: Path) -> None:
    """Merge the policy's LoRA for good and write the folder. `generate` stops there where the policy's samples stop."""
    policy.merge()
    speech, tokenizer = policy.speech, policy.tokenizer
    speech.generation_config.eos_token_id = list(policy.end_ids)
    pad = tokenizer.pad_token_id
    speech.generation_config.pad_token_id = policy.end_ids[0] if pad is None else pad
    speech.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o666 & ~_umask())  # safetensors makes them readable for their owner alone
    policy.processor.save_pretrained(folder)
