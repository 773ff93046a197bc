"""An LLM's opinion of an answer as a score. Who asks it, and where it runs, is the caller's: a `Rater` is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rbalign.scorers.base import as_text


class Rater(Protocol):
    """Rates answers one by one; `eval.judges.LlmJudge` does."""

    @property
    def counts(self) -> Mapping[str, float]:
        """What asking took so far."""
        ...

    def rate(self, requests: Sequence[str], answers: Sequence[str]) -> list[float | None]:
        """For each answer a number in 0..1, or None where no rating was given or could be read."""
        ...


class Judged:
    """What the judge says of each answer, in 0..1. An empty answer scores 0 unasked; without a rating it is unscored.

    Raises what the judge raises once no request can succeed (a refused key, a server that is gone).
    """

    name = "judge"
    needs: frozenset[str] = frozenset()

    def __init__(self, judge: Rater) -> None:
        self._judge = judge

    @property
    def counts(self) -> Mapping[str, float]:
        """Requests, cache hits, tokens and cost."""
        return self._judge.counts

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One rating for each completion; what stands twice is asked once."""
        pairs = [(as_text(prompt), as_text(text)) for prompt, text in zip(prompts, completions, strict=True)]
        asked = list(dict.fromkeys(pair for pair in pairs if pair[1]))
        rated = self._judge.rate([request for request, _ in asked], [answer for _, answer in asked]) if asked else []
        ratings = dict(zip(asked, rated, strict=True))
        return [ratings[pair] if pair[1] else 0.0 for pair in pairs]
