"""Reward models of transformers as scorers: a sequence classifier with one label, or ArmoRM.

A chat of two turns, the request and the answer, goes through the model's own chat template; no system prompt. What
the model gives for it is the score, on its own scale. No code that lies in the model's folder is run.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification

from rbalign.errors import DataError, RbaError, UsageError
from rbalign.lm.load import load_tokenizer, load_weights, model_type
from rbalign.lm.templates import around_user
from rbalign.scorers.armorm import ARCHITECTURE, ArmoRM
from rbalign.scorers.base import as_text

BATCH = 8
MOST_TOKENS = 4096
"""Of request and answer together; fewer where the model itself has fewer positions."""
BOUND = 1000.0
"""Scores are cut here: far beyond what a reward model that works gives."""


class RewardModel:
    """What a reward model gives for request and answer, in [-1000, 1000].

    A chat that is longer than the model takes loses its end, which is counted (`counts`); if the request alone fills
    it, and where the model gives no number, the answer is unscored.
    """

    name = "reward-model"
    needs: frozenset[str] = frozenset()

    def __init__(self, folder: Path | str, most_tokens: int = MOST_TOKENS) -> None:
        """`folder` holds model, tokenizer and chat template. UsageError for a model that gives no single number."""
        path = Path(folder)
        self._tokenizer = load_tokenizer(path)
        self._model, self._gated = _load(path)
        self._ends_request = around_user(self._tokenizer)[1]
        special = [str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self._most = min(most_tokens, positions or most_tokens, self._tokenizer.model_max_length)
        self._counts: Counter[str] = Counter(truncated=0)

    @property
    def counts(self) -> Mapping[str, float]:
        """`truncated`: chats that were cut so far."""
        return dict(self._counts)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """One score for each completion; what stands twice is scored once."""
        pairs = [(self._words(prompt), self._words(text)) for prompt, text in zip(prompts, completions, strict=True)]
        chats: dict[tuple[str, str], list[int] | None] = {}
        for pair in pairs:
            if pair not in chats:
                chats[pair] = self._chat(*pair)
        known = sorted(((ids, pair) for pair, ids in chats.items() if ids is not None), key=lambda row: len(row[0]))
        scores: dict[tuple[str, str], float] = {}
        size = BATCH if self._pad is not None else 1  # transformers, too, takes one row where no token pads
        for start in range(0, len(known), size):
            rows = known[start : start + size]
            for (_, pair), value in zip(rows, self._rewards([ids for ids, _ in rows]), strict=True):
                scores[pair] = value
        return [_bounded(scores.get(pair)) for pair in pairs]

    @property
    def _pad(self) -> int | None:
        pad: int | None = self._model.config.get_text_config().pad_token_id
        return pad

    def _words(self, text: Any) -> str:
        """Words only: an answer that spells a template's own tokens must not open a turn of its own."""
        return self._special.sub(" ", as_text(text))

    def _chat(self, request: str, answer: str) -> list[int] | None:
        """Ids of the whole chat, cut at the model's most; None where no part of the answer has room."""
        turns = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
        ids = self._encoded(turns)
        if len(ids) > self._most:
            self._counts["truncated"] += 1
            if len(self._encoded(turns[:1], add_generation_prompt=True)) >= self._most:
                return None
            ids = ids[: self._most]
        return ids if not self._gated or _last_run(ids, self._ends_request) is not None else None

    def _encoded(self, turns: list[dict[str, str]], **more: bool) -> list[int]:
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, **more)
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _rewards(self, rows: Sequence[Sequence[int]]) -> list[float]:
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=self._pad or 0)
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
        with torch.no_grad():
            if self._gated:
                places = torch.tensor([_last_run(row, self._ends_request) for row in rows])
                found = self._model(ids, mask, places)
            else:
                found = self._model(input_ids=ids, attention_mask=mask).logits[:, 0]
        return [float(value) for value in found]


def is_armorm(folder: Path) -> bool:
    """Whether a folder holds ArmoRM; else a classifier with one label. UsageError for any other, before it is read."""
    model_type(folder)
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if ARCHITECTURE in (told.get("architectures") or ()):
        return True
    labels = _labels(told)
    if labels != 1:
        raise UsageError(
            f"{folder} has {labels} labels, and a reward is one number",
            "give a reward model with one label, or ArmoRM; others of several objectives are not known",
        )
    return False


def _load(folder: Path) -> tuple[Any, bool]:
    """The model, and whether it is ArmoRM."""
    gated = is_armorm(folder)
    loader = ArmoRM if gated else AutoModelForSequenceClassification
    try:
        return load_weights(folder, loader, exact=True).eval().requires_grad_(False), gated
    except RbaError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise DataError(
            f"{folder} is no reward model that transformers reads without code of the folder's own: {reason}",
            "give a sequence classifier with one label that save_pretrained wrote, or ArmoRM",
        ) from None


def _labels(config: Mapping[str, Any]) -> int:
    """How many numbers the head gives: transformers writes them as id2label, and takes two where nothing is said."""
    named = config.get("id2label")
    return len(named) if isinstance(named, dict) else int(config.get("num_labels") or 2)


def _last_run(ids: Sequence[int], wanted: Sequence[int]) -> int | None:
    """Where `wanted` begins for the last time in `ids`: at the token that ends the request."""
    size = len(wanted)
    places = range(len(ids) - size, -1, -1)
    return next((place for place in places if list(ids[place : place + size]) == list(wanted)), None)


def _bounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else min(BOUND, max(-BOUND, value))
