"""What a frozen part makes of a clip, kept by the clip's own bytes: in memory, and on the disk for other processes."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rbalign.types import View

ENCODE_BATCH = 16
"""Clips of alike length computed at a time."""
FOLDER_BYTES = 4 << 30
"""Room on the disk for about 70,000 clips of audio positions, of all connectors together."""


class ClipFolder:
    """Tensors of clips, a file each, for as long as the parts that made them stay the same.

    Hearing a clip with an LLM that reads along takes 0.4 s of a core, and every arm, every process and every fork of
    a run hears the same clips. The folder may be deleted at any time; a file that cannot be read counts as not there.
    """

    def __init__(self, root: Path, key: str, limit: int = FOLDER_BYTES) -> None:
        """`root/key`. Folders of other keys go, those used least recently first, until half of `limit` is free."""
        self.path, self.limit = root / key, limit
        others = [place for place in root.iterdir() if place.name != key] if root.is_dir() else []
        sizes = {place: _bytes(place) for place in others}
        self._used = _bytes(self.path)
        for place in sorted(others, key=lambda place: place.stat().st_mtime):
            if self._used + sum(sizes.values()) <= limit // 2:
                break
            shutil.rmtree(place, ignore_errors=True)
            del sizes[place]
        self._room = limit - sum(sizes.values())
        if self.path.is_dir():
            os.utime(self.path)

    def read(self, kind: str, digest: bytes) -> Tensor | None:
        """The tensor of a clip, if it is there."""
        try:
            kept: Tensor = load_file(self._file(kind, digest))[kind]
        except (OSError, SafetensorError, KeyError):
            return None
        return kept

    def write(self, kind: str, digest: bytes, value: Tensor) -> None:
        """Keep a tensor while there is room. A disk that refuses is no fault: it is computed again."""
        if self._used + value.nbytes > self._room:
            return
        file = self._file(kind, digest)
        aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({kind: value.detach().cpu().contiguous()}, aside)
            aside.replace(file)
            self._used += value.nbytes
        except (OSError, SafetensorError):
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    def _file(self, kind: str, digest: bytes) -> Path:
        name = digest.hex()
        return self.path / name[:2] / f"{name[2:]}.{kind}.safetensors"


class ClipCache:
    """Tensors of frozen parts by the clip's own bytes, least recently used out first."""

    def __init__(self, limit: int, folder: ClipFolder | None = None) -> None:
        self.limit, self.folder = limit, folder
        self.used = 0
        self.computed: dict[str, int] = {}
        """How many clips were computed, by kind: the encoder must run once per clip."""
        self._kept: OrderedDict[tuple[str, bytes], Tensor] = OrderedDict()

    def get(
        self, kind: str, views: Sequence[View], compute: Callable[[list[View]], list[Tensor]], *, share: bool = False
    ) -> list[Tensor]:
        """One tensor for each view; clips that are not there yet are computed in batches of equal kind.

        `share`: look in the folder, too, and keep there what is computed.
        """
        names = [(kind, hashlib.blake2b(view.flac, digest_size=16).digest()) for view in views]
        have = {name: self._kept[name] for name in names if name in self._kept}
        missing = {name: view for name, view in zip(names, views, strict=True) if name not in have}
        folder = self.folder if share else None
        if folder:
            for name in list(missing):
                if (value := folder.read(*name)) is not None:
                    del missing[name]
                    self._keep(name, value, have)
        todo = sorted(missing, key=lambda name: missing[name].seconds)
        for start in range(0, len(todo), ENCODE_BATCH):
            batch = todo[start : start + ENCODE_BATCH]
            made = compute([missing[name] for name in batch])
            self.computed[kind] = self.computed.get(kind, 0) + len(batch)
            for name, value in zip(batch, made, strict=True):
                self._keep(name, value, have)
                if folder:
                    folder.write(*name, value)
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

    def _keep(self, name: tuple[str, bytes], value: Tensor, have: dict[tuple[str, bytes], Tensor]) -> None:
        have[name] = self._kept[name] = value
        self.used += value.nbytes


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
