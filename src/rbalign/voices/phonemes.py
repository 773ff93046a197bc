"""Text to phonemes, by hibari's port of misaki: the alphabet that Kokoro and hibari were trained on. No GPL code.

Numbers, dates, currencies and abbreviations are read by it too; unknown words by its small network.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

from rbalign import assets


@cache
def hibari_package() -> ModuleType:
    """The `hibari` package of the fetched asset: the only asset whose code is imported (it is hash-checked)."""
    folder = str(assets.folder("hibari"))
    if folder not in sys.path:
        sys.path.append(folder)
    import hibari

    module: ModuleType = hibari
    return module


@cache
def g2p(british: bool) -> Callable[[str], str]:
    """A function from one line of text to its phonemes, American or British. 0.3 s to load, 1 ms a sentence."""
    hibari_package()
    from hibari.g2p import G2P

    reader: Callable[[str], str] = G2P(british=british)
    return reader


@cache
def pronounced_words() -> frozenset[str]:
    """The 90,000 American English words, with their case, that the checked part of misaki's lexicon pronounces."""
    path = Path(hibari_package().__file__ or "").parent / "assets" / "lexicon_us_gold.json.gz"
    return frozenset(json.loads(gzip.decompress(path.read_bytes())))


def phoneme_chunks(text: str, british: bool, limit: int) -> list[str]:
    """Phonemes of a text in pieces of at most `limit` symbols: a synthesiser's context is short.

    Whole sentences are gathered while they fit; a sentence that is too long alone is cut at clauses, then at words.
    """
    read = g2p(british)
    pieces: list[str] = []
    for sentence in hibari_package().Hibari.split_sentences(text):
        phonemes = read(sentence)
        pieces += [phonemes] if len(phonemes) <= limit else _cut(phonemes, limit)
    return _gather([piece for piece in pieces if piece.strip()], limit)


def _cut(phonemes: str, limit: int) -> list[str]:
    """Pieces of at most `limit` symbols: at clause ends, then between words, then (one endless word) anywhere."""
    words: list[str] = []
    for clause in re.split(r"(?<=[,;:—]) ", phonemes):
        words += [clause] if len(clause) <= limit else clause.split(" ")
    return [word[start : start + limit] for word in words for start in range(0, len(word), limit)]


def _gather(pieces: list[str], limit: int) -> list[str]:
    gathered: list[str] = []
    for piece in pieces:
        if gathered and len(gathered[-1]) + 1 + len(piece) <= limit:
            gathered[-1] += " " + piece
        else:
            gathered.append(piece)
    return gathered
