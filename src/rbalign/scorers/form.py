"""What a degenerate answer gives away about itself: length, repetitions, its echo of the request, denial, language.

None of them knows what a good answer is: they guard a reward that does not see such answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rbalign.scorers.base import as_text, column
from rbalign.text.language import guess, speaks

_WORD = re.compile(r"\w+")
NGRAM = 3
"""Words: shorter runs repeat in honest English (of the, it is)."""
OPENING = 5
"""Words in which an answer says yes or no: later ones deny a part of it, not the whole."""
_DENIAL = re.compile(
    r"\b(no|not|never|nor|none|nothing|nobody|false|wrong|untrue|incorrect|cannot|\w+n['’]t)\b", re.IGNORECASE
)


def words(text: str) -> list[str]:
    """Lower-cased words."""
    return _WORD.findall(text.lower())


def runs(found: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Every `size` words in a row; none of an empty text."""
    return [tuple(found[place : place + size]) for place in range(len(found) - size + 1)] if size else []


def echoed(request: str, answer: str) -> float:
    """Share of the request's distinct words that the answer says again; 0 for a request without words."""
    asked = set(words(request))
    return len(asked & set(words(answer))) / len(asked) if asked else 0.0


def novel(request: str, answer: str) -> float:
    """Share of the answer's runs of three words that the request does not hold; 0 for an answer without words."""
    found = words(answer)
    size = min(NGRAM, len(found))
    own, known = runs(found, size), set(runs(words(request), size))
    return sum(run not in known for run in own) / len(own) if own else 0.0


class Length:
    """Shorter over longer of the answer's and y_ref's words: 1 = as long as the teacher's answer, 0 = empty."""

    name = "length"
    needs: frozenset[str] = frozenset()

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One score in 0..1 for each completion; None without y_ref."""
        sizes = [len(words(as_text(text))) for text in completions]
        targets = [len(words(as_text(text))) for text in column(columns, "answer", len(completions))]
        return [
            min(own, wanted) / max(own, wanted) if wanted else None for own, wanted in zip(sizes, targets, strict=True)
        ]


class Repetition:
    """Distinct runs of three words over all of them: 1 = nothing comes twice. 0 for an empty answer."""

    name = "repetition"
    needs: frozenset[str] = frozenset()

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One score in 0..1 for each completion."""
        return [self._one(words(as_text(text))) for text in completions]

    def _one(self, found: list[str]) -> float:
        own = runs(found, min(NGRAM, len(found)))
        return len(set(own)) / len(own) if own else 0.0


class Novelty:
    """Share of the answer's runs of three words that the request does not hold: 0 for an echo or an empty answer."""

    name = "novelty"
    needs: frozenset[str] = frozenset()

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One score in 0..1 for each completion."""
        return [novel(as_text(prompt), as_text(text)) for prompt, text in zip(prompts, completions, strict=True)]


class Polarity:
    """0 if the answer opens with a denial (English) and y_ref does not, or is empty; else 1. Cosines overlook "no"."""

    name = "polarity"
    needs: frozenset[str] = frozenset()

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """0 or 1 for each completion."""
        targets = column(columns, "answer", len(completions))
        return [
            float(bool(text) and (not _denies(text) or _denies(as_text(target))))
            for text, target in zip(map(as_text, completions), targets, strict=True)
        ]


def _denies(text: str) -> bool:
    return bool(_DENIAL.search(" ".join(text.split()[:OPENING])))


class Language:
    """0 if the answer is certainly in another language than y_ref (without one: than `expected`), or empty; else 1."""

    name = "language"
    needs: frozenset[str] = frozenset()

    def __init__(self, expected: str = "en") -> None:
        self.expected = expected

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """0 or 1 for each completion."""
        targets = column(columns, "answer", len(completions))
        return [self._one(as_text(text), as_text(target)) for text, target in zip(completions, targets, strict=True)]

    def _one(self, text: str, target: str) -> float:
        wanted = (guess(target) if target else None) or self.expected
        return float(bool(text) and speaks(text, wanted))
