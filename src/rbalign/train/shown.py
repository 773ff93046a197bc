"""Answers to the same few clips as training goes on, to be read: what a loss does not show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rbalign.keys import Key
from rbalign.speechlm.base import Policy
from rbalign.train.rollout import Item

CLIPS = 4
"""Of as many instructions, one voice each."""


class Shown:
    """Greedy answers: they change with the policy alone."""

    def __init__(self, policy: Policy, items: Sequence[Item], cap: int) -> None:
        """items: of which the first few are asked; cap: tokens of an answer."""
        self._policy, self._cap = policy, cap
        self._asked = [(item, item.views[number % len(item.views)]) for number, item in enumerate(items[:CLIPS])]

    def rows(self, update: int) -> Iterator[Mapping[str, Any]]:
        """Rows of answers.jsonl after this update; update 0 is before training."""
        policy = self._policy
        policy.refresh()
        prompts = policy.prompts([view for _, view in self._asked])
        keys = [[Key(0, "shown", example=view.id)] for _, view in self._asked]
        drawn = policy.sample(prompts, policy.params(0.0, 1.0, self._cap), keys)
        for (item, view), (sample,) in zip(self._asked, drawn, strict=True):
            yield {
                "id": f"{update}/{view.id}",
                "update": update,
                "example": item.example.id,
                "view": view.index,
                "voice": view.spec.voice,
                "request": item.example.instruction,
                "teacher": item.example.answer,
                "text": policy.decode(sample.ids),
                "stop": str(sample.stop),
            }
