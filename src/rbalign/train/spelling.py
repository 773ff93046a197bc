"""Which of the LLM's tokens a CTC adapter may emit, and how any text is spelled with them.

Most of a vocabulary is never said. Measured on SmolLM2 (49,152 tokens), two-core CPU: one training step on 83 s of
speech costs 5.0 s with all of them, 3.8 s with 8,192 and 3.4 s with 2,800.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable
from typing import Any

KEYBOARD = frozenset(string.ascii_letters + string.digits + string.punctuation)


def choose_tokens(tokenizer: Any, texts: Iterable[str], min_count: int = 2) -> list[int]:
    """Token ids, ascending: those seen at least `min_count` times in `texts`, and every single keyboard character
    with and without a space before it, so that any plain text can be spelled."""
    counts: Counter[int] = Counter()
    for ids in _encode(tokenizer, list(texts)):
        counts.update(ids)
    special = set(tokenizer.all_special_ids)
    chosen = {token for token, count in counts.items() if count >= min_count and token not in special}
    pieces = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    chosen |= {token for token, piece in enumerate(pieces) if piece.strip(" ") in KEYBOARD and len(piece) <= 2}
    return sorted(chosen)


class Spelling:
    """Texts as rows of the CTC table: the tokenizer's own tokens where they are allowed, else the fewest pieces."""

    def __init__(self, tokenizer: Any, token_ids: list[int]) -> None:
        self.tokenizer = tokenizer
        self.token_ids = token_ids
        self._row = {token: row for row, token in enumerate(token_ids)}
        self._pieces = dict(zip(tokenizer.convert_ids_to_tokens(token_ids), token_ids, strict=True))
        self._longest = max(map(len, self._pieces))
        self._known: dict[int, list[int] | None] = {}

    def rows(self, text: str) -> list[int] | None:
        """Table rows that spell `text`; None if a character of it is outside."""
        found: list[int] = []
        for token in _encode(self.tokenizer, [text])[0]:
            pieces = [self._row[token]] if token in self._row else self._split(token)
            if pieces is None:
                return None
            found.extend(pieces)
        return found

    def text(self, rows: Iterable[int]) -> str:
        """The text that table rows spell."""
        decoded: str = self.tokenizer.decode([self.token_ids[row] for row in rows])
        return decoded

    def _split(self, token: int) -> list[int] | None:
        """The fewest allowed pieces that spell a token which is not allowed itself, as table rows."""
        if token not in self._known:
            word = self.tokenizer.convert_ids_to_tokens(token)
            best: list[list[int] | None] = [[]] + [None] * len(word)
            for end in range(1, len(word) + 1):
                for start in range(max(0, end - self._longest), end):
                    piece, before = self._pieces.get(word[start:end]), best[start]
                    if piece is None or before is None:
                        continue
                    longer = best[end]
                    if longer is None or len(before) + 1 < len(longer):
                        best[end] = [*before, self._row[piece]]
            self._known[token] = best[-1]
        return self._known[token]


def _encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return encoded
