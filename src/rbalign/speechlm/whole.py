"""A whole speech LLM in one folder: encoder, adapter and language model with LoRA merged, processor, tokenizer.

`open_whole` makes a policy of it again: its language model is the merged one, so its text side is the arm's own.

`AutoModel` and `AutoProcessor` load it once `rbalign.speechlm` is imported, which tells them the model type.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rbalign.errors import UsageError

if TYPE_CHECKING:
    from rbalign.speechlm.base import Policy
    from rbalign.speechlm.policy import SpeechPolicy


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


def open_whole(folder: Path, system: str | None) -> SpeechPolicy:
    """The embedded speech LLM that `save_whole` wrote. UsageError if the folder holds something else, or a part."""
    from transformers import AutoProcessor

    from rbalign.lm.load import load_model
    from rbalign.speechlm.policy import SpeechPolicy

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        speech = load_model(folder, "AutoModel")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UsageError(f"{folder} cannot be loaded: {reason}", "give a folder that `rba export` wrote") from None
    return SpeechPolicy(speech, processor, system=system)
