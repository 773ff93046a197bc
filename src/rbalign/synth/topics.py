"""A test split with as many instructions of each topic: ordinary candidates first, then rare topics asked for by name.

Streams of candidates, each numbered from 0 and judged in index order: "natural" is written as the recipe says; then
for each topic that is still short one under its own system prompt, the recipe's domain of that name or ours, until
its places or its budget are used up. What a candidate is stays the tagger's word, whatever the prompt asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from rbalign.config.kinds import TOPICS
from rbalign.config.synth import Domain, SynthConfig
from rbalign.data.signatures import Signatures
from rbalign.keys import Key
from rbalign.synth.accept import Acceptance
from rbalign.synth.filters import draft_cause
from rbalign.synth.labels import Labels
from rbalign.synth.parts import Draft

OpenDrafts = Callable[[str, SynthConfig, int], Iterator[Draft]]
"""(name of a stream, what it is written with, its seed) -> its drafts in index order, without end."""
Label = Callable[[Sequence[tuple[str, str]]], Sequence[Labels]]
"""(id, text) of several -> their labels."""

NATURAL = "natural"
NATURAL_PER_PLACE = 4
"""Ordinary candidates for each place of the split: enough for the three topics that make 90 % of what people ask."""
GROUP = 32
"""Candidates labelled at a time: those behind the last place are labelled for nothing."""
PROMPTS = {
    "information seeking": "The user asks for a fact or an explanation.",
    "advice": "The user tells of a problem and asks for advice.",
    "creative writing": "The user asks for a short creative text: a story, a poem, a song, a letter.",
    "planning": "The user asks for a plan: a schedule, a trip, an event, the steps towards a goal.",
    "reasoning": "The user asks a question that needs reasoning: a riddle, a puzzle, cause and effect.",
    "brainstorming": "The user wants to brainstorm and asks for many ideas, names or suggestions.",
    "role play": "The user asks the assistant to act as a character and says what the character shall do.",
    "others": "The user greets, chats, or asks to translate, correct or rewrite a sentence.",
}
"""What stands behind "You are a helpful assistant." where the recipe has no domain of the topic's name."""


def slug(topic: str) -> str:
    """ "role play" -> "role-play": the name of its domain, its stream and, in front, of its ids."""
    return topic.replace(" ", "-")


class TopicSplit:
    """The places of each topic, and what became of every candidate."""

    def __init__(self, config: SynthConfig, seed: int, leakage: Iterable[Signatures]) -> None:
        """`config.labels.test_per_topic` places for each topic. leakage: what no instruction may resemble."""
        self._config, self._seed = config, seed
        self._places, self._budget = _sizes(config)
        only_test = {"test": self._places * len(TOPICS), "validation": 0, "train": 0, "labels": None}
        self.acceptance = Acceptance(config.model_copy(update=only_test), leakage)
        self._found: Counter[str] = Counter()
        """Examples by topic."""
        self._written: Counter[str] = Counter()
        """Candidates used of each stream."""

    def fill(self, open_drafts: OpenDrafts, label: Label) -> None:
        """Take from the streams in their order until every topic has its places, or its budget is used up."""
        natural = NATURAL_PER_PLACE * self._places * len(TOPICS)
        self._take(NATURAL, self._config, natural, list(TOPICS), open_drafts, label)
        for topic in TOPICS:
            own = _stream(self._config, topic)
            self._take(slug(topic), own, self._budget, [topic], open_drafts, label)

    def missing(self, topic: str) -> int:
        """Places of a topic that are still free."""
        return self._places - self._found[topic]

    def table(self) -> dict[str, dict[str, int]]:
        """For the manifest, topic by topic: places, how many are filled, candidates written under its own prompt."""
        return {
            topic: {
                "wanted": self._places,
                "found": self._found[topic],
                "own_candidates": self._written[slug(topic)],
            }
            for topic in TOPICS
        }

    def shortage(self) -> str | None:
        """One line on the topics that could not be filled; None if all are."""
        short = [
            f"{topic} {row['found']} of {row['wanted']}" for topic, row in self.table().items() if self.missing(topic)
        ]
        if not short:
            return None
        return (
            f"test split by topic is short after {self._budget:,} candidates for each: {', '.join(short)}; raise "
            "[synth.labels] budget, or give [[synth.domains]] of these names better prompts"
        )

    def _take(
        self,
        stream: str,
        config: SynthConfig,
        most: int,
        topics: Sequence[str],
        open_drafts: OpenDrafts,
        label: Label,
    ) -> None:
        """Judge up to `most` drafts of a stream in index order, until none of `topics` is short."""
        if not any(map(self.missing, topics)):
            return
        drafts = open_drafts(stream, config, Key(self._seed, "topic-stream", example=stream).digest())
        taken = islice(({**draft, "id": f"{stream}-{draft['id']}"} for draft in drafts), most)
        while group := list(islice(taken, GROUP)):
            asked = [draft for draft in group if draft_cause(draft, config) is None]
            labels = label([(draft["id"], draft["text"]) for draft in asked])
            known = {draft["id"]: found for draft, found in zip(asked, labels, strict=True)}
            for draft in group:
                self._written[stream] += 1
                self._judge(draft, known.get(draft["id"], {}), topics)
                if not any(map(self.missing, topics)):
                    return

    def _judge(self, draft: Draft, labels: Labels, topics: Sequence[str]) -> None:
        cause, topic = draft_cause(draft, self._config), labels.get("topic")
        if cause is None and topic is None:
            cause = "without topic"
        elif cause is None and topic not in topics:
            cause = "other topic"
        elif cause is None and topic is not None and not self.missing(topic):
            cause = "topic is full"
        if cause is not None:
            self.acceptance.drop(draft["text"], cause)
            return
        before = len(self.acceptance.examples)
        self.acceptance.add(draft, labels)
        self._found[str(topic)] += len(self.acceptance.examples) - before


def _sizes(config: SynthConfig) -> tuple[int, int]:
    """(places of each topic, candidates for each)."""
    return (config.labels.test_per_topic, config.labels.budget) if config.labels else (0, 0)


def _stream(config: SynthConfig, topic: str) -> SynthConfig:
    """The recipe with one domain, the topic's."""
    own = [domain for domain in config.domains if domain.name == slug(topic)]
    ours = Domain(name=slug(topic), system=f"You are a helpful assistant. {PROMPTS[topic]}")
    changed: dict[str, Any] = {"domains": (own[0] if own else ours,), "system": None}
    return config.model_copy(update=changed)
