"""What a frozen part makes of a clip, kept by the clip's own bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor

from rbalign.types import View

ENCODE_BATCH = 16
"""Clips of alike length computed at a time."""


class ClipCache:
    """Tensors of frozen parts by the clip's own bytes, least recently used out first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.computed: dict[str, int] = {}
        """How many clips were computed, by kind: the encoder must run once per clip."""
        self._kept: OrderedDict[tuple[str, bytes], Tensor] = OrderedDict()

    def get(self, kind: str, views: Sequence[View], compute: Callable[[list[View]], list[Tensor]]) -> list[Tensor]:
        """One tensor for each view; clips that are not there yet are computed in batches of equal kind."""
        names = [(kind, hashlib.blake2b(view.flac, digest_size=16).digest()) for view in views]
        have = {name: self._kept[name] for name in names if name in self._kept}
        missing = {name: view for name, view in zip(names, views, strict=True) if name not in have}
        todo = sorted(missing, key=lambda name: missing[name].seconds)
        for start in range(0, len(todo), ENCODE_BATCH):
            batch = todo[start : start + ENCODE_BATCH]
            made = compute([missing[name] for name in batch])
            self.computed[kind] = self.computed.get(kind, 0) + len(batch)
            for name, value in zip(batch, made, strict=True):
                have[name] = self._kept[name] = value
                self.used += value.nbytes
        for name in names:
            if name in self._kept:
                self._kept.move_to_end(name)
        while self.used > self.limit and self._kept:
            self.used -= self._kept.popitem(last=False)[1].nbytes
        return [have[name] for name in names]

    def drop(self, kind: str) -> None:
        """Forget one kind: what made it has changed."""
        for name in [name for name in self._kept if name[0] == kind]:
            self.used -= self._kept.pop(name).nbytes
