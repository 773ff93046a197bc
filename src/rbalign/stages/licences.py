"""Under which licences a thing was made: what model cards and dataset cards say, in one place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath, PureWindowsPath
from typing import Any, NamedTuple

from rbalign.assets.catalog import default as catalog
from rbalign.errors import UsageError
from rbalign.voices.bank import VoiceBank, load_bank

UNKNOWN = "see where it came from"
_HUB_IDS = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "BSD-2-Clause": "bsd-2-clause",
    "BSD-3-Clause": "bsd-3-clause",
    "CC0-1.0": "cc0-1.0",
    "CC-BY-SA-3.0": "cc-by-sa-3.0",
}
"""The catalogue's licences as the front matter of cards names them."""


class Part(NamedTuple):
    """One thing that took part: `role` says as what."""

    role: str
    name: str
    licence: str


def part(role: str, name: str) -> Part:
    """The catalogue's title and licence of an asset; of a folder its last name, for its path is nobody's business."""
    known = catalog().assets.get(name)
    if known is None:
        return Part(role, last_name(name), UNKNOWN)
    return Part(role, known.title.split(":")[0], known.licence)


def voice_parts(manifest: Mapping[str, Any], bank: VoiceBank | None = None) -> list[Part]:
    """The engines behind a dataset's voices, of `bank` or the shipped one; unknown voices are a part of their own."""
    bank = bank or load_bank()
    engines: set[str] = set()
    strange: set[str] = set()
    for split in manifest["splits"].values():
        for voice in split["voices"]:
            try:
                engines.add(bank.voice(voice).engine)
            except UsageError:
                strange.add(last_name(voice))
    found = [part("voices", engine) for engine in sorted(engines)]
    return found + ([Part("voices", ", ".join(sorted(strange)), UNKNOWN)] if strange else [])


def licence_table(parts: Iterable[Part]) -> str:
    """Rows of Markdown."""
    rows = [f"| {part.role} | {cell(part.name)} | {cell(part.licence)} |" for part in parts]
    return "\n".join(["| part | name | licence |", "|---|---|---|", *rows])


def hub_licences(parts: Iterable[Part]) -> list[str]:
    """The different licences of the parts, each once, as front matter names them; `other` for one it cannot name."""
    return sorted({_HUB_IDS.get(part.licence.split(" ")[0].rstrip(";,"), "other") for part in parts})


def cell(text: object) -> str:
    """Text that somebody else wrote, safe in a cell of a Markdown table: one line, no markup."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\|`*\[\]<>])", lambda mark: f"&#{ord(mark[1])};" if mark[1] in "<>|" else f"\\{mark[1]}", line)


def last_name(path: str) -> str:
    """Of a path its last name, whichever way its slashes lean; other words as they are."""
    return PureWindowsPath(PurePath(path)).name or path if re.search(r"[\\/]", path) else path
