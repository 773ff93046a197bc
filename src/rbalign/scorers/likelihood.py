"""How likely the text teacher finds an answer, given the written instruction: a score, never a judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rbalign.scorers.base import column

FLOOR = -50.0
"""Mean log-probs below this are cut: 50 nats a token is far below uniform (10.8 over 49,152 tokens)."""


class TeacherLikelihood:
    """Mean log-prob per token (nats) under the teacher, in [-50, 0].

    The caller computes the column `teacher_logprobs`: for each completion the log-probs of its tokens, the end
    token included. No tokens, or a value that is not a number, leaves the completion unscored.
    """

    needs = frozenset({"teacher_logprobs"})

    def __init__(self) -> None:
        self.name = "teacher-likelihood"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One mean log-prob for each completion."""
        return [self._one(values) for values in column(columns, "teacher_logprobs", len(completions))]

    def _one(self, values: Any) -> float | None:
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError):
            return None
        if not numbers or any(math.isnan(number) for number in numbers):
            return None
        return min(0.0, max(FLOOR, sum(numbers) / len(numbers)))
