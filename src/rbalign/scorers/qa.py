"""Right or wrong, against accepted answers. Three rules are in use and move one model by 20 points: a number needs
its rule beside it.

qa            containment at token boundaries after folding spelling and numbers: "7" equals "seven", "art" is not
              found in "party"; this project's own
qa-ultraeval  containment at token boundaries of the plain tokens, as UltraEval-Audio: "7" is not "seven"
qa-vocalbench substring of the text after Whisper's normaliser, as VocalBench: "art" is found in "party"
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

from rbalign.scorers.base import as_text, column

PROTOCOL = "containment+number-folding"
ARTICLES = frozenset({"a", "an", "the"})
ALL_OF = " & "
"""Inside an alias it joins parts that must all occur, in any order: "Arizona & Hawaii"."""

_BRACKETS = re.compile(r"[()\[\]<>{}]")
_TOKEN = re.compile(r"\w+")
_LONE_NUMBERS = {"one": "1"}
"""Whisper's normaliser leaves a lone "one" as a word, because it may be a pronoun. Both sides fold alike here."""


@cache
def _normaliser() -> Any:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


@lru_cache(maxsize=65_536)
def tokens(text: str) -> tuple[str, ...]:
    """Comparable tokens: lower case, American spelling, number words as digits, no punctuation.

    Brackets go first, since Whisper's normaliser would drop what stands inside them.
    """
    return tuple(_LONE_NUMBERS.get(token, token) for token in _TOKEN.findall(normalised(_BRACKETS.sub(" ", text))))


def normalised(text: str) -> str:
    """The text after Whisper's English normaliser; lower case alone where that one stumbles."""
    try:
        return str(_normaliser()(text))
    except (ValueError, ArithmeticError, IndexError):  # the number folder on digit strings that no one says
        return text.lower()


@lru_cache(maxsize=65_536)
def plain_tokens(text: str) -> tuple[str, ...]:
    """Runs of letters, numbers and marks of the decomposed text (NFD), in lower case; nothing is folded."""
    decomposed = unicodedata.normalize("NFD", text)
    spaced = "".join(sign if unicodedata.category(sign)[0] in "LNM" else " " for sign in decomposed)
    return tuple(spaced.lower().split())


def matches(answer: str, aliases: Iterable[str]) -> bool:
    """Whether any alias stands in the answer as a run of whole tokens. A leading article of an alias is free."""
    said = tokens(answer)
    return any(_all_parts(said, alias) for alias in aliases)


def _all_parts(said: tuple[str, ...], alias: str) -> bool:
    parts = [_without_article(tokens(part)) for part in alias.split(ALL_OF)]
    return all(part and _contains(said, part) for part in parts)


def _without_article(wanted: tuple[str, ...]) -> tuple[str, ...]:
    return wanted[1:] if len(wanted) > 1 and wanted[0] in ARTICLES else wanted


def _contains(said: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    return any(said[start : start + len(wanted)] == wanted for start in range(len(said) - len(wanted) + 1))


class QuestionAnswering:
    """1.0 if the answer contains an accepted one (column `aliases`), else 0.0; unscored without usable aliases."""

    name = "qa"
    needs: frozenset[str] = frozenset()
    protocol = PROTOCOL

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """1.0, 0.0 or None for each completion."""
        accepted = column(columns, "aliases", len(completions))
        return [self._one(as_text(text), aliases) for text, aliases in zip(completions, accepted, strict=True)]

    def _one(self, text: str, aliases: Any) -> float | None:
        given = [aliases] if isinstance(aliases, str) else aliases if isinstance(aliases, list | tuple) else []
        usable = [alias for alias in map(as_text, given) if self.usable(alias)]
        return float(self.right(text, usable)) if usable else None

    def usable(self, alias: str) -> bool:
        """Whether anything of an accepted answer is left to be found."""
        return bool(tokens(alias))

    def right(self, text: str, aliases: Sequence[str]) -> bool:
        """Whether the text holds one of the accepted answers."""
        return matches(text, aliases)


class UltraEvalAnswering(QuestionAnswering):
    """UltraEval-Audio's rule: an alias's plain tokens stand in the answer's in a row."""

    name = "qa-ultraeval"
    protocol = "ultraeval: containment of NFD tokens, no folding"

    def usable(self, alias: str) -> bool:
        """See `QuestionAnswering`."""
        return bool(plain_tokens(alias))

    def right(self, text: str, aliases: Sequence[str]) -> bool:
        """See `QuestionAnswering`."""
        return any(_contains(plain_tokens(text), plain_tokens(alias)) for alias in aliases)


class VocalBenchAnswering(QuestionAnswering):
    """VocalBench's rule: an alias is a substring of the answer, both after Whisper's English normaliser."""

    name = "qa-vocalbench"
    protocol = "vocalbench: substring after Whisper's English normaliser"

    def usable(self, alias: str) -> bool:
        """See `QuestionAnswering`."""
        return bool(normalised(alias).strip())

    def right(self, text: str, aliases: Sequence[str]) -> bool:
        """See `QuestionAnswering`."""
        said = normalised(text)
        return any(normalised(alias).strip() in said for alias in aliases)
