"""The reward of [align]: refused before any work if it cannot be one, opened with the models that it asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rbalign.assets import home, model_folder
from rbalign.config.mixtures import needs
from rbalign.config.sections import AlignConfig
from rbalign.errors import UsageError
from rbalign.scorers.registry import build, check_reward
from rbalign.stages.policy import family_digest

if TYPE_CHECKING:
    from rbalign.scorers import Scorer

ASKS = {
    "reward-model": ("reward_model", 'reward_model = "FOLDER"'),
    "judge": ("judge", 'judge = { url = "http://HOST/v1", model = "NAME" }'),
}
"""Scorers that ask a model of their own -> the key of [align] that names it, and how to write it."""


def rewarded(config: AlignConfig) -> bool:
    """Whether an arm takes a reward at all."""
    return any("scores" in needs(config.mixture(arm)) for arm in config.arms)


def check(config: AlignConfig) -> None:
    """UsageError for a scorer that is unknown or unsafe alone, or whose model is missing or no reward model."""
    if not rewarded(config):
        return
    check_reward(config.scorer)
    for name, (key, written) in ASKS.items():
        if _asked(config, name) and getattr(config, key) is None:
            raise UsageError(f"[align] scorer {name} has no model to ask", f"add to [align]: {written}")
    if config.reward_model is not None and _asked(config, "reward-model"):
        from rbalign.scorers.reward import is_armorm

        is_armorm(model_folder(config.reward_model))
    if config.judge is not None and _asked(config, "judge"):
        from rbalign.remote.client import Client

        Client(config.judge).close()  # a key that is not set is told now, not after hours of synthesis


def open_scorer(config: AlignConfig) -> Scorer:
    """The recipe's reward with the models that it asks, in memory or behind a server."""
    resources: dict[str, dict[str, Any]] = {}
    if config.reward_model is not None and _asked(config, "reward-model"):
        resources["reward-model"] = {"folder": model_folder(config.reward_model)}
    if config.judge is not None and _asked(config, "judge"):
        from rbalign.eval.judges import LlmJudge
        from rbalign.remote.client import Client

        resources["judge"] = {"judge": LlmJudge(config.judge, Client(config.judge, home()))}
    if isinstance(config.scorer, str):
        return build(config.scorer, **resources.get(config.scorer, {}))
    return build(config.scorer, **resources)


def reward_hash(config: AlignConfig) -> Mapping[str, str]:
    """The reward model by its hash, where one is asked."""
    if config.reward_model is None or not rewarded(config) or not _asked(config, "reward-model"):
        return {}
    return {"reward_model": family_digest(config.reward_model)}


def _asked(config: AlignConfig, scorer: str) -> bool:
    return scorer == config.scorer if isinstance(config.scorer, str) else scorer in config.scorer
