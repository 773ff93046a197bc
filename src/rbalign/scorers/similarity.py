"""Meaning as a vector: sentence embedders, and the cosine of an answer to a target under one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rbalign.errors import unknown
from rbalign.scorers.base import as_text, column

BATCH = 64
MAX_TOKENS = 256
"""MiniLM was trained on at most 256 word pieces; the rest of a longer text is not read."""


class Embedder(Protocol):
    """Texts to unit vectors: (N,) -> (N, D) float32. Empty texts become zero vectors: similar to nothing."""

    name: str

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32, each row of length 1, or 0 for an empty text."""
        ...


class MiniLM:
    """all-MiniLM-L6-v2: mean of the last hidden states over real tokens, D = 384 (Reimers and Gurevych 2019)."""

    name = "minilm"

    def __init__(self, folder: Path | str | None = None) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        from rbalign import assets

        path = folder if folder is not None else assets.folder("minilm")
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._model = AutoModel.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder`. Sorted by length inside, so that a batch pads little."""
        out = np.zeros((len(texts), self._model.config.hidden_size), dtype=np.float32)
        filled = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(texts[i]))
        for start in range(0, len(filled), BATCH):
            rows = filled[start : start + BATCH]
            out[rows] = self._batch([texts[i] for i in rows])
        return out

    def _batch(self, texts: list[str]) -> np.ndarray:
        import torch

        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with torch.no_grad():
            hidden = self._model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return np.asarray(torch.nn.functional.normalize(mean, dim=1).numpy())


class WordLlama:
    """Static token vectors (WordLlama l2_supercat, D = 256), averaged. Weaker than MiniLM, but no arm's reward."""

    name = "wordllama"

    def __init__(self, folder: Path | str | None = None) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        from rbalign import assets

        path = Path(folder) if folder is not None else assets.folder("wordllama")
        self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._vectors = load_file(path / "model.safetensors")["embedding.weight"].astype(np.float32)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `Embedder`."""
        out = np.zeros((len(texts), self._vectors.shape[1]), dtype=np.float32)
        for row, text in enumerate(texts):
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids if text.strip() else []
            if ids:
                mean = self._vectors[ids].mean(axis=0)
                out[row] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return out


EMBEDDERS: dict[str, Any] = {"minilm": MiniLM, "wordllama": WordLlama}


def build_embedder(name: str) -> Embedder:
    """The embedder called `name`, loaded from its asset."""
    if name not in EMBEDDERS:
        raise unknown("embedder", name, EMBEDDERS)
    embedder: Embedder = EMBEDDERS[name]()
    return embedder


def unit_vectors(embedder: Embedder, texts: Sequence[str]) -> np.ndarray:
    """(N, D) float32 of N texts, each different one embedded once; zero vectors for empty ones."""
    different = list(dict.fromkeys(text for text in texts if text))
    vectors = embedder.embed(different) if different else np.zeros((0, 1), np.float32)
    vectors = np.concatenate([vectors, np.zeros((1, vectors.shape[1]), vectors.dtype)])
    place = {text: row for row, text in enumerate(different)}
    return np.asarray(vectors[[place.get(text, len(different)) for text in texts]])


class Similarity:
    """Cosine of the answer's vector to the target's, in [-1, 1]. An empty answer scores 0.

    The target is the column `against`: "answer" (y_ref, what rba-group is rewarded for) or "reference".
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, against: str = "answer", embedder: Embedder | str = "minilm") -> None:
        self.name, self.against = "similarity", against
        self._embedder = build_embedder(embedder) if isinstance(embedder, str) else embedder

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One cosine for each completion; None where the target is missing or empty."""
        texts = [as_text(text) for text in completions]
        targets = [as_text(target) for target in column(columns, self.against, len(texts))]
        vectors = unit_vectors(self._embedder, [*texts, *targets])
        cosines = np.clip((vectors[: len(texts)] * vectors[len(texts) :]).sum(axis=1), -1.0, 1.0)
        return [float(cosine) if target else None for cosine, target in zip(cosines, targets, strict=True)]


class Relevance(Similarity):
    """Cosine of the answer's vector to the request's, in [-1, 1]: what answers any request alike is near to none.

    An echo has 1: it goes beside novelty.
    """

    def __init__(self, embedder: Embedder | str = "minilm") -> None:
        super().__init__("request", embedder)
        self.name = "relevance"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One cosine for each completion; None for an empty request."""
        return super().__call__(prompts, completions, completion_ids, request=list(prompts))
