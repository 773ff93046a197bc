"""Where the bytes come from: a folder the user names, the registries, runner-up packages, a mirror.

Nothing is parsed before its hash is right.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from filelock import FileLock

from rbalign.assets import archives, registries
from rbalign.assets.catalog import Asset, Catalog, Package, Source, Tree
from rbalign.assets.telling import megabytes, tell
from rbalign.errors import AssetError
from rbalign.rundir.files import sha256_file


class Supply:
    """Gathers the raw files of assets into a folder. A context manager: it holds archives open while it lasts.

    Archives from registries lie verified in `downloads` until the asset is finished, so that a fetch which was cut
    short goes on with the next archive.
    """

    def __init__(self, catalog: Catalog, downloads: Path, work: Path, folders: tuple[Path, ...], mirror: str) -> None:
        self._catalog = catalog
        self._downloads = downloads
        self._work = work
        self._folders = folders
        self._mirror = mirror
        self._open: dict[str, archives.Archive] = {}
        self._failed: dict[tuple[str, bool], AssetError] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Supply:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def gather(self, asset: Asset, raw: Path) -> list[str]:
        """Fill `raw` with the asset's files, each checked; returns what each came from. AssetError when one is
        nowhere to be had."""
        raw.mkdir(parents=True)
        origins = [self._file(asset, sources, raw) for sources in asset.files]
        origins += [self._tree(tree, raw) for tree in asset.trees]
        return list(dict.fromkeys(origins))

    def _file(self, asset: Asset, sources: tuple[Source, ...], raw: Path) -> str:
        for source in sources:
            for folder in self._folders:
                for path in (folder / source.name, folder / asset.name / source.name):
                    if path.is_file() and path.stat().st_size == source.bytes and sha256_file(path) == source.sha256:
                        _place(raw, source.name).write_bytes(path.read_bytes())
                        return str(path)
        reasons: list[str] = []
        for mirrored in (False, True) if self._mirror else (False,):
            for source in sources:
                try:
                    self._join(source, raw, mirrored)
                    return " + ".join(dict.fromkeys(member.package for member in source.members))
                except AssetError as error:
                    reasons.append(error.problem)
        raise _nowhere(sources[0].name, reasons)

    def _join(self, source: Source, raw: Path, mirrored: bool) -> None:
        """Join the members of `source` into its file. What does not match the hash leaves no file."""
        target = _place(raw, source.name)
        left = source.bytes
        with target.open("wb") as file:
            for member in source.members:
                left -= archives.copy_member(self._archive(member.package, mirrored), member.path, file, left)
        if left or sha256_file(target) != source.sha256:
            target.unlink()
            raise AssetError(f"{source.name} from {source.members[0].package} is not the file that the catalogue pins")

    def _tree(self, tree: Tree, raw: Path) -> str:
        reasons: list[str] = []
        for mirrored in (False, True) if self._mirror else (False,):
            try:
                self._unpack(tree, raw / tree.into, mirrored)
                return tree.member.package
            except AssetError as error:
                reasons.append(error.problem)
        raise _nowhere(tree.member.package, reasons)

    def _unpack(self, tree: Tree, target: Path, mirrored: bool) -> None:
        archive = self._archive(tree.member.package, mirrored)
        names = archives.names_below(archive, tree.member.path)
        left, lines = tree.bytes, []
        for name in names:
            path = _place(target, name)
            with path.open("wb") as file:
                left -= archives.copy_member(archive, tree.member.path + name, file, left)
            lines.append(f"{sha256_file(path)}  {name}\n")
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        if left or len(names) != tree.count or digest != tree.sha256:
            raise AssetError(f"{tree.member.path} of {tree.member.package} is not what the catalogue pins")

    def _archive(self, name: str, mirrored: bool) -> archives.Archive:
        """The package's archive, opened once; a package that failed is not asked for again."""
        if name in self._open:
            return self._open[name]
        if (name, mirrored) in self._failed:
            raise self._failed[name, mirrored]
        package = self._catalog.packages[name]
        try:
            path = self._from_folders(package) or self._from_network(package, mirrored)
        except AssetError as error:
            self._failed[name, mirrored] = error
            raise
        self._open[name] = self._stack.enter_context(archives.opened(path))
        return self._open[name]

    def _from_folders(self, package: Package) -> Path | None:
        for folder in self._folders:
            path = folder / package.archive
            if path.is_file():
                if sha256_file(path) == package.sha256:
                    return path
                tell(f"{path} is not the {package.archive} that the catalogue pins: left aside")
        return None

    def _from_network(self, package: Package, mirrored: bool) -> Path:
        """A verified copy in the work folder, through the shared downloads: one process fetches, others wait."""
        self._downloads.mkdir(parents=True, exist_ok=True)
        kept = self._downloads / package.archive
        mine = self._work / package.archive
        with FileLock(f"{kept}.lock"):
            if not (kept.is_file() and sha256_file(kept) == package.sha256):
                with tempfile.TemporaryDirectory(prefix="client-", dir=self._work) as scratch:
                    if mirrored:
                        arrived = _from_mirror(self._mirror, package, Path(scratch))
                    else:
                        arrived = registries.download(package, Path(scratch))
                    check(arrived, package)
                    arrived.replace(kept)
            try:
                os.link(kept, mine)
            except OSError:
                shutil.copyfile(kept, mine)
        return mine


def check(path: Path, package: Package) -> None:
    """AssetError unless `path` holds exactly the archive that the catalogue pins."""
    digest = sha256_file(path)
    if digest != package.sha256:
        raise AssetError(f"{package.archive} has sha256 {digest[:12]}…, pinned is {package.sha256[:12]}…: not opened")


def _from_mirror(base: str, package: Package, folder: Path) -> Path:
    """The archive from `base`, a folder or an address below which archives lie under their own names."""
    address = base if "://" in base else Path(base).expanduser().resolve().as_uri()
    address = f"{address.rstrip('/')}/{urllib.parse.quote(package.archive)}"
    path = folder / package.archive
    tell(f"mirror: {package.archive} ({megabytes(package.bytes)})")
    try:
        with urllib.request.urlopen(address, timeout=60) as stream, path.open("wb") as file:
            shutil.copyfileobj(stream, file)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise AssetError(f"the mirror could not give {package.archive}: {error}") from error
    return path


def _place(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _nowhere(what: str, reasons: list[str]) -> AssetError:
    told = "; ".join(dict.fromkeys(reasons))
    return AssetError(
        f"{what} could not be had: {told}",
        "connect once to the package registries, or name a folder that holds the archives: "
        "rba assets fetch --from FOLDER (or RBA_ASSETS=FOLDER, or a mirror: RBA_MIRROR=BASE)",
    )
