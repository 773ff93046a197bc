"""The reference policy pi_ref: what the policy was, without a second language model in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rbalign.speechlm.base import Policy
from rbalign.types import View

REFERENCE_FILE = "reference.safetensors"


class Reference:
    """`rule` is AlignConfig.reference: "fixed" (the policy at the start), "refresh:K", or "none".

    The untouched language model is the start exactly: LoRA starts at zero, and of weights that train themselves there
    is a copy. What else trains is kept as a frozen copy, and so is all that trains once "refresh:K" has taken the
    policy over, or when training starts from an aligned arm.
    """

    def __init__(self, policy: Policy, rule: str = "fixed") -> None:
        self.policy = policy
        self.wanted = rule != "none"
        self.every = int(rule.partition(":")[2]) if rule.startswith("refresh:") else 0
        self._untouched = policy.at_start()
        self._kept: dict[str, Tensor] = {}
        if self.wanted:
            self._keep(policy.restored() if self._untouched else ())

    def begin_update(self, update: int) -> None:
        """Before update `update` (0-based): every K updates the reference becomes the policy."""
        if self.every and update and update % self.every == 0:
            self._untouched = False
            self._keep()

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
            if self._untouched:
                with self.policy.untouched():
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
            save_file(self._kept | {"untouched": torch.tensor(self._untouched)}, folder / REFERENCE_FILE)

    def load(self, folder: Path) -> None:
        """The reference of a checkpoint; a fixed one needs no file."""
        from safetensors.torch import load_file

        if self.every and self.wanted:
            kept = load_file(folder / REFERENCE_FILE)
            self._untouched = bool(kept.pop("untouched"))
            self._kept = kept

    def _keep(self, but: Collection[str] = ()) -> None:
        self._kept = {name: p.detach().clone() for name, p in self.policy.trainable().items() if name not in but}
