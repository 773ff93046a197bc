"""How much of a reference an answer shares, by sacrebleu, scaled to 0..1: chrF and BLEU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rbalign.scorers.base import as_text, column


class Overlap:
    """A sentence metric of sacrebleu against one target, divided by 100.

    `against` names the target's column: "answer" (y_ref) or "reference" (an independent teacher sample, for metrics).
    An empty answer scores 0; without a target the answer is unscored.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, name: str, metric: Any, against: str) -> None:
        self.name, self.against = name, against
        self._metric = metric

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


class ChrF(Overlap):
    """Sentence chrF2: characters of order 6, no words (Popović 2015)."""

    def __init__(self, against: str = "answer") -> None:
        from sacrebleu.metrics import CHRF

        super().__init__("chrf", CHRF(), against)


class Bleu(Overlap):
    """Sentence BLEU (13a tokens, exponential smoothing, effective order): the paper's reward for translation.

    `tokenize`: sacrebleu's, "zh" or "ja-mecab" where words have no spaces between them.
    """

    def __init__(self, against: str = "answer", tokenize: str = "13a") -> None:
        from sacrebleu.metrics import BLEU

        super().__init__("bleu", BLEU(effective_order=True, tokenize=tokenize), against)
