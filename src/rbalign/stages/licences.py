"""Under which licences a thing was made: what model cards and dataset cards say, in one place."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath, PureWindowsPath
from typing import Any, NamedTuple

from rbalign.assets.catalog import default as catalog
from rbalign.config.endpoints import EndpointConfig, VoiceEndpoint
from rbalign.config.recipe import Recipe
from rbalign.errors import UsageError
from rbalign.voices.bank import VoiceBank, load_bank

UNKNOWN = "see where it came from"
TEACHER, TRANSLATOR = "text teacher", "translator"
"""Roles."""
_HUB_IDS = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "BSD-2-Clause": "bsd-2-clause",
    "BSD-3-Clause": "bsd-3-clause",
    "CC0-1.0": "cc0-1.0",
    "CC-BY-SA-3.0": "cc-by-sa-3.0",
    "CC-BY-4.0": "cc-by-4.0",
    "CC-BY-SA-4.0": "cc-by-sa-4.0",
    "CC-BY-NC-4.0": "cc-by-nc-4.0",
}
"""The catalogue's licences, and usual ones of data, as the front matter of cards names them."""
_PLACE = re.compile(r"/|~|\.\.?[\\/]|[A-Za-z]:[\\/]|file:")


class Part(NamedTuple):
    """One thing that took part: `role` says as what."""

    role: str
    name: str
    licence: str


def part(role: str, name: str, server: EndpointConfig | None = None) -> Part:
    """The catalogue's title and licence of an asset; of a folder its last name, for its path is nobody's business.

    A model behind `server` is called what it is called there, under the licence that the recipe states for it.
    """
    known = catalog().assets.get(name)
    told = server.licence if server else None
    if known is None:
        return Part(role, name if server and not is_place(name) else last_name(name), told or UNKNOWN)
    return Part(role, known.title.split(":")[0], told or known.licence)


def writer_parts(manifest: Mapping[str, Any], recipe: Recipe | None) -> list[Part]:
    """Who wrote the texts of a dataset and, if that is another one, who translated them. Of a server the recipe knows
    more than the manifest."""
    found: list[Part] = []
    if "teacher" in manifest:
        writer = recipe.teacher if recipe and recipe.teacher.author == manifest["teacher"] else None
        found.append(part(TEACHER, manifest["teacher"], writer.endpoint if writer else None))
    if "translator" in manifest:
        found.append(part(TRANSLATOR, manifest["translator"]))
    return found


def voice_parts(
    manifest: Mapping[str, Any], bank: VoiceBank | None = None, servers: Sequence[VoiceEndpoint] = ()
) -> list[Part]:
    """The engines behind a dataset's voices, of `bank` or the shipped one.

    Other voices are parts of their own, one for each licence that the `servers` of their split have in the recipe.
    """
    bank = bank or load_bank()
    engines: set[str] = set()
    strange: dict[str, set[str]] = {}
    for name, split in manifest["splits"].items():
        for voice in split["voices"]:
            try:
                engines.add(bank.voice(voice).engine)
            except UsageError:
                strange.setdefault(_licence(voice, name, servers), set()).add(last_name(voice))
    found = [part("voices", engine) for engine in sorted(engines)]
    return found + [Part("voices", ", ".join(sorted(names)), licence) for licence, names in sorted(strange.items())]


def _licence(voice: str, split: str, servers: Iterable[VoiceEndpoint]) -> str:
    """Of a voice in a split. A folder of speakers may not be here any more, so any name may be from there."""
    own = [server for server in servers if server.split == split]
    naming = [server for server in own if voice in server.voices]
    told = {server.licence for server in naming or (server for server in own if not server.voices)}
    return (told.pop() if len(told) == 1 else None) or UNKNOWN


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


def is_place(text: str) -> bool:
    """Whether it names a place on a machine: a path that begins like one, or leads to something here."""
    return _PLACE.match(text) is not None or os.path.exists(text)


def last_name(path: str) -> str:
    """Of a path its last name, whichever way its slashes lean; other words as they are."""
    return PureWindowsPath(PurePath(path)).name or path if re.search(r"[\\/]", path) else path
