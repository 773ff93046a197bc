"""Sentence BLEU of an answer against one reference, scaled to 0..1: the paper's reward for translation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rbalign.scorers.base import as_text, column


class Bleu:
    """sacrebleu's sentence BLEU (13a tokens, exponential smoothing, effective order), divided by 100.

    `against` names the target's column: "answer" (the teacher's translation) or "reference". `tokenize`: sacrebleu's,
    "zh" or "ja-mecab" where words have no spaces between them. An empty answer scores 0; without a target unscored.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, against: str = "answer", tokenize: str = "13a") -> None:
        from sacrebleu.metrics import BLEU

        self.name, self.against = "bleu", against
        self._metric = BLEU(effective_order=True, tokenize=tokenize)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One score in 0..1 for each completion."""
        targets = column(columns, self.against, len(completions))
        return [self._one(as_text(text), as_text(target)) for text, target in zip(completions, targets, strict=True)]

    def _one(self, text: str, target: str) -> float | None:
        if not target:
            return None
        return float(min(1.0, max(0.0, self._metric.sentence_score(text, [target]).score / 100.0)))
