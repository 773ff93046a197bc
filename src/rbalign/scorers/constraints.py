"""Constraints on an answer's form that a program can check: the 13 of Speech-IFEval (arXiv 2505.19037), strict.

Upstream differs from Google's IFEval in five of them (bullets, upper and lower case, paragraphs, repeated prompts);
with the stock checkers its own published outputs lose 11 to 31 points. A constraint is (id, arguments); ids and the
names of arguments are upstream's. An unknown id raises; an empty answer follows none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rbalign.errors import DataError, unknown
from rbalign.scorers.base import as_text, column

_FENCE = re.compile(r"\A```(?:json|Json|JSON)?")
_TITLE = re.compile(r"<<[^\n]+>>")
_BULLET = re.compile(r"^\s*(?:\*(?!\*)|-|•|\d)", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?]+[\"”’')\]]*(?=\s|\Z)")


def _quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _json(text: str) -> bool:
    try:
        json.loads(_FENCE.sub("", text.strip()).removesuffix("```").strip())
    except (ValueError, RecursionError):  # the second: thousands of open brackets
        return False
    return True


def _title(text: str) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in _TITLE.findall(text))


def _repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().strip("\"'").startswith(prompt_to_repeat.strip().lower())


def _ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _bullets(text: str, num_bullets: int) -> bool:
    return len(_BULLET.findall(text.replace("\\n", "\n"))) == num_bullets


def _has_keywords(text: str, keywords: Sequence[str]) -> bool:
    return all(keyword.lower() in text.lower() for keyword in keywords)


def _lacks_words(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def _paragraphs(text: str, num_paragraphs: int) -> bool:
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?|\n+", text)]
    parts = parts[not parts[0] :]
    parts = parts[: len(parts) - (bool(parts) and not parts[-1])]
    return all(parts) and len(parts) == num_paragraphs


def _compare(count: int, relation: str, number: int) -> bool:
    if relation not in ("less than", "at least"):
        raise DataError(f"relation {relation!r} is none of: less than, at least", "mend the task's data")
    return count < number if relation == "less than" else count >= number


def _sentences(text: str, num_sentences: int, relation: str) -> bool:
    ends = list(_SENTENCE_END.finditer(text))
    unfinished = bool(text[ends[-1].end() if ends else 0 :].strip())
    return _compare(len(ends) + unfinished, relation, num_sentences)


def _words(text: str, num_words: int, relation: str) -> bool:
    return _compare(len(re.findall(r"\w+", text)), relation, num_words)


CONSTRAINTS: dict[str, Callable[..., bool]] = {
    "change_case:english_capital": str.isupper,
    "change_case:english_lowercase": str.islower,
    "startend:quotation": _quoted,
    "detectable_format:json_format": _json,
    "detectable_format:title": _title,
    "combination:repeat_prompt": _repeats_prompt,
    "startend:end_checker": _ends_with,
    "detectable_format:number_bullet_lists": _bullets,
    "keywords:existence": _has_keywords,
    "keywords:forbidden_words": _lacks_words,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:number_sentences": _sentences,
    "length_constraints:number_words": _words,
}
"""Constraint id -> check(answer, **arguments)."""


def follows(answer: str, constraint: str, arguments: Mapping[str, Any] | None = None) -> bool:
    """Whether an answer keeps a constraint. UsageError for an unknown id, DataError for arguments that do not fit."""
    if constraint not in CONSTRAINTS:
        raise unknown("constraint", constraint, CONSTRAINTS)
    if not answer.strip():
        return False
    given = {name: value for name, value in (arguments or {}).items() if value is not None}
    try:
        return CONSTRAINTS[constraint](answer, **given)
    except TypeError as error:
        raise DataError(f"constraint {constraint}: {error}", "mend the arguments in the task's data") from None


class Constraints:
    """1 if an answer keeps every constraint of its row, else 0; None for a row without constraints.

    The column `constraints` holds, for each answer, a list of [id, arguments].
    """

    name = "constraints"
    needs: frozenset[str] = frozenset()

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """0 or 1 for each completion."""
        rows = column(columns, "constraints", len(completions))
        return [self._one(as_text(text), own) for text, own in zip(completions, rows, strict=True)]

    def _one(self, text: str, constraints: Any) -> float | None:
        if not isinstance(constraints, list | tuple) or not constraints:
            return None
        return float(all(follows(text, name, arguments) for name, arguments in constraints))
