"""Signatures of texts (MinHash), to find near-duplicates and to refuse texts that a model has seen.

A signature is 128 bytes, so 15,000 sentences travel with a checkpoint in 1.9 MB. They are computed here and not by
a library, because shipped signatures must mean the same for years: `rensa` numbers its algorithm versions and cannot
rebuild its index from stored signatures.

Jaccard similarity is taken over the set of words and word pairs. In a ten-word sentence one changed word leaves 0.73
and two leave 0.5, so 0.7 separates "the same with a slip" from "another question"; with triples alone one changed
word would already leave 0.45. The estimate's standard error at 0.7 is sqrt(0.7 * 0.3 / 128) = 0.04.

Whether anything is near is found without comparing all rows, and exactly. At 0.7, 90 of 128 bytes are equal; the 38
others spoil at most 38 of 42 bands of three bytes, so a near row shares at least 4 whole bands (the pigeonhole
principle). Rows are filed by band, and only those that meet the text in that many files are compared. So texts are
accepted or refused as by comparing with every row, whatever the size.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np

from rbalign.errors import DataError
from rbalign.rundir.files import atomic_write

NEAR = 0.7
"""At or above this similarity two texts count as near-duplicates, and a text as seen."""

PERMUTATIONS = 128
_MAGIC = b"rbalign minhash 1: words and word pairs, 128 x 8 bits\n"
_CHANCE = 2.0**-8
"""Share of equal bytes between signatures of unrelated texts (b-bit minwise hashing, Li and Koenig 2010)."""
TAIL = 8192
"""Newest rows, which are compared one and all: when there are more, all rows are filed anew."""
_BLOCK = 1 << 16
"""Rows compared at once: 8 MB of booleans."""
_NARROWEST = 3
"""Bytes of a band below which filing saves little: thresholds under 0.68 compare every row."""
_DRAWERS = 1 << 16

_RAW = np.random.Philox(key=20250903).random_raw(2 * PERMUTATIONS).astype(np.uint64)
_FACTORS, _OFFSETS = _RAW[:PERMUTATIONS] | np.uint64(1), _RAW[PERMUTATIONS:]


_CHARACTERS = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])")
"""Kana and Han, which stand without spaces: each is a word here."""


def shingles(text: str) -> set[str]:
    """Words and neighbouring word pairs, without case and punctuation."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    words = re.findall(r"\w+(?:'\w+)*", _CHARACTERS.sub(r" \1 ", plain))
    return {*words, *(f"{first} {second}" for first, second in pairwise(words))}


def jaccard(one: str, other: str) -> float:
    """The exact similarity that signatures estimate. Two texts without a word are equal."""
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second) if first | second else 1.0


def signature(text: str) -> np.ndarray:
    """(128,) uint8: the low byte of the least hash of the shingles under 128 multiply-shift permutations."""
    found = shingles(text) or {""}
    digests = b"".join(hashlib.blake2b(shingle.encode(), digest_size=8).digest() for shingle in found)
    hashes = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
    with np.errstate(over="ignore"):
        permuted = (hashes[:, None] * _FACTORS + _OFFSETS) >> np.uint64(32)
    low: np.ndarray = permuted.min(axis=0).astype(np.uint8)
    return low


class _Filed:
    """Rows by the hash of each band of `width` bytes: 4 bytes for each row and band."""

    def __init__(self, rows: np.ndarray, width: int) -> None:
        """rows: (n, 128) uint8."""
        bands = PERMUTATIONS // width
        self.width, self.count = width, len(rows)
        self._order = np.empty((bands, len(rows)), np.uint32)
        self._starts = np.zeros((bands, _DRAWERS + 1), np.uint32)
        for band in range(bands):
            keys = _drawers(rows[:, band * width : (band + 1) * width])
            self._order[band] = np.argsort(keys, kind="stable")
            np.cumsum(np.bincount(keys, minlength=_DRAWERS), out=self._starts[band, 1:])

    def meeting(self, own: np.ndarray, times: int) -> np.ndarray:
        """Numbers of the rows that lie with the signature `own` (128,) in at least `times` files, and a few others."""
        bands = len(self._order)
        keys = _drawers(own[: bands * self.width].reshape(bands, self.width)).astype(np.intp)
        files = np.arange(bands)
        spans = zip(self._order, self._starts[files, keys], self._starts[files, keys + 1], strict=True)
        met = np.sort(np.concatenate([order[first:end] for order, first, end in spans]))
        often = met[times - 1 :]
        return np.unique(often[often == met[: len(often)]])


def _drawers(bands: np.ndarray) -> np.ndarray:
    """(n,) uint16 hashes of (n, width) uint8 (multiply-shift)."""
    factors = (_FACTORS[: bands.shape[1]] & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    folded = (bands.astype(np.uint32) * factors).sum(axis=1, dtype=np.uint32)
    drawers: np.ndarray = (folded >> np.uint32(16)).astype(np.uint16)
    return drawers


def _similarity(equal: int) -> float:
    """Estimated Jaccard similarity of two signatures with that many equal bytes."""
    return max(0.0, (equal / PERMUTATIONS - _CHANCE) / (1.0 - _CHANCE))


def _band_width(least: int) -> int | None:
    """The widest band of which a row with `least` equal bytes must share one; None if bands would be too narrow."""
    widths = range(PERMUTATIONS, _NARROWEST - 1, -1)
    return next((width for width in widths if PERMUTATIONS // width > PERMUTATIONS - least), None)


class Signatures:
    """The signatures of many texts.

    `worst` compares with every row: 15,000 in 1 ms, a million in 160 ms. `has_near` files the rows by band: a few ms
    at a million. Memory: 128 bytes a row, and 168 for the files of `has_near` at 0.7.
    """

    def __init__(self, rows: np.ndarray) -> None:
        """rows: (n, 128) uint8."""
        self._rows = np.ascontiguousarray(rows, dtype=np.uint8).reshape(-1, PERMUTATIONS)
        self._count = len(self._rows)
        self._filed: _Filed | None = None

    @classmethod
    def build(cls, texts: Iterable[str]) -> Signatures:
        """The signatures of texts, in their order."""
        found = cls(np.empty((0, PERMUTATIONS), np.uint8))
        for text in texts:
            found.add(text)
        return found

    def __len__(self) -> int:
        return self._count

    def add(self, text: str) -> None:
        """Append one text."""
        if self._count == len(self._rows):
            room = np.zeros((max(256, self._count), PERMUTATIONS), np.uint8)
            self._rows = np.concatenate([self._rows, room])
        self._rows[self._count] = signature(text)
        self._count += 1

    def union(self, other: Signatures) -> Signatures:
        """These and those of `other` that are not here, in their order."""
        rows = np.concatenate([self._rows[: self._count], other._rows[: other._count]])
        _, first = np.unique(rows, axis=0, return_index=True)
        return Signatures(rows[np.sort(first)])

    def worst(self, text: str) -> float:
        """Estimated Jaccard similarity, in [0, 1], of the text to the most similar one here; 0.0 if there is none."""
        return _similarity(self._most_equal(self._rows[: self._count], signature(text))) if self._count else 0.0

    def has_near(self, text: str, threshold: float = NEAR) -> bool:
        """Whether `worst(text) >= threshold`, always the same answer, without comparing with every row."""
        if threshold <= 0.0 or not self._count:
            return threshold <= 0.0
        least = next((m for m in range(PERMUTATIONS + 1) if _similarity(m) >= threshold), PERMUTATIONS + 1)
        own, width, filed = signature(text), _band_width(least), 0
        if width is not None and self._count > TAIL:
            if self._filed is None or self._filed.width != width or self._count - self._filed.count > TAIL:
                self._filed = None  # the old files go before the new ones come
                self._filed = _Filed(self._rows[: self._count], width)
            filed = self._filed.count
            shared = PERMUTATIONS // width - (PERMUTATIONS - least)
            if self._most_equal(self._rows, own, self._filed.meeting(own, shared)) >= least:
                return True
        return self._most_equal(self._rows[filed : self._count], own) >= least

    def near_duplicates(self, texts: Iterable[str], threshold: float = NEAR) -> list[int]:
        """Positions of the texts that are as similar as `threshold` to one here."""
        return [position for position, text in enumerate(texts) if self.has_near(text, threshold)]

    @staticmethod
    def _most_equal(rows: np.ndarray, own: np.ndarray, chosen: np.ndarray | None = None) -> int:
        """Equal bytes of `own` (128,) and the row most like it, of all rows (n, 128) or of those chosen by number."""
        most = 0
        for start in range(0, len(rows) if chosen is None else len(chosen), _BLOCK):
            block = rows[start : start + _BLOCK] if chosen is None else rows[chosen[start : start + _BLOCK]]
            most = max(most, int((block == own).sum(axis=1, dtype=np.uint16).max()))
        return most

    def save(self, path: Path) -> None:
        """Write them: a line that names the format, then 128 bytes for each text."""
        atomic_write(Path(path), _MAGIC + self._rows[: self._count].tobytes())

    @classmethod
    def load(cls, path: Path) -> Signatures:
        """Read what `save` wrote. DataError for anything else."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read signatures {path}: {error.strerror}", "name an existing file") from None
        if not content.startswith(_MAGIC) or (len(content) - len(_MAGIC)) % PERMUTATIONS:
            raise DataError(f"{path} does not hold rbalign signatures", "write it with Signatures.save")
        return cls(np.frombuffer(content, np.uint8, offset=len(_MAGIC)).reshape(-1, PERMUTATIONS))
