"""Practice sentences: the teacher's own, with words replaced until every word of its vocabulary has been said.

A connector over tokens knows the words that it has met. Measured on one trained on 10,000 written sentences and a voice
of its own (hibari): words met more than 100 times are misheard 1.6 % of the time, 4 to 10 times 20 %, 2 or 3 times
55 %, once or never 97 %; and 10,800 of the LLM's 13,140 one-token words were met at most three times. Text written by
the teacher repeats frequent words; a list of words goes round instead.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from rbalign.errors import DataError
from rbalign.keys import Key
from rbalign.text.spoken import spoken_form
from rbalign.types import Example, Split

SOURCE = "vocabulary"
"""The label of such examples under "source"."""
REPLACED = 0.6
"""Share of a sentence's words that are replaced: the others keep its rhythm."""
_WORD = re.compile(r"^(\W*)(\w.*?)(\W*)$")


def vocabulary_words(tokenizer: Any, pronounced: Collection[str]) -> list[str]:
    """Words that are one token of the LLM after a space, with a known pronunciation, in the vocabulary's order.

    Raises DataError if there is none.
    """
    pieces = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    words = (piece[1:] for piece in pieces if piece.startswith(" ") and len(piece) > 2)
    found = [word for word in words if word.isascii() and word.isalpha() and word in pronounced]
    if not found:
        raise DataError(
            "no single token of the teacher's vocabulary is a word that the lexicon pronounces",
            "set [synth] vocabulary = 0: this practice is for English",
        )
    return found


def practice_examples(count: int, texts: Sequence[str], words: Sequence[str], seed: int) -> list[Example]:
    """`count` train examples without answers, made of `texts`; every word comes before any comes again."""
    queue = _rounds(words, Key(seed, "vocabulary-order"))
    examples = []
    for number in range(count):
        generator = Key(seed, "vocabulary", example=str(number)).generator()
        text = _replace(texts[int(generator.integers(len(texts)))], queue, generator)
        identity = f"{SOURCE}-{number:06d}"
        examples.append(Example(identity, Split.TRAIN, text, spoken_form(text), labels={"source": SOURCE}))
    return examples


def _rounds(words: Sequence[str], key: Key) -> Iterator[str]:
    generator = key.generator()
    while True:
        yield from (words[place] for place in generator.permutation(len(words)))


def _replace(text: str, queue: Iterator[str], generator: np.random.Generator) -> str:
    """Marks and capitals of the replaced words stay."""
    words = text.split()
    for place in np.flatnonzero(generator.random(len(words)) < REPLACED):
        if found := _WORD.match(words[place]):
            new = next(queue)
            words[place] = found[1] + (new[0].upper() + new[1:] if found[2][0].isupper() else new) + found[3]
    return " ".join(words)
