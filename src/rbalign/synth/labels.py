"""Topic and difficulty of instructions, by a tagger that is a teacher: the paper's eight topics and five levels.

A local tagger scores every option by its log-probability as the answer, less what the option gets for a request
without content (Zhao et al. 2021): a small model otherwise gives every request the label that it likes best. Of 27
requests sorted by hand, over all eight topics, SmolLM2-135M so gets 11 topics right, and 7 without that; the wording
was chosen among six on these. Name a larger tagger where labels matter.

A tagger behind a server is asked once and its reply parsed; what cannot be parsed stays unlabelled. A label is a
function of the text alone, whatever stands beside it in a batch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rbalign.config.kinds import TOPICS
from rbalign.config.sections import TeacherConfig
from rbalign.keys import Key
from rbalign.types import StopReason

Labels = dict[str, str]
"""{"topic": ..., "difficulty": ...}; what the tagger did not say is not in it."""

LEVELS = ("very easy", "easy", "medium", "hard", "very hard")
OPTIONS: Mapping[str, Sequence[str]] = {"topic": tuple(TOPICS), "difficulty": LEVELS}
PAPER: Mapping[str, Mapping[str, float]] = {
    "topic": dict(zip(TOPICS, (60.3, 18.5, 12.7, 4.2, 2.8, 0.2, 0.1, 1.2), strict=True)),
    "difficulty": dict(zip(LEVELS, (26.1, 39.2, 28.7, 5.2, 0.8), strict=True)),
}
"""Shares in the paper's dataset, %."""

_MEANING = "; ".join(f"{name} ({meaning})" for name, meaning in TOPICS.items())
TOPIC_SYSTEM = f"Name the topic of a request to an assistant. The topics are: {_MEANING}. Say the topic alone."
LEVEL_SYSTEM = f"Name how difficult a request to an assistant is to answer well: {', '.join(LEVELS)}. Say that alone."
SYSTEMS = {"topic": TOPIC_SYSTEM, "difficulty": LEVEL_SYSTEM}
CHAT_SYSTEM = (
    f"You sort requests to an assistant; you do not answer them. The topics are: {_MEANING}. The difficulties are: "
    f"{', '.join(LEVELS)}.\nReply with two lines:\nTopic: one of the topics\nDifficulty: one of the difficulties"
)
CHAT_TOKENS = 64
WITHOUT_CONTENT = ("N/A", "...", "Request.")
"""What options are scored on to learn how a tagger likes them before it has read anything."""


class Tagger(Protocol):
    """Labels texts."""

    def __call__(self, texts: Sequence[str], keys: Sequence[Key]) -> list[Labels]:
        """The labels of each text."""
        ...


class ScoringTagger:
    """A local teacher that scores every option. Every text gets both labels."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher
        self._before: dict[str, list[float]] = {}

    def __call__(self, texts: Sequence[str], keys: Sequence[Key]) -> list[Labels]:
        """The best option of each kind for each text; nothing is drawn, so keys do not matter."""
        found: list[Labels] = [{} for _ in texts]
        for kind, options in OPTIONS.items():
            before = self._liked(kind)
            for labels, row in zip(found, self._scores(kind, texts), strict=True):
                gains = [score - prior for score, prior in zip(row, before, strict=True)]
                labels[kind] = options[gains.index(max(gains))]
        return found

    def _scores(self, kind: str, texts: Sequence[str]) -> list[list[float]]:
        asked = [f"Request: {text}\n{kind.title()}:" for text in texts]
        scores: list[list[float]] = self._teacher.option_loglikelihoods(asked, OPTIONS[kind], SYSTEMS[kind])
        return scores

    def _liked(self, kind: str) -> list[float]:
        """Each option's mean score on requests without content."""
        if kind not in self._before:
            rows = self._scores(kind, WITHOUT_CONTENT)
            self._before[kind] = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        return self._before[kind]


class ChattingTagger:
    """A teacher that is asked for both labels at once; its reply is parsed, whatever it holds."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher

    def __call__(self, texts: Sequence[str], keys: Sequence[Key]) -> list[Labels]:
        """The labels that each reply names; a request that failed for good names none."""
        replies = self._teacher.answer(texts, keys, self._teacher.params(0.0, 1.0, CHAT_TOKENS), CHAT_SYSTEM)
        return [parse_labels(reply.text) if reply.stop is not StopReason.FAILED else {} for reply in replies]


def tagger_of(config: TeacherConfig, teacher: Any) -> Tagger:
    """The tagger that a teacher makes: asked if it is a server, else scoring."""
    return ChattingTagger(teacher) if config.endpoint is not None else ScoringTagger(teacher)


def parse_labels(reply: str) -> Labels:
    """What a reply says after "Topic:" and "Difficulty:". A line that names no option, or several, labels nothing."""
    found: Labels = {}
    for kind, options in OPTIONS.items():
        line = re.search(rf"\b{kind}\b\W*[:=]\s*([^\n;]+)", reply, re.IGNORECASE)
        named = _named(line[1], options) if line else set()
        if len(named) == 1:
            found[kind] = named.pop()
    return found


def _named(line: str, options: Sequence[str]) -> set[str]:
    """Options that stand in a line as whole words; "very easy" is not also "easy"."""
    plain = f" {' '.join(re.findall(r'[a-z]+', line.lower()))} "
    found = set()
    for option in sorted(options, key=len, reverse=True):
        if f" {option} " in plain:
            found.add(option)
            plain = plain.replace(f" {option} ", " ")
    return found


def label_key(seed: int, identity: str) -> Key:
    """The key under which an example is labelled."""
    return Key(seed, "label", example=identity)


def label_counts(labelled: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """For the manifest: kind -> option -> how many, in the order of the options; "unlabelled" where there are some."""
    rows = list(labelled)
    counts: dict[str, dict[str, int]] = {}
    for kind, options in OPTIONS.items():
        seen = Counter(row.get(kind, "unlabelled") for row in rows)
        counts[kind] = {option: seen[option] for option in (*options, "unlabelled") if seen[option]}
    return counts
