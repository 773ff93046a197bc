"""Files out of wheels, npm tarballs and Debian packages, by exact name and size. No code of a package is run.

An archive's hash is checked before it comes here, so its structure is trusted as far as its pin is.
"""

from __future__ import annotations

import io
import lzma
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from rbalign.errors import AssetError

CHUNK = 1 << 20


class Archive(Protocol):
    """An open archive."""

    def names(self) -> list[str]:
        """Paths of the regular files."""

    def open(self, name: str) -> BinaryIO:
        """The file's bytes; KeyError when there is none of that name."""


class _Zip:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def names(self) -> list[str]:
        return [info.filename for info in self._archive.infolist() if not info.is_dir()]

    def open(self, name: str) -> BinaryIO:
        return self._archive.open(name)  # type: ignore[return-value]  # ZipExtFile reads as BinaryIO does


class _Tar:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def names(self) -> list[str]:
        return [member.name for member in self._archive if member.isreg()]

    def open(self, name: str) -> BinaryIO:
        stream = self._archive.extractfile(name)
        if stream is None:
            raise KeyError(name)
        return stream  # type: ignore[return-value]


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open a .whl, .tgz or .deb; AssetError when it is not what its name says."""
    try:
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                yield _Zip(wheel)
        elif path.suffix == ".tgz":
            with tarfile.open(path, "r:gz") as tarball:
                yield _Tar(tarball)
        else:
            with tarfile.open(fileobj=io.BytesIO(_deb_data(path))) as data:
                yield _Tar(data)
    except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise AssetError(f"{path.name} is not a readable archive: {error}") from error


def copy_member(archive: Archive, name: str, to: BinaryIO, limit: int) -> int:
    """Append member `name` to `to`; returns its bytes. AssetError when absent or longer than `limit` bytes."""
    try:
        stream = archive.open(name)
    except KeyError:
        raise AssetError(f"the package holds no {name!r}") from None
    copied = 0
    with stream:
        while chunk := stream.read(CHUNK):
            copied += len(chunk)
            if copied > limit:
                raise AssetError(f"{name!r} is longer than the {limit:,} bytes that the catalogue allows")
            to.write(chunk)
    return copied


def names_below(archive: Archive, prefix: str) -> list[str]:
    """Paths relative to `prefix` (which ends in "/") of the files below it, sorted; AssetError for a way out of it."""
    names = sorted(name.removeprefix(prefix) for name in archive.names() if name.startswith(prefix))
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise AssetError(f"{name!r} leaves the asset's folder")
    return names


def _deb_data(path: Path) -> bytes:
    """The `data.tar.*` of a Debian package: an `ar` archive of 60-byte headers and 2-byte aligned bodies (deb(5))."""
    with path.open("rb") as file:
        if file.read(8) != b"!<arch>\n":
            raise AssetError(f"{path.name} is not a Debian package")
        while header := file.read(60):
            name, digits = header[:16].decode("ascii", "replace").strip().rstrip("/"), header[48:58].strip()
            if not digits.isdigit():
                break
            size = int(digits)
            body = file.read(size + size % 2)[:size]
            if name.startswith("data.tar"):
                return body
    raise AssetError(f"{path.name} holds no data.tar")
