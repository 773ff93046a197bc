"""Acceptance: drafts in index order become examples of test, validation and train until every split is full.

Order matters here and only here: near-duplicates are judged against what was accepted before. Test comes first, so
that a larger training split keeps the same held-out texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rbalign.config.synth import SynthConfig
from rbalign.data.signatures import Signatures
from rbalign.scorers.qa import tokens
from rbalign.synth.filters import TEACHER_FAILED, draft_cause, sentences, text_cause
from rbalign.synth.parts import Draft
from rbalign.synth.qa import accepted_answers
from rbalign.text.spoken import spoken_form
from rbalign.types import Example, Split, StopReason

TEXTS_PER_CAUSE = 3


def quotas(config: SynthConfig) -> list[tuple[Split, int]]:
    """How many examples each split still needs from the teacher, in the order in which they are filled."""
    elsewhere = config.test_views or (config.labels and config.labels.test_per_topic)
    test = 0 if elsewhere else config.test
    return [(Split.TEST, test), (Split.VALIDATION, config.validation), (Split.TRAIN, config.train)]


class Acceptance:
    """Feed drafts in index order; `examples` grows until `is_full()`."""

    def __init__(self, config: SynthConfig, leakage: Iterable[Signatures] = ()) -> None:
        self.config = config
        self.leakage = tuple(leakage)
        self.examples: list[Example] = []
        self.causes: Counter[str] = Counter()
        self.dropped: dict[str, list[str]] = {}
        """The first texts that fell to each cause, for `rba inspect`."""
        self.seen = 0
        self._accepted = Signatures.build([])
        self._asked: set[tuple[str, ...]] = set()
        self._quota = quotas(config)

    @property
    def wanted(self) -> int:
        """Examples over all splits."""
        return sum(count for _, count in self._quota)

    def is_full(self) -> bool:
        """True once every split has its examples."""
        return len(self.examples) >= self.wanted

    def add(self, draft: Draft, labels: Mapping[str, Any] | None = None) -> None:
        """Judge one draft; `labels` go to its example beside those that the draft brings."""
        for place, (text, cause) in enumerate(self._candidates(draft)):
            if self.is_full():
                break
            cause = cause or self._against_others(text, draft.get("answer", ""))
            if cause:
                self.drop(text, cause)
            elif self.config.sentences:
                self._accept(f"{draft['id']}-{place}", text, None, draft, labels)
            else:
                self._accept(draft["id"], text, draft.get("answer"), draft, labels)

    def drop(self, text: str, cause: str) -> None:
        """Count a text that becomes no example, whoever judged it."""
        self.seen += 1
        self.causes[cause] += 1
        if len(texts := self.dropped.setdefault(cause, [])) < TEXTS_PER_CAUSE:
            texts.append(text)

    def _candidates(self, draft: Draft) -> list[tuple[str, str | None]]:
        """Texts that a draft offers, each with the first filter that drops it, or None."""
        stop, filters = StopReason(draft["stop"]), self.config.filters
        if self.config.sentences:
            found = [sentence for text in (draft["text"], draft.get("answer", "")) for sentence in sentences(text)]
            failed = [("", TEACHER_FAILED)] * (StopReason.FAILED in (stop, draft.get("answer_stop")))
            return failed + [(sentence, text_cause(sentence, filters)) for sentence in found]
        return [(draft["text"], draft_cause(draft, self.config))]

    def _against_others(self, text: str, answer: str) -> str | None:
        if any(signatures.has_near(text, self.config.filters.max_leakage) for signatures in self.leakage):
            return "leakage"
        if self.config.kind == "qa":
            # One word makes another question of it, with another answer; the same question wants no second answer.
            if (asked := tokens(text)) in self._asked:
                return "near-duplicate"
            self._asked.add(asked)
            text = f"{text} {answer}"
        if self._accepted.has_near(text, self.config.filters.max_near_duplicate):
            return "near-duplicate"
        self._accepted.add(text)
        return None

    def _accept(
        self, identity: str, text: str, answer: str | None, draft: Draft, more: Mapping[str, Any] | None
    ) -> None:
        self.seen += 1
        place = len(self.examples)
        labels = ({"domain": draft["domain"]} if "domain" in draft else {}) | dict(more or {})
        if self.config.kind == "qa":
            labels["aliases"] = accepted_answers(text, answer or "", draft.get("aliases", ""), self.config.qa)
        spoken = spoken_form(text) if self.config.filters.language == "en" else text
        for split, count in self._quota:
            if place < count:
                self.examples.append(Example(identity, split, text, spoken, answer, labels=labels))
                return
            place -= count
