"""Practice sentences: the teacher's own, with words replaced until every word of its vocabulary has been said.

A connector over tokens knows the words that it has met. Measured on one trained on 10,000 written sentences and a voice
of its own (hibari): words met more than 100 times are misheard 1.6 % of the time, 4 to 10 times 20 %, 2 or 3 times
55 %, once or never 97 %; and 10,800 of the LLM's 13,140 one-token words were met at most three times. Text written by
the teacher repeats frequent words; a list of words goes round instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal, NoReturn

import numpy as np

from rbalign.errors import DataError
from rbalign.keys import Key
from rbalign.text.spoken import spoken_form
from rbalign.types import Example, Split

SOURCE = "vocabulary"
"""The label of such examples under "source"."""
OFTENER = 4
"""Times that a word of one token comes for each time that a longer one comes."""
_ENDS = (("ies", "y"), ("es", ""), ("s", ""), ("ied", "y"), ("ed", ""), ("d", ""), ("ing", ""), ("ing", "e"))
_WORD = re.compile(r"^(\W*)(\w.*?)(\W*)$")


def practice_words(
    tokenizer: Any, lexicon: AbstractSet[str], of: Literal["lexicon", "inflected", "all"], pieces: int = 1
) -> list[str]:
    """The list that practice sentences go round: what stands in it twice comes twice as often."""
    if of == "inflected":
        return inflected_words(tokenizer, lexicon)
    listed = vocabulary_words(tokenizer, lexicon, pieces)
    derived = inflected_words(tokenizer, lexicon) if of == "all" else []
    return listed + derived * (OFTENER if pieces > 1 else 1)


def vocabulary_words(tokenizer: Any, pronounced: AbstractSet[str], pieces: int = 1) -> list[str]:
    """Words that are one token of the LLM after a space, with a known pronunciation, in the vocabulary's order.

    `pieces` above 1 adds names, which the lexicon knows in lower case (France), and every word of the lexicon that is
    at most so many tokens; those of one token stand OFTENER times in the list. Raises DataError if there is none.
    """
    plain = _one_token_words(tokenizer)
    found = [word for word in plain if word in pronounced or (pieces > 1 and word.lower() in pronounced)]
    if pieces > 1:
        longer = sorted(word for word in pronounced if word.isascii() and word.isalpha() and len(word) > 1)
        sizes = [len(ids) for ids in tokenizer([f" {word}" for word in longer], add_special_tokens=False)["input_ids"]]
        found = found * OFTENER + [word for word, size in zip(longer, sizes, strict=True) if 1 < size <= pieces]
    return found or _no_words()


def inflected_words(tokenizer: Any, pronounced: AbstractSet[str]) -> list[str]:
    """Words of one token that the lexicon derives instead of listing them: plurals, -s, -ed and -ing of its words.

    5,224 of SmolLM2's words; a connector that practised the lexicon alone has hardly met one of them. Raises DataError
    if there is none.
    """
    found = [
        word
        for word in _one_token_words(tokenizer)
        if word.islower() and word not in pronounced and not pronounced.isdisjoint(_stems(word))
    ]
    return found or _no_words()


def _one_token_words(tokenizer: Any) -> list[str]:
    """What stands behind a space in the LLM's vocabulary and is all letters, in its order."""
    decoded = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    words = (piece[1:] for piece in decoded if piece.startswith(" ") and len(piece) > 2)
    return [word for word in words if word.isascii() and word.isalpha()]


def _stems(word: str) -> list[str]:
    """What a word may be a regular form of: berries -> berry, planting -> plant, baked -> bake, stopped -> stop."""
    stems = [word[: -len(end)] + instead for end, instead in _ENDS if word.endswith(end)]
    if word.endswith(("ing", "ed")):
        stems += [stem[:-1] for stem in stems if stem[-1:] == stem[-2:-1]]
    return [stem for stem in stems if len(stem) > 1]


def _no_words() -> NoReturn:
    raise DataError(
        "no single token of the teacher's vocabulary is a word that the lexicon pronounces",
        "set [synth] vocabulary = 0: this practice is for English",
    )


def practice_examples(
    count: int, texts: Sequence[str], words: Sequence[str], seed: int, share: float = 0.6
) -> list[Example]:
    """`count` train examples without answers: `texts` with a `share` of their words replaced; the others keep the
    rhythm. The list `words` is gone through before it begins again, each time in another order."""
    queue = _rounds(words, Key(seed, "vocabulary-order"))
    examples = []
    for number in range(count):
        generator = Key(seed, "vocabulary", example=str(number)).generator()
        text = _replace(texts[int(generator.integers(len(texts)))], queue, share, generator)
        identity = f"{SOURCE}-{number:06d}"
        examples.append(Example(identity, Split.TRAIN, text, spoken_form(text), labels={"source": SOURCE}))
    return examples


def _rounds(words: Sequence[str], key: Key) -> Iterator[str]:
    generator = key.generator()
    while True:
        yield from (words[place] for place in generator.permutation(len(words)))


def _replace(text: str, queue: Iterator[str], share: float, generator: np.random.Generator) -> str:
    """Marks and capitals of the replaced words stay."""
    words = text.split()
    for place in np.flatnonzero(generator.random(len(words)) < share):
        if found := _WORD.match(words[place]):
            new = next(queue)
            words[place] = found[1] + (new[0].upper() + new[1:] if found[2][0].isupper() else new) + found[3]
    return " ".join(words)
