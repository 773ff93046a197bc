"""Can a person say this? Written requests hold code, tables and formulas; nobody speaks those."""

from __future__ import annotations

import re
import unicodedata

from rbalign.config.synth import SpeakableConfig

LIMITS = SpeakableConfig()
_PLAIN = frozenset(".,!?'\"-–—:;()$£€%&/’‘“”…#°。，、？！：；（）「」『』《》〜・～¿¡«»„؟،؛۔।॥։՞՜՝።፣፤፧·")
"""Marks that a speaker's pauses, tone or words carry, of every script that a recipe may name."""
_JOINERS = frozenset("\u200c\u200d")
"""Between letters that stand together or apart, in Persian and in Indic scripts."""
_SIGNS = "∑∫√∂∇∞≤≥≠≈∈∪∩∀∃→⇒×÷±·²³"
_GREEK = "πθλσμ"
"""Signs where no other Greek letter stands beside them."""
_OF_MATHEMATICS = frozenset(_SIGNS + _GREEK + "+*=<>^")
_LATEX = r"\$[^$\n]*[\\^_{}=][^$\n]*\$|\\[(\[]|\\[a-zA-Z]{2,}\b"

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
        rf"{_LATEX}|[{_SIGNS}]|(?<![Ͱ-Ͽἀ-῿])[{_GREEK}](?![Ͱ-Ͽἀ-῿])|\w\s?\^\s?[\w({{-]"
        r"|(?<![\w'])[a-zA-Z]\s?\([a-zA-Z]\)|(?<=[\w)])\s?=\s?[-\w(]|\d\s?[*+/]\s?\d+\s?[-*+/=]|\b\d+[xyz]\b|\d\s?[*]\s?\d"
        r"|(?<![\w'])[xyz]\s[-+*/<>]\s",
    ),
    "latex": re.compile(_LATEX),  # after mathematics, which it is, too: it stays where mathematics may pass
    "placeholder": re.compile(r"\[[^\]\n]*\]|\{[^}\n]*\}|_{2,}|<[^<>\n]+>|\bX{3,}\b|\.{4,}"),
    # Two turns with their speakers' names, as a script has them: one voice cannot say who speaks.
    "dialogue": re.compile(r"(?:(?:^|[.!?\"”]\s+|\n)[A-Z]\w+(?: [A-Z]\w+)?:\s.*?){2,}", re.DOTALL),
    "emphasis": re.compile(r"(?:\b[A-Z]{4,}\b\W+){3,}|[!?]{3,}"),
}
_ITEM = re.compile(r"^(?P<indent>[ \t]*)(?:[-*•+]|\(?\d{1,2}[.)]|\(?[a-zA-Z][.)])\s+\S", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?…]+[\"”’')\]]*\s+|\n+")


def speakability(text: str, limits: SpeakableConfig = LIMITS, mathematics: bool = False) -> list[str]:
    """Reasons why a text cannot be said aloud, as short names that can be counted; [] = it can.

    empty, too long, long sentence, script, code, markdown, table, url, mathematics, latex, placeholder, dialogue,
    emphasis, long list, nested list, digits, symbols. mathematics: formulas are no reason, nor are their signs symbols.
    """
    if not any(character.isalpha() for character in text):
        return ["empty"]
    spared = _OF_MATHEMATICS if mathematics else frozenset()
    depths = {len(item["indent"].expandtabs(4)) // 2 for item in _ITEM.finditer(text)}
    checks = {
        "too long": len(text.split()) > limits.max_words,
        "long sentence": max(len(part.split()) for part in _SENTENCE_END.split(text)) > limits.max_sentence_words,
        "script": _foreign_share(text, spared) > limits.max_foreign_share,
        **{name: bool(pattern.search(text)) for name, pattern in _PATTERNS.items()},
        "long list": len(_ITEM.findall(text)) > limits.max_items,
        "nested list": len(depths) > limits.max_list_depth,
        "digits": _too_many_digits(text, limits),
        "symbols": _symbol_share(text, spared) > limits.max_symbol_share,
    }
    return [name for name, found in checks.items() if found and not (mathematics and name == "mathematics")]


def _foreign_share(text: str, spared: frozenset[str]) -> float:
    """Share of letters outside the Latin script."""
    letters = [character for character in text if character.isalpha()]
    foreign = [c for c in letters if c not in spared and not unicodedata.name(c, "").startswith("LATIN")]
    return len(foreign) / len(letters)


def _too_many_digits(text: str, limits: SpeakableConfig) -> bool:
    """A number too long to say, or more than four numbers that fill the text."""
    runs: list[str] = re.findall(r"\d[\d,.]*", text)
    if any(sum(map(str.isdigit, run)) > limits.max_number_digits for run in runs):
        return True
    share = sum(character.isdigit() for character in text) / max(1, sum(not c.isspace() for c in text))
    return len(runs) > 4 and share > limits.max_digit_share


def _symbol_share(text: str, spared: frozenset[str]) -> float:
    """Share of characters that are neither letters, digits, spaces nor marks with a sound."""
    seen = [character for character in text if not character.isspace()]
    odd = [c for c in seen if not (c.isalnum() or c in _PLAIN or c in spared or _belongs_to_letter(c))]
    return len(odd) / len(seen)


def _belongs_to_letter(character: str) -> bool:
    """An accent, a vowel sign, a tone mark or a joiner."""
    return unicodedata.category(character)[0] == "M" or character in _JOINERS
