"""The reference policy pi_ref: what the policy was, without a second language model in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rbalign.speechlm.base import Policy
from rbalign.types import View

REFERENCE_FILE = "reference.safetensors"


class Reference:
    """`rule` is AlignConfig.reference: "fixed" (the policy at the start), "refresh:K", or "none".

    LoRA switched off is the start exactly, because LoRA starts at zero. What else trains is kept as a frozen copy, and
    so is LoRA itself once "refresh:K" has taken the policy over, or when training starts from an aligned arm.
    """

    def __init__(self, policy: Policy, rule: str = "fixed") -> None:
        self.policy = policy
        self.wanted = rule != "none"
        self.every = int(rule.partition(":")[2]) if rule.startswith("refresh:") else 0
        self._lora_off = all(not value.any() for name, value in policy.trainable().items() if "lora_B" in name)
        self._kept: dict[str, Tensor] = {}
        if self.wanted:
            self._keep(lambda name: "lora_" not in name or not self._lora_off)

    def begin_update(self, update: int) -> None:
        """Before update `update` (0-based): every K updates the reference becomes the policy."""
        if self.every and update and update % self.every == 0:
            self._lora_off = False
            self._keep(lambda name: True)

    @torch.no_grad()
    def logprobs(self, views: Sequence[View], completions: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """`Policy.forward` under the reference: (R,T) log-probs and mask."""
        with self.active():
            logprobs, mask = self.policy(views, completions)
        return logprobs, mask

    @contextmanager
    def active(self) -> Iterator[None]:
        """The policy's own tensors hold the reference for as long as the block runs."""
        parameters = self.policy.trainable()
        swapped = {name: (parameters[name], parameters[name].data) for name in self._kept}
        for name, (parameter, _) in swapped.items():
            parameter.data = self._kept[name]
        try:
            if self._lora_off:
                with self.policy.lora_off():
                    yield
            else:
                yield
        finally:
            for parameter, current in swapped.values():
                parameter.data = current

    def save(self, folder: Path) -> None:
        """Beside a checkpoint, once a refresh has made the reference differ from the start."""
        from safetensors.torch import save_file

        if self.every:
            save_file(self._kept | {"lora_off": torch.tensor(self._lora_off)}, folder / REFERENCE_FILE)

    def load(self, folder: Path) -> None:
        """The reference of a checkpoint; a fixed one needs no file."""
        from safetensors.torch import load_file

        if self.every and self.wanted:
            kept = load_file(folder / REFERENCE_FILE)
            self._lora_off = bool(kept.pop("lora_off"))
            self._kept = kept

    def _keep(self, chosen: Callable[[str], bool]) -> None:
        self._kept = {name: p.detach().clone() for name, p in self.policy.trainable().items() if chosen(name)}
