"""Several scorers as one: a weighted sum, unscored where any part is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rbalign.scorers.base import Scorer, counts_of


class Weighted:
    """sum_i w_i s_i / sum_i |w_i|. Weights may be negative; scales are the parts' own, nothing is normalised."""

    def __init__(self, parts: Mapping[str, tuple[Scorer, float]]) -> None:
        self.parts = dict(parts)
        self.name = "+".join(f"{weight:g}*{name}" for name, (_, weight) in self.parts.items())
        self.needs: frozenset[str] = frozenset().union(*(scorer.needs for scorer, _ in self.parts.values()))
        self._scale = sum(abs(weight) for _, weight in self.parts.values())

    @property
    def counts(self) -> Mapping[str, float]:
        """Those of its parts."""
        return {name: count for scorer, _ in self.parts.values() for name, count in counts_of(scorer).items()}

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One score for each completion; None where a part gave none."""
        scored = [
            [
                None if score is None else weight * score
                for score in scorer(prompts, completions, completion_ids, **columns)
            ]
            for scorer, weight in self.parts.values()
        ]
        return [_sum(row, self._scale) for row in zip(*scored, strict=True)]


def _sum(parts: Sequence[float | None], scale: float) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) / scale if len(known) == len(parts) else None
