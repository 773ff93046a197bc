"""chrF of an answer against one reference, scaled to 0..1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rbalign.scorers.base import as_text, column


class ChrF:
    """Sentence chrF2 (characters of order 6, no words; Popović 2015) by sacrebleu, divided by 100.

    `against` names the target's column: "answer" (y_ref) or "reference" (an independent teacher sample, for metrics).
    An empty answer scores 0; without a target the answer is unscored.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, against: str = "answer") -> None:
        from sacrebleu.metrics import CHRF

        self.name, self.against = "chrf", against
        self._metric = CHRF()

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
