"""The numbers of an update beside its loss: seconds by phase, and what was sampled."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from accelerate.utils import gather_object  # type: ignore[import-untyped]

from rbalign.config.mixtures import needs
from rbalign.config.sections import AlignConfig
from rbalign.keys import Key
from rbalign.train.batches import group_advantages, one_sided
from rbalign.train.rollout import Group


@dataclass(slots=True)
class Phases:
    """Wall seconds of an update by phase."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def rollout_counts(
    groups: Sequence[Group], mixture: Mapping[str, float], config: AlignConfig, tie_key: Key
) -> dict[str, Any]:
    """Samples of all ranks: number, lengths, truncation and scores; what gave no pair or no advantage; for RBA-Group
    how often each voice is chosen and rejected."""
    mine = []
    for group in groups:
        pair = group.pair(tie_key.at(example=group.item.example.id), config.min_score_gap)
        drawn = [(len(one.ids), one.truncated, one.score) for one in group.drawn]
        voices = [end.view.spec.voice for end in pair or ()]
        served = [one for one in group.drawn if one.served is not None]
        flat = all(advantage is None for advantage in group_advantages(group, config))
        mine.append({"drawn": drawn, "pair": voices, "one_sided": pair is not None and one_sided(pair), "flat": flat})
        mine[-1]["log_ratios"] = [value for one in served for value in one.log_ratios().tolist()]
    every = list(gather_object(mine))
    drawn = [one for group in every for one in group["drawn"]]
    counts: dict[str, Any] = {
        "samples": len(drawn),
        "sample_length": sum(length for length, _, _ in drawn) / len(drawn),
        "truncated": sum(cut for _, cut, _ in drawn) / len(drawn),
    }
    ratios = [value for group in every for value in group["log_ratios"]]
    if ratios:  # of our probabilities over those of the server that drew; KL(server || policy) by its own samples
        counts["server_gap"] = sum(map(abs, ratios)) / len(ratios)
        counts["server_largest_gap"] = max(map(abs, ratios))
        counts["server_kl"] = -sum(ratios) / len(ratios)
    if "single" in mixture:  # pairs with a complete answer: every truncated sample makes a one-sided pair
        counts["one_sided"] = sum(cut for _, cut, _ in drawn)
    if "scores" in needs(mixture):
        scores = [score for _, _, score in drawn if score is not None]
        counts["reward"] = sum(scores) / len(scores) if scores else None
        counts["unscored"] = len(drawn) - len(scores)
    if "grpo" in mixture:
        counts["without_advantage"] = sum(group["flat"] for group in every)
    if "group" in mixture:
        counts["one_sided"] = sum(group["one_sided"] for group in every)
        counts["without_pair"] = sum(not group["pair"] for group in every)
        counts["chosen_voices"] = dict(Counter(group["pair"][0] for group in every if group["pair"]))
        counts["rejected_voices"] = dict(Counter(group["pair"][1] for group in every if group["pair"]))
    return counts


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN: such a number becomes None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """What loggers can draw of an update's row: finite numbers, booleans and its own number apart."""
    found = {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool) and k != "update"}
    return {k: float(v) for k, v in found.items() if math.isfinite(v)}
