"""What models say of an answer's own tokens, as one number: a score, never a judge.

teacher-likelihood   how likely the text teacher finds the answer, given the written instruction
hidden-similarity    how alike the student's states on the speech and the untouched model's on the text are (TARS)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from rbalign.scorers.base import column

FLOOR = -50.0
"""Mean log-probs below this are cut: 50 nats a token is far below uniform (10.8 over 49,152 tokens)."""


class TokenMean:
    """Mean over the tokens of a completion of what the caller computed for each, within bounds.

    No tokens, or a value that is not a number, leaves the completion unscored.
    """

    name: str
    needs: frozenset[str]
    column: ClassVar[str]
    """Where the caller puts a list of numbers for each completion, the end token's among them."""
    bounds: ClassVar[tuple[float, float]]

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One mean for each completion."""
        return [self._one(values) for values in column(columns, self.column, len(completions))]

    def _one(self, values: Any) -> float | None:
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError, OverflowError):
            return None
        if not numbers or any(math.isnan(number) for number in numbers):
            return None
        low, high = self.bounds
        return min(high, max(low, sum(numbers) / len(numbers)))


class TeacherLikelihood(TokenMean):
    """Mean log-prob per token (nats) under the teacher, in [-50, 0], of the column `teacher_logprobs`."""

    name = "teacher-likelihood"
    needs = frozenset({"teacher_logprobs"})
    column = "teacher_logprobs"
    bounds = (FLOOR, 0.0)


class HiddenSimilarity(TokenMean):
    """Mean cosine, over tokens and layers, of the student's hidden states on the speech to those of the untouched
    language model on the written instruction, both before the same token of the same completion; in [-1, 1].

    The reward by which TARS (arXiv 2601.05543) pulls the speech run to the text run, layer by layer.
    """

    name = "hidden-similarity"
    needs = frozenset({"hidden_cosines"})
    column = "hidden_cosines"
    bounds = (-1.0, 1.0)
