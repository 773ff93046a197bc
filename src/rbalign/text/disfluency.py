"""Fluent English made disfluent before a voice says it: what people do who think while they speak.

A disfluent text is the fluent one with insertions, so that taking them out gives the fluent text back, to the letter.
After Shriberg (1994); repetition, replacement and restart as in LARD (Passali et al. 2022). Restart, reback and
correction are named as in VocalBench-DF (2510.15406), which gives no generator: what they do here is our reading.
Spellings are such that the voices' reader (hibari.g2p) says them as meant; docs/views.md has an example of each.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from rbalign.config.views import parse_delivery
from rbalign.text.spoken import cardinal

WORDS_PER_EVENT = 10
"""Fillers, repetitions, stutters, pauses and prolongations: one for every ten words begun; of the others, one."""

FALLBACKS = {"correction": "restart"}
"""What a text gets that offers nothing for a kind. Every other kind falls back to a filler, which any word allows."""

FILLERS = ("um", "uh", "er", "you know", "I mean", "like")
OPENERS = ("Can you tell me", "I was wondering", "What I need is", "How do I", "Is there a", "Would you say", "I heard")
"""Starts that a speaker gives up."""
RESTARTS = ("no wait", "sorry", "actually no", "let me rephrase that", "well, what I mean is")
REBACKS = ("let me start again", "wait, let me go back", "sorry, once more", "hold on, again")
CORRECTIONS = ("no sorry", "sorry, I mean", "no wait", "I mean", "actually no")
LEADS = frozenset({"for", "on", "in", "at", "to", "from", "of", "by", "with", "about", "the", "my", "a", "an", "this"})
"""Words that a correction may say again: "for Tuesday, no sorry, for Friday"."""

PROLONGED = {
    **dict.fromkeys(("so", "no", "go", "know"), "oh"),
    **dict.fromkeys(("to", "do", "who", "you", "new", "two"), "oo"),
    **dict.fromkeys(("the", "a"), "uh"),
    **dict.fromkeys(("i", "my", "why", "by"), "eye"),
    **dict.fromkeys(("how", "now"), "ow"),
    **dict.fromkeys(("we", "me", "be", "he", "she", "see"), "ee"),
    **dict.fromkeys(("for", "or", "more"), "or"),
    **dict.fromkeys(("there", "where"), "air"),
}
"""Words and what draws them out: the reader says "so-oh" with a long o, but "sooo" as "sue-oh"."""

_ONES, _TEENS = [cardinal(n) for n in range(2, 10)], [cardinal(n) for n in range(10, 20)]
_TENS = [cardinal(n) for n in range(20, 100, 10)]
_SCALES = ["one", "oh", "hundred", "thousand", "million", "billion"]
_NUMBER_WORD = "|".join([*_ONES, *_TEENS, *_TENS, *_SCALES])
_NUMBER = re.compile(
    rf"(?<![\w-])(?:{_NUMBER_WORD})(?:[ -](?:{_NUMBER_WORD}))*(?![\w-])"
    r"|(?<![\w.,:/'-])[1-9]\d{0,3}(?![\w:/'-]|[.,]\d)"
)
_TOKEN = re.compile(r"\S+")
_CORE = re.compile(r"\w(?:.*\w)?")
_ENDS_SENTENCE = re.compile(r"[.!?…][\"'”’)\]]*$")
_PART = re.compile(r"y?(?:qu|[b-df-hj-np-tv-xz])*[aeiouy]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Disfluent:
    """A text as it is to be said, and how it came about."""

    said: str
    fluent: str
    kinds: tuple[str, ...]
    """What was done, in order: not always what was asked for, see FALLBACKS."""
    inserted: tuple[tuple[int, int], ...]
    """Spans of `said` (start, end) that are not in `fluent`, in order; without them it is `fluent`."""
    retracted: str | None = None
    """What was said first and taken back: a value (correction) or a start (restart). It does not occur in `fluent`."""

    @property
    def delivery(self) -> str:
        """`kinds` as a view's metadata has it."""
        return "+".join(self.kinds)


def disfluent(fluent: str, delivery: str, generator: np.random.Generator) -> Disfluent | None:
    """The text in a delivery of the language of `config.views` ("filler", "stutter+correction"), drawn by `generator`.

    Only insertions of plain words, commas, dashes and ellipses: what could be said still can. A kind for which the
    text offers nothing gives way to its fallback, and `kinds` says so. None for "fluent" and for a text without a word.
    Raises UsageError for an unknown delivery.
    """
    speech = _Speech(fluent, generator)
    kinds: list[str] = []
    for kind in parse_delivery(delivery):
        if not speech.words:
            return None
        while not _MAKERS[kind](speech):
            kind = FALLBACKS.get(kind, "filler")
        kinds.append(kind)
    if not kinds:
        return None
    said, spans = speech.woven()
    return Disfluent(said, fluent, tuple(dict.fromkeys(kinds)), tuple(spans), speech.retracted)


@dataclass(frozen=True, slots=True)
class _Word:
    """A word's place in the text: [start, end) with its marks, [core, core_end) without."""

    start: int
    end: int
    core: int
    core_end: int
    first: bool
    """It begins a sentence."""


class _Speech:
    """A fluent text and what is to be inserted into it."""

    def __init__(self, fluent: str, draw: np.random.Generator) -> None:
        self.fluent = fluent
        self.draw = draw
        self.words = _words(fluent)
        self.retracted: str | None = None
        self._insertions: list[tuple[int, str]] = []
        self._touched: set[int] = set()

    def core(self, place: int) -> str:
        word = self.words[place]
        return self.fluent[word.core : word.core_end]

    def bare(self, place: int) -> bool:
        """No mark follows the word."""
        return self.words[place].end == self.words[place].core_end

    def last(self, place: int) -> bool:
        """The word ends a sentence."""
        return place + 1 == len(self.words) or self.words[place + 1].first

    def choose(self, options: Sequence[str]) -> str:
        return options[int(self.draw.integers(len(options)))]

    def pick(self, places: Sequence[int], many: bool) -> list[int]:
        """Drawn from `places`: one, or with `many` one for WORDS_PER_EVENT; those that nothing has befallen first."""
        wanted = 1 + (len(self.words) - 1) // WORDS_PER_EVENT if many else 1
        order = [places[i] for i in self.draw.permutation(len(places))]
        chosen = sorted(order, key=lambda place: place in self._touched)[:wanted]
        self._touched.update(chosen)
        return sorted(chosen)

    def insert(self, offset: int, text: str) -> None:
        self._insertions.append((offset, text))

    def retract(self, offset: int, value: str, rest: str) -> None:
        """Insert a value that is not meant, and what takes it back."""
        self.retracted = value
        self.insert(offset, value + rest)

    def woven(self) -> tuple[str, list[tuple[int, int]]]:
        """The text with its insertions, and their spans."""
        said, spans, done = "", [], 0
        for offset, text in sorted(self._insertions, key=lambda insertion: insertion[0]):
            said += self.fluent[done:offset]
            spans.append((len(said), len(said) + len(text)))
            said, done = said + text, offset
        return said + self.fluent[done:], spans


def _words(text: str) -> list[_Word]:
    """The tokens with a letter or digit in them."""
    found: list[_Word] = []
    first = True
    for token in _TOKEN.finditer(text):
        core = _CORE.search(token[0])
        if core is not None:
            start = token.start()
            found.append(_Word(start, token.end(), start + core.start(), start + core.end(), first))
            first = False
        first = first or _ENDS_SENTENCE.search(token[0]) is not None
    return found


def _filler(speech: _Speech) -> bool:
    for place in speech.pick(range(len(speech.words)), many=True):
        filler = speech.choose(FILLERS)
        if speech.words[place].first:
            speech.insert(speech.words[place].start, f"{filler[0].upper()}{filler[1:]}, ")
        else:
            comma = "," if speech.bare(place - 1) else ""
            speech.insert(speech.words[place - 1].end, f"{comma} {filler},")
    return True


def _word_repetition(speech: _Speech) -> bool:
    for place in speech.pick(range(len(speech.words)), many=True):
        speech.insert(speech.words[place].start, speech.core(place) + speech.choose((" ", ", ")))
    return True


def _phrase_repetition(speech: _Speech) -> bool:
    """Two to four words without a mark between them."""
    runs = [
        (start, start + length)
        for length in (2, 3, 4)
        for start in range(len(speech.words) - length + 1)
        if all(speech.bare(place) for place in range(start, start + length - 1))
    ]
    starts = sorted({start for start, _ in runs})
    if not starts:
        return False
    (start,) = speech.pick(starts, many=False)
    ends = [end for begin, end in runs if begin == start]
    end = ends[int(speech.draw.integers(len(ends)))]
    _say_again(speech, start, end - 1, "")
    return True


def _reback(speech: _Speech) -> bool:
    """The speaker stops inside a sentence, says so, and goes back two to eight words."""
    stops = [place for place in range(1, len(speech.words)) if not speech.words[place].first and not speech.last(place)]
    if not stops:
        return False
    (stop,) = speech.pick(stops, many=False)
    begin = max(place for place in range(stop) if speech.words[place].first)
    starts = range(max(begin, stop - 7), stop)
    _say_again(speech, starts[int(speech.draw.integers(len(starts)))], stop, speech.choose(REBACKS) + ", ")
    return True


def _say_again(speech: _Speech, start: int, stop: int, remark: str) -> None:
    """Words start to stop, the remark, and then the text goes on with them once more."""
    begin = speech.words[start].start
    speech.insert(begin, f"{speech.fluent[begin : speech.words[stop].core_end]}, {remark}")


def _stutter(speech: _Speech) -> bool:
    """The word's beginning up to its first vowel, once or twice: "ca- capital"."""
    parts = {}
    for place in range(len(speech.words)):
        core = speech.core(place)
        part = _PART.match(core)
        if part is not None and len(core) > max(3, part.end()) and core.isascii() and core.isalpha():
            parts[place] = part[0]
    for place in speech.pick(list(parts), many=True):
        speech.insert(speech.words[place].start, f"{parts[place]}- " * int(speech.draw.integers(1, 3)))
    return bool(parts)


def _pause(speech: _Speech) -> bool:
    places = [place for place in range(len(speech.words)) if speech.bare(place) and not speech.last(place)]
    for place in speech.pick(places, many=True):
        speech.insert(speech.words[place].end, "...")
    return bool(places)


def _prolongation(speech: _Speech) -> bool:
    places = [place for place in range(len(speech.words)) if speech.core(place).lower() in PROLONGED]
    for place in speech.pick(places, many=True):
        speech.insert(speech.words[place].core_end, "-" + PROLONGED[speech.core(place).lower()])
    return bool(places)


def _restart(speech: _Speech) -> bool:
    """Another sentence is begun and given up."""
    openers = [opener for opener in OPENERS if opener.lower() not in speech.fluent.lower()]
    if not openers:
        return False
    (place,) = speech.pick([i for i, word in enumerate(speech.words) if word.first], many=False)
    speech.retract(speech.words[place].start, speech.choose(openers), f", {speech.choose(RESTARTS)}, ")
    return True


def _correction(speech: _Speech) -> bool:
    """Another value of the same kind comes first."""
    values = _values(speech.fluent)
    if not values:
        return False
    start, others = values[int(speech.draw.integers(len(values)))]
    lead = speech.fluent[:start].rsplit(None, 1)[-1:] if speech.fluent[:start].endswith(" ") else []
    again = f"{lead[0].lower()} " if lead and lead[0].lower() in LEADS and speech.draw.random() < 0.5 else ""
    speech.retract(start, speech.choose(others), f", {speech.choose(CORRECTIONS)}, {again}")
    return True


_MAKERS: dict[str, Callable[[_Speech], bool]] = {
    "filler": _filler,
    "word-repetition": _word_repetition,
    "phrase-repetition": _phrase_repetition,
    "stutter": _stutter,
    "pause": _pause,
    "prolongation": _prolongation,
    "restart": _restart,
    "reback": _reback,
    "correction": _correction,
}
"""Each draws and inserts its kind; False, with nothing inserted, if the text offers nothing for it."""


def _values(fluent: str) -> list[tuple[int, list[str]]]:
    """(offset, other values) of every content value in the text that has others."""
    known, pattern = _groups()
    found = [(match.start(), [v for v in known[match[0]] if v != match[0]]) for match in pattern.finditer(fluent)]
    found += [(match.start(), _other_numbers(match[0])) for match in _NUMBER.finditer(fluent)]
    fitting = []
    for start, others in found:
        article = re.search(r"(?<!\w)(an?)\s$", fluent[:start], re.IGNORECASE)
        wants_vowel = article is not None and article[1].lower() == "an"
        fit = [
            other
            for other in others
            if other.lower() not in fluent.lower() and (article is None or (other[0].lower() in "aeiou") == wants_vowel)
        ]
        fitting += [(start, fit)] if fit else []
    return sorted(fitting)


def _other_numbers(written: str) -> list[str]:
    """The same number but for its last digit, teen or ten; none for "one" alone, which is no number as a rule."""
    if written.isdigit():
        near = {int(written) + step for step in range(-9, 10)} - {int(written)}
        return [str(number) for number in sorted(near) if number > 0 and len(str(number)) == len(written)]
    words = re.split("([ -])", written)
    for place in reversed(range(0, len(words), 2)):
        pool = next((pool for pool in (_ONES, _TEENS, _TENS) if words[place] in pool), [])
        if pool:
            return ["".join([*words[:place], other, *words[place + 1 :]]) for other in pool if other != words[place]]
    return []


@cache
def _groups() -> tuple[dict[str, list[str]], re.Pattern[str]]:
    """Word -> its whole group in values.toml, and the pattern that finds such words."""
    table = tomllib.loads(resources.files(__package__).joinpath("values.toml").read_text(encoding="utf-8"))
    known = {word: group for group in table.values() for word in group}
    longest_first = sorted(known, key=len, reverse=True)
    return known, re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])")
