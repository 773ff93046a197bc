"""How much an answer says what the same model answered when it heard the same request in other voices."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from rbalign.scorers.base import as_text, column
from rbalign.scorers.similarity import Embedder, build_embedder, unit_vectors


def to_others(vectors: np.ndarray, owners: Sequence[Hashable]) -> np.ndarray:
    """Mean cosine of each row to the rows of other owners: unit vectors (k, D) -> (k,) float64; NaN without others.

    From sums, so that no k x k matrix is needed: a row's cosines to all rows less those to its owner's.
    """
    wide = np.asarray(vectors, dtype=np.float64)
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    own = np.array([numbers[owner] for owner in owners], dtype=np.intp)
    sums = np.zeros((len(numbers), wide.shape[1]))
    np.add.at(sums, own, wide)
    others = len(wide) - np.bincount(own, minlength=len(numbers))[own]
    totals = (wide * (sums.sum(axis=0) - sums[own])).sum(axis=1)
    return np.asarray(np.divide(totals, others, out=np.full(len(wide), np.nan), where=others > 0))


class Consistency:
    """Mean cosine of the answer's vector to those of the answers to other views of its instruction, in [-1, 1].

    The caller gives the columns `group` (which instruction) and `view` (which clip of it) and all samples of an
    instruction in one call. An empty answer is similar to nothing: it scores 0 and lowers the others. Without an
    answer to another view, or without either column, an answer is unscored.
    """

    name = "consistency"
    needs = frozenset({"group", "view"})

    def __init__(self, embedder: Embedder | str = "minilm") -> None:
        self._embedder = build_embedder(embedder) if isinstance(embedder, str) else embedder

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One mean cosine for each completion."""
        texts = [as_text(text) for text in completions]
        groups, views = (column(columns, name, len(texts)) for name in ("group", "view"))
        vectors = unit_vectors(self._embedder, texts)
        together: dict[str, list[int]] = {}
        for place, (group, view) in enumerate(zip(groups, views, strict=True)):
            if group is not None and view is not None:
                together.setdefault(repr(group), []).append(place)
        scores: list[float | None] = [None] * len(texts)
        for places in together.values():
            found = to_others(vectors[places], [repr(views[place]) for place in places])
            for place, value in zip(places, found, strict=True):
                scores[place] = None if np.isnan(value) else float(np.clip(value, -1.0, 1.0))
        return scores
