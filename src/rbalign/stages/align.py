"""`rba align`: each arm with each seed, from the same start, on the same views in the same order.

arms/ARM-sSEED/metrics.jsonl, samples.jsonl   a row for each update, and for each of the policy's own samples
arms/ARM-sSEED/checkpoints/                   the Trainer's own, for going on after an interruption
arms/ARM-sSEED/final/                         LoRA in peft's format, the audio adapter if it trained, arm.json
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbalign.config.mixtures import MATCHED, needs, objective
from rbalign.config.recipe import Recipe
from rbalign.config.sections import AlignConfig
from rbalign.data.dataset import Dataset
from rbalign.errors import UsageError
from rbalign.keys import Key
from rbalign.rundir.files import atomic_write, sha256_file, stable_hash
from rbalign.rundir.journal import read_rows
from rbalign.rundir.progress import progress
from rbalign.rundir.run import RunDir
from rbalign.stages.base import Plan, PlanRow
from rbalign.stages.chain import settings
from rbalign.stages.voices import bank_of_dataset
from rbalign.types import Split
from rbalign.voices.bank import VoiceBank

if TYPE_CHECKING:
    from rbalign.scorers import Scorer
    from rbalign.speechlm.policy import SpeechPolicy
    from rbalign.train.rollout import Item

SECONDS_PER_VIEW = {"ce": 0.25, "kd": 0.4, "single": 0.75, "group": 0.75, "grpo": 0.6, "opd": 0.8}
"""Wall seconds of one view of one update on two cores, answers of 32 tokens, embedded models; see dev/LOG.md. The
dearest term of a mixture stands for it: passes are shared."""
TOKENS_MEASURED = 32
RBA_OPERATIONS = {"sft": 2.2, "kd": 1.7}
"""Operations of an RBA update beside those of sft and kd: they plan a matched arm before the others are there."""
BYTES_PER_ARM = 120_000_000
"""Two checkpoints and the final weights: LoRA of rank 16 with two moments is 40 MB."""


def arm_folder(run: RunDir, arm: str, seed: int) -> Path:
    """Where an arm's final weights are: what `SpeechPolicy.load` takes."""
    return run.path("arms", f"{arm}-s{seed}", "final")


def plan(recipe: Recipe, run: RunDir) -> Plan:
    """Updates still to do, by arm. Estimates for two cores and the embedded models."""
    config = _config(recipe)
    rules = recipe.synth.views if recipe.synth else ()
    views = sum(rule.per_example * rule.fraction for rule in rules) or 4
    length = config.sampling.max_new_tokens / TOKENS_MEASURED
    rows = []
    for arm in config.arms:
        seeds = [seed for seed in config.seeds if run.outputs(f"align/{arm}-s{seed}") is None]
        if seeds:
            mixture = config.mixture(arm)
            wanted = round(config.updates * (RBA_OPERATIONS[objective(arm)] if arm.endswith(MATCHED) else 1))
            updates = sum(wanted - _updates_done(run.path("arms", f"{arm}-s{seed}")) for seed in seeds)
            samples = config.samples_per_view if "samples" in needs(mixture) else 1
            a_view = max(SECONDS_PER_VIEW[term] for term in mixture) * length * (1 + samples) / 2
            seconds = updates * config.examples_per_update * views * a_view
            rows.append(PlanRow(f"updates of {arm}", updates, seconds, BYTES_PER_ARM * len(seeds)))
    return Plan(tuple(rows))


def inputs(recipe: Recipe) -> Mapping[str, str]:
    """The connector, where it comes from outside the run."""
    from rbalign.speechlm.connector import WEIGHTS, connector_folder

    config = _config(recipe)
    if config.connector == "connect":
        return {}
    weights = connector_folder(config.connector) / WEIGHTS
    return {"connector": sha256_file(weights) if weights.is_file() else "missing"}


def run(recipe: Recipe, run: RunDir) -> Mapping[str, str]:
    """Train what is not finished yet; every arm goes on from its own last checkpoint."""
    config = _config(recipe)
    _check(recipe)
    data = Dataset.open(run.path("data"))
    outside = {"data": data.content_hash, "connector": _connector_hash(recipe, run)}
    outputs: dict[str, str] = {}
    stage: _Arms | None = None
    for arm in sorted(config.arms, key=lambda arm: arm.endswith(MATCHED)):
        for seed in config.seeds:
            updates = _updates(config, run, arm, seed)
            handle = run.stage(f"align/{arm}-s{seed}", _arm_settings(recipe, arm, seed, updates), outside)
            if not handle.done:
                stage = stage or _Arms(recipe, run, data)
                handle.finish({"arm": stage.train(arm, seed, updates)})
            outputs[f"{arm}-s{seed}"] = (run.outputs(f"align/{arm}-s{seed}") or {})["arm"]
    return outputs


class _Arms:
    """What all arms share: one policy (its clips are encoded once), the items, the scorer."""

    def __init__(self, recipe: Recipe, run: RunDir, data: Dataset) -> None:
        from rbalign.stages.policy import open_policy

        self.recipe, self.run, self.config = recipe, run, _config(recipe)
        options: dict[str, Any] = {"lora": self.config.lora, "train_adapter": self.config.train_adapter}
        self.policy: SpeechPolicy = open_policy(recipe, run, **options)
        cap, bank = self.config.sampling.max_new_tokens, bank_of_dataset(recipe, data)
        self.items, self.left_out = load_items(self.policy, data, bank, Split.TRAIN, cap)
        self.validation: list[Item] = []
        if self.config.select_by == "validation":
            self.validation, _ = load_items(self.policy, data, bank, Split.VALIDATION, cap)
            if not self.validation:
                raise UsageError(
                    'select_by = "validation" needs validation instructions, and the dataset has none',
                    'set [synth] validation, or select_by = "last"',
                )
        self._scorer: Scorer | None = None

    def train(self, arm: str, seed: int, updates: int) -> str:
        """Train one arm with one seed to its end; the hash of its weights."""
        from rbalign.train.trainer import AlignTrainer

        folder = self.run.path("arms", f"{arm}-s{seed}")
        arm_seed = Key(self.recipe.seed, "arm", sample=seed).digest() % 2**31
        self.policy.restart(arm_seed)
        with progress(updates, f"align {arm} seed {seed}", _updates_done(folder), "updates") as advance:
            trainer = AlignTrainer(
                self.policy,
                objective(arm),
                self.config.model_copy(update={"updates": updates}),
                self.items,
                folder,
                seed=arm_seed,
                scorer=self.scorer if "scores" in needs(self.config.mixture(arm)) else None,
                validation=self.validation,
                advance=advance,
            )
            if updates:
                trainer.fit()
        final = arm_folder(self.run, arm, seed)
        self.policy.save(final)
        about = {"arm": arm, "seed": seed, "updates": updates, "examples": len(self.items)}
        about |= {"left_out": self.left_out, "views": sum(len(item.views) for item in self.items)}
        about |= {"parameters": sum(value.numel() for value in self.policy.trainable().values())}
        atomic_write(final / "arm.json", json.dumps(about, indent=1) + "\n")
        return stable_hash({path.name: sha256_file(path) for path in sorted(final.glob("*.safetensors"))})

    @property
    def scorer(self) -> Scorer:
        """The reward, loaded at its first use."""
        from rbalign.scorers import build

        if self._scorer is None:
            self._scorer = build(self.config.scorer)
        return self._scorer


def load_items(
    policy: SpeechPolicy, data: Dataset, bank: VoiceBank, split: Split, cap: int
) -> tuple[list[Item], dict[str, int]]:
    """Examples of a split with their views, ready to train on, and how many were left out for which reason."""
    from rbalign.train.rollout import Item

    allowed = {Split.TRAIN} if split is Split.TRAIN else {Split.TRAIN, Split.VALIDATION}
    views: dict[str, list[Any]] = {}
    for view in data.views(split):
        views.setdefault(view.example_id, []).append(view)
    bank.require(sorted({view.spec.voice for own in views.values() for view in own}), allowed, "align")
    items, left_out = [], Counter[str]()
    for example in data.examples(split):
        if not example.answer:
            left_out["no answer"] += 1
        elif example.id not in views:
            left_out["no view"] += 1
        else:
            answer = policy.completion_ids(example.answer)
            if len(answer) > cap:  # taught in part, it would have no end; whole, it would outgrow every sample
                left_out[f"answer over {cap} tokens"] += 1
            else:
                items.append(Item(example, tuple(sorted(views[example.id], key=lambda view: view.index)), answer))
    return items, dict(left_out)


def cost(run: RunDir, arm: str, seed: int) -> dict[str, Any]:
    """What training an arm took: updates, counted operations of the language model's matrix products, wall seconds."""
    rows = list(read_rows(run.path("arms", f"{arm}-s{seed}", "metrics.jsonl")))
    return {
        "arm": arm,
        "seed": seed,
        "updates": len(rows),
        "operations": sum(row["operations"] for row in rows),
        "seconds": round(sum(sum(row["seconds"].values()) for row in rows), 1),
    }


def _updates(config: AlignConfig, run: RunDir, arm: str, seed: int) -> int:
    """Updates of an arm: the recipe's, or for a matched one as many as spend what the run's RBA arm has spent."""
    own = objective(arm)
    if arm == own or not config.updates:
        return config.updates
    plain = cost(run, own, seed)
    rival = cost(run, "rba-single" if "rba-single" in config.arms else "rba-group", seed)
    ratio: float = rival["operations"] / plain["operations"]
    return math.ceil(ratio * config.updates)


def _updates_done(folder: Path) -> int:
    """Updates that an arm's newest complete checkpoint holds."""
    from rbalign.train.resume import last_checkpoint

    checkpoint = last_checkpoint(folder / "checkpoints")
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


def _config(recipe: Recipe) -> AlignConfig:
    if recipe.align is None:
        raise UsageError(f"recipe {recipe.name} has no [align] section", "add one, or choose another recipe")
    return recipe.align


def _arm_settings(recipe: Recipe, arm: str, seed: int, updates: int) -> dict[str, Any]:
    """What one arm depends on: all of [align] but the lists of arms and seeds."""
    whole = settings(recipe, "align")
    section = {name: value for name, value in whole["align"].items() if name not in ("arms", "seeds")}
    section["updates"] = updates
    return {**whole, "align": section, "arm": arm, "arm_seed": seed}


def _connector_hash(recipe: Recipe, run: RunDir) -> str:
    found = inputs(recipe) or run.outputs("connect") or {}
    return found.get("connector", "missing")


def _check(recipe: Recipe) -> None:
    """Refuse before any work what cannot be right."""
    config = _config(recipe)
    backbone = recipe.connect.language_model if recipe.connect else recipe.teacher.model
    tempered = config.sampling.temperature != 1 or config.sampling.top_p != 1
    for arm in config.arms:
        wanted = needs(config.mixture(arm))
        if "teacher" in wanted and (recipe.teacher.endpoint is not None or recipe.teacher.model != backbone):
            raise UsageError(
                f"{arm} reads the teacher's distribution from the backbone itself, and {recipe.teacher.author!r} is "
                f"not {backbone!r}",
                f"set [teacher] model to the backbone, or leave {arm} out of [align] arms",
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
