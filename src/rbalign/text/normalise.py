"""Word error rates. Both sides pass Whisper's normalisers (Radford et al. 2022, appendix C).

English: case, marks, number and spelling forms drop out. Other languages: case and punctuation; vowel signs and tone
marks stay (Whisper's own evaluation drops them, and makes two words of one in Hindi). Where no spaces stand between
words every letter counts as one, so that the rate is of characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from rbalign.config.languages import UNSPACED
from rbalign.errors import DataError


def for_wer(text: str, language: str = "en") -> str:
    """The form that is compared: lower case, no marks; in English numbers as digits, US spelling."""
    # Whisper's normaliser takes the first of several dots and leaves the rest as words.
    return str(_normaliser(language)(re.sub(r"\.{2,}|…", " ", text))).strip()


def word_errors(reference: str, hypothesis: str, language: str = "en") -> tuple[int, int]:
    """(errors, reference words) of one utterance: what a corpus rate and its bootstrap add up.

    Words in brackets count in the reference, for a voice says them; in the hypothesis they are noises, as in Whisper.
    """
    import jiwer

    said, heard = for_wer(re.sub(r"[()\[\]<>]", " ", reference), language), for_wer(hypothesis, language)
    if not said:
        return len(heard.split()), 0
    counts = jiwer.process_words(said, heard)
    errors = counts.substitutions + counts.deletions + counts.insertions
    return errors, counts.hits + counts.substitutions + counts.deletions


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Corpus-level word error rate: all errors over all reference words; above 1 is possible.

    Raises DataError for lists of different length or references without a word.
    """
    if len(references) != len(hypotheses):
        raise DataError(f"{len(references)} references and {len(hypotheses)} hypotheses", "pair them one to one")
    pairs = [word_errors(reference, hypothesis) for reference, hypothesis in zip(references, hypotheses, strict=True)]
    words = sum(count for _, count in pairs)
    if not words:
        raise DataError("no reference holds a word", "a word error rate needs words")
    return sum(errors for errors, _ in pairs) / words


@cache
def _normaliser(language: str):  # type: ignore[no-untyped-def]
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    return (
        EnglishTextNormalizer()
        if language == "en"
        else BasicTextNormalizer(split_letters=language in UNSPACED, preserve_marks=True)
    )
