"""The cache: one finished folder per asset, made aside and renamed into place, so that it is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rbalign.assets.build import build
from rbalign.assets.catalog import Asset, Catalog
from rbalign.assets.supply import Supply
from rbalign.assets.telling import megabytes, tell
from rbalign.errors import AssetError
from rbalign.rundir.files import fsync_folder, sha256_file

MANIFEST = ".complete"
"""Written last, inside the folder: the declaration's key, where the bytes came from, size and hash of every file."""


@dataclass(frozen=True)
class Store:
    """Assets below `home`.

    `folders` are searched for archives and files before any registry; `mirror` (a folder or an address that holds
    archives under their own names) is asked last.
    """

    home: Path
    catalog: Catalog
    folders: tuple[Path, ...] = ()
    mirror: str = ""
    keep: frozenset[str] = frozenset()
    """Packages whose archives stay in `downloads` when an asset is finished."""

    @property
    def assets(self) -> Path:
        """Parent of the finished folders."""
        return self.home / "assets"

    def has(self, name: str) -> bool:
        """Whether the finished folder is there: manifest of this declaration, and every file at its size."""
        asset = self.catalog.asset(name)
        manifest = self._manifest(asset)
        if manifest is None or manifest["key"] != asset.key:
            return False
        try:
            return all(
                os.stat(self.assets / name / file).st_size == entry["bytes"]
                for file, entry in manifest["files"].items()
            )
        except FileNotFoundError:
            return False

    def folder(self, name: str) -> Path:
        """The finished folder, made on demand. A present one costs a few `stat` calls and takes no lock.

        Raises UsageError for an unknown name, AssetError when the bytes are not to be had or not what is pinned.
        """
        asset = self.catalog.asset(name)
        if not self.has(name):
            with self._lock(asset):
                if not self.has(name):
                    self._make(asset)
        elif self._scraps(asset):
            self._sweep(asset)
        return self.assets / name

    def fetch(self, names: Sequence[str]) -> None:
        """Make several finished folders; an archive that a later one needs too is fetched once."""
        assets = [self.catalog.asset(name) for name in names]
        for index, asset in enumerate(assets):
            later = {package for other in assets[index + 1 :] for package in other.packages}
            replace(self, keep=frozenset(later)).folder(asset.name)

    def verify(self, name: str) -> list[str]:
        """Read every file of a finished folder again; returns what is wrong with it, [] when all is as it was made."""
        asset = self.catalog.asset(name)
        manifest = self._manifest(asset)
        if manifest is None:
            return ["not fetched"]
        problems = [] if manifest["key"] == asset.key else ["made from another declaration"]
        for file, entry in manifest["files"].items():
            path = self.assets / name / file
            if not path.is_file():
                problems.append(f"{file} is missing")
            elif path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
                problems.append(f"{file} has changed")
        return problems

    def remove(self, name: str) -> None:
        """Take a finished folder away, at once for every other process."""
        asset = self.catalog.asset(name)
        with self._lock(asset), tempfile.TemporaryDirectory(prefix=f".partial-{name}-", dir=self.assets) as work:
            if (self.assets / name).exists():
                (self.assets / name).rename(Path(work) / "old")

    def _manifest(self, asset: Asset) -> dict[str, Any] | None:
        path = self.assets / asset.name / MANIFEST
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None
        return manifest

    @contextmanager
    def _lock(self, asset: Asset) -> Iterator[None]:
        """One process at a time makes or removes `asset`; OSError within becomes AssetError."""
        lock = FileLock(self.assets / f".{asset.name}.lock")
        try:
            self.assets.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                tell(f"{asset.name}: another process is fetching it, waiting")
                lock.acquire()
            yield
        except OSError as error:
            if error.errno is None:  # a library's own OSError, not the disk's
                raise
            raise AssetError(
                f"{asset.name} cannot be written below {self.home}: {error}",
                "free some space, mend the rights, or set RBA_HOME to another folder",
            ) from error
        finally:
            lock.release()

    def _make(self, asset: Asset) -> None:
        size = self.catalog.download_bytes(asset)
        tell(
            f"{asset.name}: {asset.title}; {megabytes(size)} to fetch, {megabytes(asset.disk)} on disk; {asset.licence}"
        )
        self._check_space(asset, size)
        for stale in self._partials(asset):
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".partial-{asset.name}-", dir=self.assets))
        try:
            start = time.monotonic()
            with Supply(self.catalog, self.home / "downloads", work, self.folders, self.mirror) as supply:
                origins = supply.gather(asset, work / "raw")
            build(asset.build, work / "raw", work / "ready")
            _write_manifest(work / "ready", asset, origins)
            place = self.assets / asset.name
            if place.exists():
                place.rename(work / "old")
            (work / "ready").rename(place)
            fsync_folder(self.assets)
            tell(f"{asset.name}: ready in {time.monotonic() - start:.0f} s at {place}")
        finally:
            shutil.rmtree(work, ignore_errors=True)
        for kept in self._downloads(asset):
            _forget(kept)

    def _check_space(self, asset: Asset, download: int) -> None:
        """At the worst the archives, their contents and the finished folder lie on the disk at once."""
        need = 2 * download + 2 * asset.disk
        free = shutil.disk_usage(self.assets).free
        if free < need:
            raise AssetError(
                f"{asset.name} needs {megabytes(need)} for a moment, {self.home} has {megabytes(free)}",
                "free some space, or set RBA_HOME to a folder on another disk",
            )

    def _partials(self, asset: Asset) -> list[Path]:
        return list(self.assets.glob(f".partial-{asset.name}-*"))

    def _downloads(self, asset: Asset) -> list[Path]:
        """Archives of `asset` that lie in `downloads` and that nothing to come needs."""
        members = [member for sources in asset.files for source in sources for member in source.members]
        members += [tree.member for tree in asset.trees]
        packages = {member.package for member in members} - self.keep
        archives = [self.home / "downloads" / self.catalog.packages[package].archive for package in packages]
        return [path for path in archives if path.exists()]

    def _scraps(self, asset: Asset) -> bool:
        """Whether a process that died after it had renamed the folder into place left its scraps."""
        return bool(self._partials(asset) or self._downloads(asset))

    def _sweep(self, asset: Asset) -> None:
        """Remove scraps, unless another process is at work on the asset or the cache is read-only."""
        lock = FileLock(self.assets / f".{asset.name}.lock")
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            return
        try:
            for stale in self._partials(asset):
                shutil.rmtree(stale, ignore_errors=True)
            for kept in self._downloads(asset):
                _forget(kept)
        finally:
            lock.release()


def _forget(archive: Path) -> None:
    with FileLock(f"{archive}.lock"):
        archive.unlink(missing_ok=True)


def _write_manifest(folder: Path, asset: Asset, origins: list[str]) -> None:
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        _to_disk(path)
    manifest = {"asset": asset.name, "key": asset.key, "licence": asset.licence, "from": origins, "files": files}
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    _to_disk(path)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
