"""`rba align`: each arm with each seed, from the same start, on the same views in the same order.

arms/ARM-sSEED/metrics.jsonl, samples.jsonl   a row for each update, and for each of the policy's own samples
arms/ARM-sSEED/answers.jsonl                  what it answers to the same few clips, every so many updates
arms/ARM-sSEED/checkpoints/                   the Trainer's own, for going on after an interruption
arms/ARM-sSEED/final/                         LoRA in peft's format, the audio adapter if it trained, arm.json
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

from rbalign.config.mixtures import MATCHED, needs, objective
from rbalign.config.recipe import Recipe
from rbalign.config.sections import AlignConfig
from rbalign.data.dataset import Dataset
from rbalign.errors import UsageError
from rbalign.remote.client import Client
from rbalign.rundir.run import RunDir
from rbalign.stages.arms import Job, align_config, arm_folder, arm_name, cost, training, updates_done
from rbalign.stages.base import Plan, PlanRow
from rbalign.stages.chain import settings
from rbalign.stages.policy import backbone, hearing_hash, reads_as_before
from rbalign.stages.rewards import check as check_reward
from rbalign.stages.rewards import reward_hash

SECONDS_PER_VIEW = {"ce": 0.25, "kd": 0.4, "single": 0.75, "group": 0.75, "grpo": 0.6, "opd": 0.8}
"""Wall seconds of one view of one update on two cores, answers of 32 tokens, embedded models; see dev/LOG.md. The
dearest term of a mixture stands for it: passes are shared."""
TOKENS_MEASURED = 32
RBA_OPERATIONS = {"sft": 2.2, "kd": 1.7}
"""Operations of an RBA update beside those of sft and kd: they plan a matched arm before the others are there."""
BYTES_PER_ARM = 120_000_000
"""Two checkpoints and the final weights: LoRA of rank 16 with two moments is 40 MB."""
BYTES_PER_FULL_ARM = 3_000_000_000
"""The same of the embedded decoder's own weights: 425 MB, and with two moments 1.3 GB."""


def plan(recipe: Recipe, run: RunDir) -> Plan:
    """Updates still to do, by arm. Estimates for two cores and the embedded models."""
    config = align_config(recipe)
    rules = recipe.synth.views if recipe.synth else ()
    views = sum(rule.per_example * rule.fraction for rule in rules) or 4
    rows = []
    for arm in config.arms:
        seeds = [seed for seed in config.seeds if run.outputs(_stage(arm, seed)) is None]
        if seeds:
            wanted = round(config.updates * (RBA_OPERATIONS[objective(arm)] if arm.endswith(MATCHED) else 1))
            updates = sum(wanted - updates_done(arm_folder(run, arm, seed)) for seed in seeds)
            seconds = _seconds(config, arm, updates, views)
            each = BYTES_PER_FULL_ARM if config.full_finetuning else BYTES_PER_ARM
            rows.append(PlanRow(f"updates of {arm}", updates, seconds, each * len(seeds)))
    return Plan(tuple(rows))


def inputs(recipe: Recipe) -> Mapping[str, str]:
    """The connector or the speech LLM, where it comes from outside the run; the reward model if one is asked."""
    return {**hearing_hash(recipe), **reward_hash(align_config(recipe))}


def check(recipe: Recipe) -> None:
    """A speech LLM that cannot be aligned; arms that this teacher, this reward, or samples drawn so, cannot train."""
    config, learner = align_config(recipe), backbone(recipe)
    reads = True
    if config.model is not None:
        if recipe.connect is not None:
            raise UsageError(
                f"[connect] trains a connector, and [align] model = {config.model!r} has its own ears",
                "leave out [connect] or [align] model",
            )
        reads = reads_as_before(recipe, config.model)
    check_reward(config)
    if config.rollout is not None:
        Client(config.rollout).close()  # a key that is not set is told now, not after hours of synthesis
    tempered = config.sampling.temperature != 1 or config.sampling.top_p != 1
    for arm in config.arms:
        wanted = needs(config.mixture(arm))
        if "teacher" in wanted and (recipe.teacher.endpoint is not None or recipe.teacher.model != learner):
            raise UsageError(
                f"{arm} reads the teacher's distribution from the backbone itself, and {recipe.teacher.author!r} is "
                f"not {learner!r}",
                f"set [teacher] model to the backbone, or leave {arm} out of [align] arms",
            )
        if "teacher" in wanted and not reads:
            raise UsageError(
                f"{arm} reads the teacher's distribution from the backbone itself, and {learner!r} comes with LoRA of "
                "its own to hear: with it the model does not read as its text LLM does",
                f"leave {arm} out of [align] arms",
            )
        if "samples" in wanted and tempered:
            raise UsageError(
                f"{arm} samples at temperature 1 and top-p 1: other samples are not the policy's own",
                "leave [align.sampling] temperature and top_p at 1",
            )
        if "grpo" in config.mixture(arm) and config.grpo.kl and config.reference == "none":
            raise UsageError(
                f'[align.grpo] kl = {config.grpo.kl} holds {arm} to a reference, and reference = "none" drops it',
                'set kl = 0, or reference = "fixed"',
            )


def run(recipe: Recipe, run: RunDir) -> Mapping[str, str]:
    """Train what is not finished yet, matched arms after what they match; each goes on from its own checkpoint."""
    config = align_config(recipe)
    outside = {"data": Dataset.open(run.path("data")).content_hash, **_hearing(recipe, run)}
    with training(recipe, run) as train:
        for matched in (False, True):
            handles = {}
            for arm, seed in product(config.arms, config.seeds):
                if arm.endswith(MATCHED) == matched:
                    job = Job(arm, seed, _updates(config, run, arm, seed))
                    section = _arm_settings(recipe, job)
                    handles[job] = run.stage(_stage(arm, seed), section, outside)
            todo = [job for job, handle in handles.items() if not handle.done]
            for job, weights in train(sorted(todo, key=lambda job: -_seconds(config, job.arm, job.updates))):
                handles[job].finish({"arm": weights})
    every = product(config.arms, config.seeds)
    return {arm_name(*one): (run.outputs(_stage(*one)) or {})["arm"] for one in every}


def _stage(arm: str, seed: int) -> str:
    return f"align/{arm_name(arm, seed)}"


def _seconds(config: AlignConfig, arm: str, updates: int, views: float = 4.0) -> float:
    """Estimate of training an arm for so many updates."""
    mixture = config.mixture(arm)
    samples = config.samples_per_view if "samples" in needs(mixture) else 1
    a_view = max(SECONDS_PER_VIEW[term] for term in mixture) * (1 + samples) / 2
    length = config.sampling.max_new_tokens / TOKENS_MEASURED
    return updates * config.examples_per_update * views * a_view * length


def _updates(config: AlignConfig, run: RunDir, arm: str, seed: int) -> int:
    """Updates of an arm: the recipe's, or for a matched one as many as spend what the run's RBA arm has spent."""
    own = objective(arm)
    if arm == own or not config.updates:
        return config.updates
    plain = cost(run, own, seed)
    rival = cost(run, "rba-single" if "rba-single" in config.arms else "rba-group", seed)
    ratio: float = rival["operations"] / plain["operations"]
    taken: int = plain["updates"]
    return math.ceil(ratio * taken)


def _arm_settings(recipe: Recipe, job: Job) -> dict[str, Any]:
    """What one arm depends on: all of [align] but the lists of arms and seeds, and other arms' arguments."""
    own = align_config(recipe).of_arm(job.arm, job.updates)
    whole = settings(recipe.model_copy(update={"align": own}), "align")
    section = {name: value for name, value in whole["align"].items() if name not in ("arms", "seeds")}
    return {**whole, "align": section, "arm": job.arm, "arm_seed": job.seed}


def _hearing(recipe: Recipe, run: RunDir) -> Mapping[str, str]:
    heard = hearing_hash(recipe) or {"connector": (run.outputs("connect") or {}).get("connector", "missing")}
    return {**heard, **reward_hash(align_config(recipe))}
