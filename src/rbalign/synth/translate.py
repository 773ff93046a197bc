"""RBA-S2TT: the teacher translates the words of a clip. What it fails at leaves no trace in the text but these."""

from __future__ import annotations

from rbalign.config.kinds import S2ttConfig
from rbalign.config.synth import FilterConfig
from rbalign.data.signatures import jaccard
from rbalign.text.language import count_words, speaks

SHORT = 3
"""Words up to which a text may well be the same in both languages: names, "OK", "taxi"."""


def translation_cause(text: str, translation: str, config: S2ttConfig, source: str = "en") -> str | None:
    """Why a translation is none: the text again, much shorter or longer than it, or another language for certain.

    source: the language of `text`, in which its words are counted.
    """
    same = jaccard(text, translation)
    if same >= config.max_copied and (count_words(text, source) > SHORT or same < 1.0):
        return "untranslated"
    low, high = config.length_ratio
    if not low <= len(translation.encode()) / len(text.encode()) <= high:
        return "length ratio"
    of_target = speaks(translation, config.target, config.min_language_certainty)
    return None if of_target else "translation in another language"


def transcript_cause(text: str, config: FilterConfig) -> str | None:
    """Why a recording's transcript cannot be translated. It was said aloud, so nobody asks whether it can be."""
    if not any(letter.isalpha() for letter in text):
        return "transcript empty"
    return None if speaks(text, config.language, config.min_language_certainty) else "other language"
