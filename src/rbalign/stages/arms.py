"""Who trains the arms of `rba align`: this process one after the other, or several processes side by side.

Sampling is some 400 small products a token, and two threads that meet after each of them are hardly faster than one.
Arms depend on nothing but their own start, so each core may train its own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loky.process_executor import BrokenProcessPool

from rbalign.config.mixtures import MATCHED, needs, objective
from rbalign.config.recipe import Recipe
from rbalign.config.sections import AlignConfig
from rbalign.data.dataset import Dataset
from rbalign.errors import RunError, UsageError
from rbalign.keys import Key
from rbalign.rundir.files import atomic_write, sha256_file, stable_hash
from rbalign.rundir.journal import count_lines, read_rows
from rbalign.rundir.progress import progress
from rbalign.rundir.run import RunDir
from rbalign.rundir.workers import launched, threads_each, worker_pool, workers_that_fit
from rbalign.stages.policy import model_bytes
from rbalign.stages.rewards import open_scorer
from rbalign.stages.voices import bank_of_dataset
from rbalign.types import Split
from rbalign.voices.bank import VoiceBank

if TYPE_CHECKING:
    from rbalign.scorers import Scorer
    from rbalign.speechlm.base import Policy
    from rbalign.train.rollout import Item
    from rbalign.train.served import RolloutServer
    from rbalign.train.trainer import AlignTrainer

WORKER_BYTES = 3 << 30
"""A training process's memory with the embedded models."""
FULL_BYTES = 5 << 29
"""What full fine-tuning of the embedded language model takes more: copy, gradients, two moments, its step."""
SHARE = 48
"""Clips that a worker hears at a time before training."""
WATCH_SECONDS = 2.0
"""Between two looks at the journals of arms that train elsewhere."""


@dataclass(frozen=True, slots=True)
class Job:
    """One arm with one seed, to be trained for so many updates in all."""

    arm: str
    seed: int
    updates: int


def align_config(recipe: Recipe) -> AlignConfig:
    """The recipe's [align]; UsageError without one."""
    if recipe.align is None:
        raise UsageError(f"recipe {recipe.name} has no [align] section", "add one, or choose another recipe")
    return recipe.align


def arm_name(arm: str, seed: int) -> str:
    """An arm with its seed, as folders, stages and `--arm` name it."""
    return f"{arm}-s{seed}"


def arm_folder(run: RunDir, arm: str, seed: int) -> Path:
    """Where an arm's journals, checkpoints and final weights are."""
    return run.path("arms", arm_name(arm, seed))


def final_folder(run: RunDir, arm: str, seed: int) -> Path:
    """Where an arm's final weights are: what `Policy.load` takes."""
    return arm_folder(run, arm, seed) / "final"


def weights_hash(final: Path) -> str:
    """The hash of an arm's final weights."""
    return stable_hash({path.name: sha256_file(path) for path in sorted(final.glob("*.safetensors"))})


def cost(run: RunDir, arm: str, seed: int) -> dict[str, Any]:
    """What training an arm took: updates, counted operations of the language model's matrix products, wall seconds;
    and the update whose weights were kept, None if it is not finished or was trained before that was noted."""
    rows = list(read_rows(arm_folder(run, arm, seed) / "metrics.jsonl"))
    about = final_folder(run, arm, seed) / "arm.json"
    return {
        "arm": arm,
        "seed": seed,
        "updates": len(rows),
        "selected_update": json.loads(about.read_text(encoding="utf-8")).get("selected_update")
        if about.exists()
        else None,
        "operations": sum(row["operations"] for row in rows),
        "seconds": round(sum(sum(row["seconds"].values()) for row in rows), 1),
    }


def updates_done(folder: Path) -> int:
    """Updates that an arm's newest complete checkpoint holds."""
    from rbalign.train.resume import last_checkpoint

    checkpoint = last_checkpoint(folder / "checkpoints")
    return int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0


class Arms:
    """What the arms of one process share: one policy (its clips are encoded once), the items, the scorer."""

    def __init__(self, recipe: Recipe, run: RunDir) -> None:
        from rbalign.stages.policy import open_policy

        data = Dataset.open(run.path("data"))
        self.recipe, self.run, self.config = recipe, run, align_config(recipe)
        options: dict[str, Any] = {"full": True} if self.config.full_finetuning else {"lora": self.config.lora}
        options["train_adapter"] = self.config.train_adapter
        self.policy: Policy = open_policy(recipe, run, share=True, **options)
        self.policy.gradient_checkpointing = self.config.gradient_checkpointing
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

    def train(self, job: Job, advance: Callable[[], None]) -> str:
        """Train one arm with one seed to its end; the hash of its weights."""
        from rbalign.train.trainer import AlignTrainer

        arm, seed, updates = job.arm, job.seed, job.updates
        arm_seed = Key(self.recipe.seed, "arm", sample=seed).digest() % 2**31
        self.policy.restart(arm_seed)
        trainer = AlignTrainer(
            self.policy,
            objective(arm),
            self.config.of_arm(arm, updates),
            self.items,
            arm_folder(self.run, arm, seed),
            seed=arm_seed,
            scorer=self.scorer if "scores" in needs(self.config.mixture(arm)) else None,
            validation=self.validation,
            server=self._server(arm, seed) if "samples" in needs(self.config.mixture(arm)) else None,
            advance=advance,
        )
        if updates:
            trainer.fit()
        if trainer.is_world_process_zero():
            self._keep(trainer, job)
        trainer.accelerator.wait_for_everyone()
        return weights_hash(final_folder(self.run, arm, seed))

    def _keep(self, trainer: AlignTrainer, job: Job) -> None:
        """Write an arm's final weights, and beside them what became of its training."""
        arm, seed, final = job.arm, job.seed, final_folder(self.run, job.arm, job.seed)
        self.policy.save(final)
        best = trainer.state.best_global_step if self.config.select_by == "validation" else None
        taken = trainer.state.global_step if job.updates else 0  # fewer than asked where validation has stopped it
        about: dict[str, Any] = {"arm": arm, "seed": seed, "updates": taken, "selected_update": best or taken}
        about["examples"] = len(self.items)
        about |= {"left_out": self.left_out, "views": sum(len(item.views) for item in self.items)}
        about |= {"parameters": sum(value.numel() for value in self.policy.trainable().values())}
        atomic_write(final / "arm.json", json.dumps(about, indent=1) + "\n")

    def hear(self, share: int, of: int) -> int:
        """Hear one share of the clips ahead of training, where what is heard is kept; how many those are."""
        views = [view for item in (*self.items, *self.validation) for view in item.views]
        views.sort(key=lambda view: (view.seconds, view.id))
        own = views[len(views) * share // of : len(views) * (share + 1) // of]
        self.policy.audio(own)
        return len(own)

    def _server(self, arm: str, seed: int) -> RolloutServer | None:
        """Who samples in our place, if the recipe names a server; LoRA there is named after this very folder."""
        config, folder = self.config.rollout, arm_folder(self.run, arm, seed)
        if config is None:
            return None
        from rbalign.remote.client import Client
        from rbalign.train.served import RolloutServer

        name = f"{self.recipe.name}-{arm_name(arm, seed)}-{stable_hash(str(folder.resolve()))[:8]}"
        place = Path(config.adapters) if config.adapters else folder / "served"
        return RolloutServer(config, Client(config), place, name)

    @property
    def scorer(self) -> Scorer:
        """The reward, loaded at its first use."""
        if self._scorer is None:
            self._scorer = open_scorer(self.config)
        return self._scorer


def load_items(
    policy: Policy, data: Dataset, bank: VoiceBank, split: Split, cap: int
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


Train = Callable[[Sequence[Job]], Iterator[tuple[Job, str]]]
"""Jobs -> each with the hash of its weights, as they end."""


def workers_for(config: AlignConfig) -> int:
    """How many processes train: as many as the recipe says or as fit, and no more than arms that can do so at once.

    One under a launcher, which has its own processes. Never the number of arms that are left: a resumed arm keeps the
    number of threads it began with, and so its numbers.
    """
    if launched()[1] > 1:
        return 1
    at_once = len(config.seeds) * sum(not arm.endswith(MATCHED) for arm in config.arms)
    return max(1, min(workers_that_fit(config.workers, _bytes(config)), at_once))


def _bytes(config: AlignConfig) -> int:
    """Memory of one training process."""
    own = model_bytes(config.model)
    more = FULL_BYTES + 4 * own if config.full_finetuning else 0
    return WORKER_BYTES + own + model_bytes(config.reward_model) + more


@contextmanager
def training(recipe: Recipe, run: RunDir, reopen: Callable[[], Arms] | None = None) -> Iterator[Train]:
    """Who trains this recipe's arms. `reopen` makes them in a worker and must be picklable; None opens the run."""
    workers = workers_for(align_config(recipe))
    reopen = reopen or partial(_reopen, recipe, run.folder, run.recipe)
    if workers == 1:
        yield partial(_in_turn, run, cache(reopen))
        return
    with worker_pool(workers, threads_each(workers)) as pool:
        yield partial(_side_by_side, run, pool, reopen, not align_config(recipe).train_adapter)


def _in_turn(run: RunDir, arms: Callable[[], Arms], jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
    for job in jobs:
        done = updates_done(arm_folder(run, job.arm, job.seed))
        with progress(job.updates, f"align {job.arm} seed {job.seed}", done, "updates") as advance:
            weights = arms().train(job, advance)
        yield job, weights


def _side_by_side(
    run: RunDir, pool: Any, reopen: Callable[[], Arms], ahead: bool, jobs: Sequence[Job]
) -> Iterator[tuple[Job, str]]:
    if not jobs:
        return
    folders = [arm_folder(run, job.arm, job.seed) for job in jobs]
    journals = [folder / "metrics.jsonl" for folder in folders]
    shown = sum(map(updates_done, folders))
    label = "align " + ", ".join(folder.name for folder in folders)
    try:
        if ahead and not all(job.arm.endswith(MATCHED) for job in jobs):
            _hear_ahead(run, pool, reopen)
        flying: dict[Future[str], Job] = {pool.submit(_train_in_worker, reopen, job): job for job in jobs}
        with progress(sum(job.updates for job in jobs), label, shown, "updates") as advance:
            while flying:
                ended, _ = wait(flying, WATCH_SECONDS, FIRST_COMPLETED)
                written = sum(map(count_lines, journals))
                if written > shown:
                    advance(written - shown)
                    shown = written
                yield from ((flying.pop(future), future.result()) for future in ended)
    except BrokenProcessPool as error:
        raise RunError(
            "a training process died, which mostly means that memory ran out",
            "start again with --align.workers 1: each arm goes on from its last checkpoint",
        ) from error


def _hear_ahead(run: RunDir, pool: Any, reopen: Callable[[], Arms]) -> None:
    """Each clip once and by one process: arms side by side would all hear the same ones at the same time."""
    data = Dataset.open(run.path("data"))
    clips = sum(1 for split in (Split.TRAIN, Split.VALIDATION) for _ in data.iter_views(split))
    shares = -(-clips // SHARE)
    with progress(clips, "hear", unit="clips") as advance:
        for future in as_completed([pool.submit(_hear_in_worker, reopen, share, shares) for share in range(shares)]):
            advance(future.result())


_opened: list[Arms] = []
"""In a worker: what it trains, for as long as it lives."""


def _train_in_worker(reopen: Callable[[], Arms], job: Job) -> str:
    return _arms(reopen).train(job, lambda: None)


def _hear_in_worker(reopen: Callable[[], Arms], share: int, of: int) -> int:
    return _arms(reopen).hear(share, of)


def _arms(reopen: Callable[[], Arms]) -> Arms:
    if not _opened:
        _opened.append(reopen())
    return _opened[0]


def _reopen(recipe: Recipe, folder: Path, named: Recipe) -> Arms:
    """In a worker: the run that the parent has open, for reading its recipe and data."""
    return Arms(recipe, RunDir.look(folder.parent, named))
