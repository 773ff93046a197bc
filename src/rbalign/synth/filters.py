"""Which instructions people would say aloud: each filter has a name, and what it drops is counted under it."""

from __future__ import annotations

import re

from rbalign.config.synth import FilterConfig
from rbalign.text.language import speaks
from rbalign.text.refusals import is_boilerplate, refuses
from rbalign.text.speakable import speakability
from rbalign.types import StopReason

TEACHER_FAILED = "teacher-failed"
"""The cause under which requests that a server never answered are counted."""

MATHEMATICS = re.compile(
    r"\b(solve|equation|integral|derivative|theorem|polynomial|matrix|eigenvalue|quadratic|logarithm|factorial"
    r"|probability of|calculate the (area|volume|sum|value|perimeter|angle)|square root|prime factor)\b"
    r"|\d\s*[-+*/^=×÷]\s*\d|\b[a-z]\s*[=^]\s*[\w(]",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")


def drop_cause(text: str, stop: StopReason, config: FilterConfig) -> str | None:
    """The name of the first filter that drops an instruction, or None. No state: near-duplicates come later."""
    if stop is not StopReason.END:
        return TEACHER_FAILED if stop is StopReason.FAILED else "unfinished"
    return text_cause(text, config)


def text_cause(text: str, config: FilterConfig) -> str | None:
    """The filters that look at the text alone."""
    words = len(text.split())
    if words < config.min_words:
        return "too short"
    if words > config.max_words:
        return "too long"
    reasons = speakability(text)
    if reasons:
        return f"not speakable: {reasons[0]}"
    if not config.mathematics and MATHEMATICS.search(text):
        return "mathematics"
    if not config.refusals and is_boilerplate(text):
        return "boilerplate"
    return None if speaks(text, config.language) else "other language"


def answer_cause(text: str, stop: StopReason, config: FilterConfig) -> str | None:
    """y_ref must be complete with its end token, and there must be one."""
    if stop is not StopReason.END:
        return TEACHER_FAILED if stop is StopReason.FAILED else "answer unfinished"
    if not text:
        return "answer empty"
    return "refusal" if not config.refusals and refuses(text) else None


def sentences(text: str) -> list[str]:
    """Split a text at sentence ends; a last piece without one is left out, for it may be cut off."""
    pieces = [piece.strip() for piece in SENTENCE_END.split(" ".join(text.split()))]
    return [piece for piece in pieces if re.search(r"[.!?][\"')\]]*$", piece)]
