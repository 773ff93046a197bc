"""Rollouts: the policy's own samples over the views of each example, scored, and the pair that RBA-Group takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rbalign.keys import Key
from rbalign.lm.sampler import SamplingParams
from rbalign.scorers.base import Scorer, example_columns
from rbalign.speechlm.base import Policy
from rbalign.types import Example, StopReason, View

SAMPLE_BATCH = 64
"""Rows decoded at once: where the fused loop stops gaining, and 64 x 49,152 logits stay at 13 MB."""


@dataclass(frozen=True, slots=True)
class Item:
    """What one instruction brings to training: its views and the ids of the teacher's answer, end token included."""

    example: Example
    views: tuple[View, ...]
    answer: Tensor
    """(T,) int64."""


@dataclass(slots=True)
class Drawn:
    """One sample of the policy on one view."""

    view: View
    sample: int
    ids: Tensor
    """(T,) int64; the end token is among them unless the sample is truncated."""
    logprobs: Tensor
    """(T,) untempered token log-probs under the policy as it was when it drew this."""
    stop: StopReason
    text: str
    score: float | None = None
    served: Tensor | None = None
    """(T,) the same as the server tells them that sampled in the policy's place; None: the policy drew it itself."""

    @property
    def truncated(self) -> bool:
        """Ended by the length cap."""
        return self.stop is StopReason.LENGTH

    def log_ratios(self) -> Tensor:
        """(T,) log of the policy's probability of each token over that of whoever drew it."""
        return torch.zeros_like(self.logprobs) if self.served is None else self.logprobs - self.served

    def correction(self, cap: float) -> float:
        """Importance weight of the whole sample, at most `cap`: truncated importance sampling."""
        return min(math.exp(float(self.log_ratios().sum())), cap)


@dataclass(slots=True)
class Group:
    """The samples over all views of one example: the unit of every objective."""

    item: Item
    drawn: list[Drawn] = field(default_factory=list)

    def correction(self, cap: float) -> float:
        """Importance weight of all samples together, at most `cap`: which are best and worst hangs on every one."""
        return min(math.exp(sum(float(drawn.log_ratios().sum()) for drawn in self.drawn)), cap)

    def pair(self, key: Key, gap: float = 0.0) -> tuple[Drawn, Drawn] | None:
        """(best, worst) by score, or None where the scores name none; `key` breaks ties at the top or bottom."""
        places = best_and_worst([drawn.score for drawn in self.drawn], key, gap)
        return None if places is None else (self.drawn[places[0]], self.drawn[places[1]])


def best_and_worst(scores: Sequence[float | None], key: Key, gap: float = 0.0) -> tuple[int, int] | None:
    """Places of the highest and the lowest score; None if fewer than two are scored, they are equal or within `gap`.

    Unscored samples stand aside. Among equals at an end a keyed draw decides: the first one would favour its voice.
    """
    scored = [(value, place) for place, value in enumerate(scores) if value is not None]
    if len({value for value, _ in scored}) < 2 or max(scored)[0] - min(scored)[0] < gap:
        return None
    ends = []
    for value in (max(scored)[0], min(scored)[0]):
        equal = [place for other, place in scored if other == value]
        ends.append(min(equal, key=lambda place: key.at(sample=place).digest()))
    return ends[0], ends[1]


def draw_groups(
    policy: Policy, items: Sequence[Item], params: SamplingParams, key: Key, samples_per_view: int = 1
) -> list[Group]:
    """Sample every view of every item; the keys name example, view and sample, so batches cannot matter."""
    groups = [Group(item) for item in items]
    rows = [(group, view) for group in groups for view in group.item.views]
    for start in range(0, len(rows), max(1, SAMPLE_BATCH // samples_per_view)):
        batch = rows[start : start + max(1, SAMPLE_BATCH // samples_per_view)]
        keys = [
            [key.at(example=view.example_id, view=view.index, sample=n) for n in range(samples_per_view)]
            for _, view in batch
        ]
        samples = policy.sample(policy.prompts([view for _, view in batch]), params, keys)
        for (group, view), own in zip(batch, samples, strict=True):
            for number, sample in enumerate(own):
                text = policy.decode(sample.ids)
                group.drawn.append(Drawn(view, number, sample.ids, sample.logprobs, sample.stop, text))
    return groups


def score_groups(policy: Policy, groups: Sequence[Group], scorer: Scorer) -> None:
    """Give every sample its score, in place. What the scorer needs beyond text is computed here."""
    rows = [(group, drawn) for group in groups for drawn in group.drawn]
    if not rows:
        return
    columns: dict[str, list[Any]] = {
        **example_columns([group.item.example for group, _ in rows]),
        "group": [group.item.example.id for group, _ in rows],
        "view": [drawn.view.index for _, drawn in rows],
    }
    if "teacher_logprobs" in scorer.needs:
        columns["teacher_logprobs"] = teacher_logprobs(policy, rows)
    if "hidden_cosines" in scorer.needs:
        columns["hidden_cosines"] = [values for group in groups for values in hidden_cosines(policy, group)]
    prompts = [group.item.example.instruction for group, _ in rows]
    texts, ids = [drawn.text for _, drawn in rows], [drawn.ids.tolist() for _, drawn in rows]
    scores = scorer(prompts, texts, ids, **columns)
    for (_, drawn), score in zip(rows, scores, strict=True):
        drawn.score = score


@torch.no_grad()
def teacher_logprobs(policy: Policy, rows: Sequence[tuple[Group, Drawn]]) -> list[list[float]]:
    """Log-probs of each sample's tokens under the text teacher on the written instruction."""
    by_group: dict[int, tuple[Group, list[int]]] = {}
    for place, (group, _) in enumerate(rows):
        by_group.setdefault(id(group), (group, []))[1].append(place)
    prompts = policy.text_prompts([group.item.example.instruction for group, _ in by_group.values()])
    branches = [[rows[place][1].ids for place in places] for _, places in by_group.values()]
    with policy.untouched():
        logprobs, mask = policy.measure(prompts, branches)
    order = [place for _, places in by_group.values() for place in places]
    values: list[list[float]] = [[] for _ in rows]
    for place, row, keep in zip(order, logprobs, mask, strict=True):
        values[place] = row[keep].tolist()
    return values


@torch.no_grad()
def hidden_cosines(policy: Policy, group: Group) -> list[list[float]]:
    """For each token of each sample: the cosine, averaged over layers, of the policy's hidden state before it on the
    sample's own clip to the untouched language model's on the written instruction.

    A group at a time: states of all layers are about 2 MB a sample of 32 tokens.
    """
    places: dict[str, list[int]] = {}
    for place, drawn in enumerate(group.drawn):
        places.setdefault(drawn.view.id, []).append(place)
    if not places:
        return []
    views = [group.drawn[own[0]].view for own in places.values()]
    branches = [[group.drawn[place].ids for place in own] for own in places.values()]
    order = [place for own in places.values() for place in own]
    heard, mask = policy.states(policy.prompts(views), branches)
    with policy.untouched():
        text = policy.text_prompts([group.item.example.instruction])
        read, _ = policy.states(text, [[ids for own in branches for ids in own]])
    alike = torch.nn.functional.cosine_similarity(heard, read, dim=-1).mean(-1)
    values: list[list[float]] = [[] for _ in group.drawn]
    for place, row, keep in zip(order, alike, mask, strict=True):
        values[place] = row[keep].tolist()
    return values


def sample_rows(update: int, groups: Sequence[Group]) -> Iterator[Mapping[str, Any]]:
    """Rows of samples.jsonl: enough to read, to count by voice, and to take up stale samples again."""
    for group in groups:
        for drawn in group.drawn:
            yield {
                "id": f"{update}/{drawn.view.id}/{drawn.sample}",
                "update": update,
                "example": group.item.example.id,
                "view": drawn.view.index,
                "sample": drawn.sample,
                "voice": drawn.view.spec.voice,
                "text": drawn.text,
                "ids": drawn.ids.tolist(),
                "logprobs": [round(value, 6) for value in drawn.logprobs.tolist()],
                "stop": str(drawn.stop),
                "score": drawn.score,
                **({} if drawn.served is None else {"served": [round(value, 6) for value in drawn.served.tolist()]}),
            }


def restore_groups(
    items: Sequence[Item], rows: Mapping[tuple[str, int, int], Mapping[str, Any]], n: int
) -> list[Group]:
    """Groups from rows of samples.jsonl by (example, view, sample); `n` samples a view. KeyError if one is missing."""
    groups = []
    for item in items:
        drawn = []
        for view in item.views:
            for number in range(n):
                row = rows[item.example.id, view.index, number]
                ids, stop = torch.tensor(row["ids"], dtype=torch.long), StopReason(row["stop"])
                logprobs = torch.tensor(row["logprobs"])
                served = torch.tensor(row["served"]) if "served" in row else None
                drawn.append(Drawn(view, number, ids, logprobs, stop, row["text"], row["score"], served))
        groups.append(Group(item, drawn))
    return groups
