"""Can a person say this? Written requests hold code, tables and formulas; nobody speaks those."""

from __future__ import annotations

import re
import unicodedata

MAX_WORDS = 80
"""About 30 s of speech: one Whisper window."""

MAX_SENTENCE_WORDS = 40
"""Longer sentences are read, not said (15 s without a full stop)."""

MAX_ITEMS = 6
MAX_DIGIT_SHARE = 0.12
MAX_SYMBOL_SHARE = 0.03
MAX_FOREIGN_SHARE = 0.02
"""Shares of the characters that are no space (of the letters, for the last)."""

_LONGEST_NUMBER = 7
_PLAIN = frozenset(".,!?'\"-–—:;()$£€%&/’‘“”…#°")
"""Marks that a speaker's pauses, tone or words carry."""

_PATTERNS: dict[str, re.Pattern[str]] = {
    "code": re.compile(
        r"```|`[^`\n]+`|[{};]\s*$|==|!=|&&|\|\||->|=>|::|\w+\(\)|\b[a-z]+_[a-z_]+\b|\b[a-z]+[A-Z][a-z]+[A-Z]\w*\(?"
        r"|^\s*(?:def|class|import|from|return|print|for|while|if|var|let|const|SELECT|#include)\b.*[:(;=*]\s*\S*$"
        r"|</?[a-zA-Z][^<>\n]*>",
        re.MULTILINE,
    ),
    "markdown": re.compile(
        r"^\s{0,3}#{1,6}\s|^\s*>\s|\*\*[^*\n]+\*\*|__[^_\n]+__|\[[^\]\n]+\]\([^)\n]+\)|^\s*(?:-{3,}|\*{3,}|={3,})\s*$",
        re.MULTILINE,
    ),
    "table": re.compile(r"^[^|\n]*\|[^|\n]*\|.*$|\t\S+\t|,\S+,\S+,\S+,", re.MULTILINE),
    "url": re.compile(
        r"https?://|\bwww\.|\b[\w.+-]+@[\w-]+\.\w+|(?<![\w.])[\w-]+\.(?:com|org|net|io|gov|edu|html?|txt|csv|json|xml|pdf|jpe?g"
        r"|png|py|js|css|cpp|java|exe|zip|docx?|xlsx?)\b|(?:^|\s)[~.]{0,2}/\w+/[\w/.-]+|\b[A-Z]:\\",
        re.IGNORECASE,
    ),
    "mathematics": re.compile(
        r"\$[^$\n]*[\\^_{}=][^$\n]*\$|\\[(\[]|\\[a-zA-Z]{2,}\b|[∑∫√∂∇∞≤≥≠≈∈∪∩∀∃→⇒×÷±·²³πθλσμ]|\w\s?\^\s?[\w({-]"
        r"|(?<![\w'])[a-zA-Z]\s?\([a-zA-Z]\)|(?<=[\w)])\s?=\s?[-\w(]|\d\s?[*+/]\s?\d+\s?[-*+/=]|\b\d+[xyz]\b|\d\s?[*]\s?\d"
        r"|(?<![\w'])[xyz]\s[-+*/<>]\s",
    ),
    "placeholder": re.compile(r"\[[^\]\n]*\]|\{[^}\n]*\}|_{2,}|<[^<>\n]+>|\bX{3,}\b|\.{4,}"),
    # Two turns with their speakers' names, as a script has them: one voice cannot say who speaks.
    "dialogue": re.compile(r"(?:(?:^|[.!?\"”]\s+|\n)[A-Z]\w+(?: [A-Z]\w+)?:\s.*?){2,}", re.DOTALL),
    "emphasis": re.compile(r"(?:\b[A-Z]{4,}\b\W+){3,}|[!?]{3,}"),
}
_ITEM = re.compile(r"^(?P<indent>[ \t]*)(?:[-*•+]|\(?\d{1,2}[.)]|\(?[a-zA-Z][.)])\s+\S", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?…]+[\"”’')\]]*\s+|\n+")


def speakability(text: str) -> list[str]:
    """Reasons why a text cannot be said aloud, as short names that can be counted; [] = it can.

    empty, too long, long sentence, script, code, markdown, table, url, mathematics, placeholder, dialogue,
    emphasis, long list, nested list, digits, symbols.
    """
    if not any(character.isalpha() for character in text):
        return ["empty"]
    checks = {
        "too long": len(text.split()) > MAX_WORDS,
        "long sentence": max(len(sentence.split()) for sentence in _SENTENCE_END.split(text)) > MAX_SENTENCE_WORDS,
        "script": _foreign_share(text) > MAX_FOREIGN_SHARE,
        **{name: bool(pattern.search(text)) for name, pattern in _PATTERNS.items()},
        "long list": len(_ITEM.findall(text)) > MAX_ITEMS,
        "nested list": len({len(item["indent"].expandtabs(4)) // 2 for item in _ITEM.finditer(text)}) > 1,
        "digits": _too_many_digits(text),
        "symbols": _symbol_share(text) > MAX_SYMBOL_SHARE,
    }
    return [name for name, found in checks.items() if found]


def _foreign_share(text: str) -> float:
    """Share of letters outside the Latin script."""
    letters = [character for character in text if character.isalpha()]
    return sum(not unicodedata.name(letter, "").startswith("LATIN") for letter in letters) / len(letters)


def _too_many_digits(text: str) -> bool:
    """A number too long to say, or more than four numbers that fill the text."""
    runs: list[str] = re.findall(r"\d[\d,.]*", text)
    if any(sum(map(str.isdigit, run)) > _LONGEST_NUMBER for run in runs):
        return True
    share = sum(character.isdigit() for character in text) / max(1, sum(not c.isspace() for c in text))
    return len(runs) > 4 and share > MAX_DIGIT_SHARE


def _symbol_share(text: str) -> float:
    """Share of characters that are neither letters, digits, spaces nor marks with a sound."""
    seen = [character for character in text if not character.isspace()]
    odd = [c for c in seen if not (c.isalnum() or c in _PLAIN or unicodedata.combining(c))]
    return len(odd) / len(seen)
