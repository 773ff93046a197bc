"""RBA-QA: the teacher asks short questions of fact and answers them in one to five words, with other ways to say it.

Questions come from Magpie, like any instruction, under a system prompt of a quiz: `[synth] system`, one for each of
`[[synth.domains]]`, or QUESTION_SYSTEM. Whether an answer is right nobody has checked: it is what the teacher holds
for right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rbalign.config.kinds import QaConfig
from rbalign.scorers.qa import matches, tokens
from rbalign.text.questions import asks_yes_or_no

QUESTION_SYSTEM = (
    "You answer quiz questions. The user asks one short question of general knowledge whose answer is a name, a place, "
    "a number or a thing."
)
ALIAS_SYSTEM = (
    "You are given a question and its answer. Write other ways to say the same answer, each on a line of its own, at "
    "most five words each: short forms, full names, synonyms, other spellings. If there are none, write none."
)
MOST_ALIASES = 6
"""Beside the answer itself: a list that goes on is a teacher that no longer knows what it does."""
ALIAS_TOKENS = 64

_BULLET = re.compile(r"^\s*(?:[-*•]+|\(?\d{1,2}[.)])\s*")
_LEAD = re.compile(r"^(?:the (?:correct |right )?answer is|it is|it(?:'|’)s|that is)\b[:\s]+", re.IGNORECASE)
_SMALL = frozenset({"a", "an", "the", "is", "are", "was", "were", "of", "in", "it", "its", "that", "s"})
_NOTHING = frozenset({("none",), ("n", "a"), ("yes",), ("no",), ("1",), ()})
"""Tokens of what says nothing. ("1",) is how a lone "one" folds: as an alias it would be in every second answer."""


def question_cause(text: str) -> str | None:
    """Why a text is no question of fact: not a question, or one that yes or no answers."""
    if not text.rstrip("\"')”’ ").endswith("?"):
        return "not a question"
    return "yes or no" if asks_yes_or_no(text) else None


def pair_cause(question: str, answer: str, config: QaConfig) -> str | None:
    """Why an answer is no short fact: too long, yes or no, empty of words, or standing in its question."""
    said = tokens(answer)
    if not said:
        return "answer empty"
    if len(answer.split()) > config.max_answer_words:
        return "answer too long"
    if said[0] in ("yes", "no"):
        return "yes or no"
    told = set(said) - _SMALL <= set(tokens(question))  # "Isaiah's name is Isaiah" tells no more than its question
    return "answer in the question" if told or matches(question, [answer]) else None


def alias_request(question: str, answer: str) -> str:
    """What the teacher reads under ALIAS_SYSTEM."""
    return f"Question: {question}\nAnswer: {answer}"


def accepted_answers(question: str, answer: str, written: str, config: QaConfig) -> list[str]:
    """The answer and what the teacher wrote under ALIAS_SYSTEM, cleaned: no bullets, no repeats, as short as answers.

    What stands in the question is left out: it would make an echo right.
    """
    first = _plain(answer) or answer
    found: dict[tuple[str, ...], str] = {tokens(first): first}
    for line in _lines(written):
        said = tokens(line)
        fits = said not in _NOTHING and len(line.split()) <= config.max_answer_words
        if fits and len(found) <= MOST_ALIASES and not matches(question, [line]):
            found.setdefault(said, line)
    return list(found.values())


def _lines(written: str) -> Sequence[str]:
    return [_plain(_BULLET.sub("", line)) for line in re.split(r"[\n;]", written)]


def _plain(text: str) -> str:
    """Without full stop, quotation marks around the whole, and "The answer is"."""
    line = _LEAD.sub("", " ".join(text.split())).strip(" .")
    return line[1:-1].strip(" .") if len(line) > 2 and line[0] in '"“' and line[-1] in '"”' else line
