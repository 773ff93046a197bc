"""What can be fetched: the declarations of `catalog.toml` as frozen records. Plain data: fetches nothing."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from rbalign.errors import AssetError, unknown


@dataclass(frozen=True, slots=True)
class Package:
    """One archive of a registry: pip wheel, npm tarball or Debian package, pinned by version and hash."""

    name: str
    kind: str
    version: str
    archive: str
    """The file name of the archive, as the registry serves it."""
    bytes: int
    sha256: str
    integrity: str = ""
    """npm's own "sha512-BASE64" of the tarball; empty for other kinds."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file (or, ending in "/", a folder) inside a package: written `package:path` in the catalogue."""

    package: str
    path: str

    @staticmethod
    def parse(text: str) -> Member:
        """`package:path` -> Member."""
        package, _, path = text.partition(":")
        return Member(package, path)


@dataclass(frozen=True, slots=True)
class Source:
    """Members that, joined in order, are one file of this size and hash."""

    name: str
    """The name that this source's file has in the folder; a runner-up may have another (vocabulary.json for .txt)."""
    bytes: int
    sha256: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Tree:
    """Every file below a folder of a package."""

    member: Member
    into: str
    """Folder of the asset that receives it; "" is the asset's root."""
    count: int
    bytes: int
    sha256: str
    """Of the lines "sha256  path\\n", sorted by path."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A ready-to-load folder, and how it comes about."""

    name: str
    title: str
    licence: str
    provenance: str
    when: str
    """"default": a bare `rba assets fetch` brings it; "asked": by name only."""
    disk: int
    """Bytes of the finished folder, rounded."""
    build: str
    files: tuple[tuple[Source, ...], ...]
    """For each file its sources, the preferred one first."""
    trees: tuple[Tree, ...]

    @property
    def packages(self) -> tuple[str, ...]:
        """Names of the preferred packages, each once, in order."""
        names = [member.package for sources in self.files for member in sources[0].members]
        names += [tree.member.package for tree in self.trees]
        return tuple(dict.fromkeys(names))

    @property
    def key(self) -> str:
        """Hex digest of everything that decides the folder's content: a changed declaration is another folder."""
        wanted = [sources[0].sha256 for sources in self.files], [tree.sha256 for tree in self.trees]
        names = [sources[0].name for sources in self.files], [tree.into for tree in self.trees]
        return hashlib.sha256(repr((self.name, self.build, wanted, names)).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Catalog:
    """All declarations of one catalogue file."""

    packages: dict[str, Package]
    assets: dict[str, Asset]

    def asset(self, name: str) -> Asset:
        """The declaration of `name`; UsageError with the allowed names when there is none."""
        if name not in self.assets:
            raise unknown("asset", name, self.assets, "list them with: rba assets list")
        return self.assets[name]

    def download_bytes(self, asset: Asset) -> int:
        """Bytes of the archives that hold `asset`."""
        return sum(self.packages[name].bytes for name in asset.packages)


def load(path: Path) -> Catalog:
    """Read a catalogue; AssetError when a member names a package that is not declared."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    packages = {name: Package(name=name, **fields) for name, fields in table["package"].items()}
    assets = {name: _asset(name, fields) for name, fields in table["asset"].items()}
    for asset in assets.values():
        members = [member for sources in asset.files for source in sources for member in source.members]
        for member in [*members, *(tree.member for tree in asset.trees)]:
            if member.package not in packages:
                raise AssetError(f"{path.name}: asset {asset.name} uses package {member.package!r}, not declared")
    return Catalog(packages, assets)


@cache
def default() -> Catalog:
    """The catalogue that comes with rba."""
    return load(Path(__file__).with_name("catalog.toml"))


def _asset(name: str, fields: dict[str, Any]) -> Asset:
    return Asset(
        name=name,
        title=fields["title"],
        licence=fields["licence"],
        provenance=fields["provenance"],
        when=fields["when"],
        disk=fields["disk"],
        build=fields.get("build", "copy"),
        files=tuple(_sources(entry) for entry in fields.get("file", ())),
        trees=tuple(_tree(entry) for entry in fields.get("tree", ())),
    )


def _sources(entry: dict[str, Any]) -> tuple[Source, ...]:
    return tuple(
        Source(
            name=_inside(each.get("name", entry["name"])),
            bytes=each["bytes"],
            sha256=each["sha256"],
            members=tuple(Member.parse(text) for text in each["from"]),
        )
        for each in (entry, *entry.get("or", ()))
    )


def _tree(entry: dict[str, Any]) -> Tree:
    return Tree(Member.parse(entry["from"]), _inside(entry["into"]), entry["count"], entry["bytes"], entry["sha256"])


def _inside(name: str) -> str:
    """A relative path that stays in its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise AssetError(f"{name!r} leaves the asset's folder")
    return name
