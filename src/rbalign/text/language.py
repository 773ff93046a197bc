"""Which language a text is in (py3langid), as far as that can be said of a short one."""

from __future__ import annotations

from functools import cache
from typing import Any

from rbalign.config.languages import CERTAINTY, UNSPACED


def speaks(text: str, language: str, certain: float = CERTAINTY) -> bool:
    """Whether a text may be in `language` (ISO 639-1): False only where another one has the posterior `certain`."""
    found, certainty = _identifier().classify(text)
    return bool(found == language or certainty < certain)


def count_words(text: str, language: str) -> int:
    """Words between spaces; where a language writes none, two letters are one (in Chinese and Japanese about so)."""
    if language not in UNSPACED:
        return len(text.split())
    return -(-sum(character.isalnum() for character in text) // 2)


def guess(text: str) -> str | None:
    """The language of a text, None where it is not certain."""
    found, certainty = _identifier().classify(text)
    return str(found) if certainty >= CERTAINTY else None


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
