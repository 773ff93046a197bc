"""Small packages of the three kinds and a catalogue that pins them: the fetch is real, only the content is small."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path

from rbalign.assets.catalog import Catalog, load

PART_ONE, PART_TWO = b"first half, " * 4000, b"second half. " * 4000
MODEL = PART_ONE + PART_TWO
TEXTS = {"a.txt": b"alpha\n", "deep/b.txt": b"beta\n"}
VOICE, SOUND = b"\x01\x02" * 500, b"RIFF of a kind"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> Path:
    """A wheel that pip accepts."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = {
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{stem}.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/RECORD": b"",
    }
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in (files | info).items():
            wheel.writestr(zipfile.ZipInfo(member), content)
    return path


def tar_bytes(files: dict[str, bytes], mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def write_deb(path: Path, files: dict[str, bytes]) -> Path:
    """A Debian package: an `ar` archive of three members, each padded to an even length."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": tar_bytes({"./control": b"odd"}, "w:xz"),
        "data.tar.xz": tar_bytes(files, "w:xz"),
    }
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))
    return path


class World:
    """Archives in `shelf`, and the catalogue that pins them. Change `table` and call `catalog()` again to lie."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.shelf = root / "shelf"
        self.shelf.mkdir()
        tree = "".join(f"{sha256(content)}  {name}\n" for name, content in sorted(TEXTS.items())).encode()
        wheels = {
            "rba-fake-part-one": {"one/part.bin": PART_ONE},
            "rba-fake-part-two": {"two/part.bin": PART_TWO, **{f"two/texts/{n}": c for n, c in TEXTS.items()}},
            "rba-fake-runner-up": {"all/model.bin": MODEL},
        }
        archives = {name: write_wheel(self.shelf, name, "1.0", files) for name, files in wheels.items()}
        tgz = self.shelf / "rba-fake-js-1.0.tgz"
        tgz.write_bytes(tar_bytes({"package/voices/v.bin": VOICE}, "w:gz"))
        archives["rba-fake-js"] = tgz
        archives["rba-fake-deb"] = write_deb(self.shelf / "rba-fake-deb_1.0_all.deb", {"./usr/share/s.wav": SOUND})
        kinds = {".whl": "wheel", ".tgz": "npm", ".deb": "deb"}
        self.table: dict[str, dict[str, dict[str, object]]] = {
            "package": {
                name: {
                    "kind": kinds[path.suffix],
                    "version": "1.0",
                    "archive": path.name,
                    "bytes": path.stat().st_size,
                    "sha256": sha256(path.read_bytes()),
                }
                for name, path in archives.items()
            },
            "asset": {},
        }
        whole = {"bytes": len(MODEL), "sha256": sha256(MODEL)}
        model = {
            "name": "model.bin",
            **whole,
            "from": ["rba-fake-part-one:one/part.bin", "rba-fake-part-two:two/part.bin"],
            "or": [{**whole, "from": ["rba-fake-runner-up:all/model.bin"]}],
        }
        self.declare("model", file=[model])
        self.declare(
            "texts",
            tree=[
                {
                    "from": "rba-fake-part-two:two/texts/",
                    "into": "texts",
                    "count": len(TEXTS),
                    "bytes": sum(map(len, TEXTS.values())),
                    "sha256": sha256(tree),
                }
            ],
        )
        self.declare("voice", file=[self.one("v.bin", VOICE, "rba-fake-js:package/voices/v.bin")])
        self.declare("sound", file=[self.one("s.wav", SOUND, "rba-fake-deb:./usr/share/s.wav")])

    @staticmethod
    def one(name: str, content: bytes, member: str) -> dict[str, object]:
        return {"name": name, "bytes": len(content), "sha256": sha256(content), "from": [member]}

    def declare(self, name: str, **fields: object) -> None:
        common = {"title": name, "licence": "none", "provenance": "made here", "when": "default", "disk": 1000}
        self.table["asset"][name] = {**common, **fields}

    def catalog(self) -> Catalog:
        return load(self.catalog_path())

    def catalog_path(self) -> Path:
        path = self.root / "catalog.toml"
        path.write_text(_toml(self.table), encoding="utf-8")
        return path


def _toml(table: dict[str, dict[str, dict[str, object]]]) -> str:
    """JSON's strings, numbers and lists are TOML's; tables in lists are written inline."""
    lines = []
    for section, entries in table.items():
        for name, fields in entries.items():
            lines.append(f'[{section}."{name}"]')
            lines += [f"{key} = {_value(value)}" for key, value in fields.items()]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    return json.dumps(value)
