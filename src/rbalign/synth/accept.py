"""Acceptance: drafts in index order become examples of test, validation and train until every split is full.

Order matters here and only here: near-duplicates are judged against what was accepted before. Test comes first, so
that a larger training split keeps the same held-out texts.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rbalign.config.synth import SynthConfig
from rbalign.data.signatures import Signatures
from rbalign.scorers.form import words
from rbalign.scorers.qa import tokens
from rbalign.synth.filters import TEACHER_FAILED, draft_cause, score_cause, sentences, text_cause
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
        self._said: set[int] = set()
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
            answer = draft.get("answer", "")
            # Scores come last: a reward model costs more than all the rest.
            cause = cause or self._against_others(text, answer) or score_cause(text, answer, self.config)
            if cause:
                self.drop(text, cause)
                continue
            self._said.add(self._exact(text))
            self._accepted.add(self._compared(text, answer))
            if self.config.sentences:
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
        exact = self._exact(text)
        if exact in self._said:
            return "duplicate"
        if self._accepted.has_near(self._compared(text, answer), self.config.filters.max_near_duplicate):
            if self.config.kind == "qa":
                self._said.add(exact)
            return "near-duplicate"
        return None

    def _exact(self, text: str) -> int:
        """What two texts have in common that are the same; of a question numbers and spelling are folded, too."""
        return digest(tokens(text) if self.config.kind == "qa" else words(text.casefold()))

    def _compared(self, text: str, answer: str) -> str:
        """What near-duplicates are sought by: one word makes another question, but then with another answer."""
        return f"{text} {answer}" if self.config.kind == "qa" else text

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


def digest(found: Sequence[str]) -> int:
    """64 bits of words in their order: about 70 bytes a text in a set; of a million two agree by chance in 1 of 4e7."""
    return int.from_bytes(hashlib.blake2b(" ".join(found).encode(), digest_size=8).digest(), "little")
