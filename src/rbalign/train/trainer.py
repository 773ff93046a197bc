"""`AlignTrainer`: transformers' Trainer by its hooks, where one dataloader batch is one update.

Two traps make sampling elsewhere off-policy without a sound: accelerate's loader reads one batch ahead, and the
Trainer takes all micro-batches of a step before the first. So `gradient_accumulation_steps` stays 1, and
`training_step` itself samples and scores the whole batch, sums weights over ranks, and runs the micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerControl

from rbalign.config.mixtures import needs
from rbalign.config.sections import AlignConfig
from rbalign.errors import UsageError
from rbalign.keys import Key
from rbalign.lm.logprobs import token_logprobs
from rbalign.lm.sampler import SamplingParams
from rbalign.rundir.journal import Journal
from rbalign.rundir.progress import note
from rbalign.scorers.base import Scorer, counts_of
from rbalign.speechlm.base import Policy
from rbalign.train import launched
from rbalign.train.arguments import training_arguments
from rbalign.train.batches import (
    MicroBatch,
    Values,
    micro_batches,
    terms,
    wants_reference,
    weights,
)
from rbalign.train.diagnostics import Phases, finite, rollout_counts, scalars
from rbalign.train.objectives import Loss, sft
from rbalign.train.reference import Reference
from rbalign.train.resume import cut_back, keyed_order, last_checkpoint, saving, stopped_early
from rbalign.train.rollout import Group, Item, draw_groups, restore_groups, sample_rows, score_groups
from rbalign.train.served import RolloutServer
from rbalign.train.shown import Shown

TERM_NORMS_EVERY = 5
"""Updates between measurements of each term's own gradient norm, which cost one more backward pass."""
EVAL_BATCH = 16
JOURNALS = {"metrics": "update", "samples": "id", "validation": "update", "answers": "id"}
"""Each with the field that names its rows."""


class AlignTrainer(Trainer):  # type: ignore[misc]
    """Trains one arm with one seed. `fit()` starts or resumes it; killed and resumed equals uninterrupted.

    Writes `metrics.jsonl` (a row for each update), `samples.jsonl`, `validation.jsonl`, `answers.jsonl` and
    `checkpoints/` in `folder`.
    """

    def __init__(
        self,
        policy: Policy,
        arm: str,
        config: AlignConfig,
        items: Sequence[Item],
        folder: Path,
        *,
        seed: int,
        scorer: Scorer | None = None,
        validation: Sequence[Item] = (),
        server: RolloutServer | None = None,
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """`items` are the training examples; every update takes `examples_per_update` of them in keyed order. `server`
        samples in the place of this process."""
        self.policy, self.arm, self.config, self.folder = policy, arm, config, folder
        self.mixture = config.mixture(arm)
        self.needs = needs(self.mixture)
        if "scores" in self.needs and scorer is None:
            raise UsageError(f"{arm} needs a scorer", "set [align] scorer, see `rba list scorers`")
        self.scorer, self.server, self.advance = scorer, server, advance
        self.reference = Reference(policy, config.reference if wants_reference(self.mixture, config) else "none")
        order = keyed_order([item.example.id for item in items], config.updates, config.examples_per_update, seed)
        self.per_epoch = len(items) // config.examples_per_update
        self.rollout_key = Key(seed, f"rollout/{arm}")
        self.sampling: SamplingParams = policy.params(
            config.sampling.temperature, config.sampling.top_p, config.sampling.max_new_tokens
        )
        self._row: dict[str, Any] = {}
        self._samples: list[dict[str, Any]] = []
        self._stale: dict[str, Group] = {}
        self._operations = 0.0
        self._counted: dict[str, float] = {}
        args = training_arguments(config, folder / "checkpoints", seed)
        if config.examples_per_update % args.world_size:
            raise UsageError(
                f"{config.examples_per_update} examples an update cannot be shared by {args.world_size} processes",
                "choose examples_per_update as a multiple of them",
            )
        args.per_device_train_batch_size = config.examples_per_update // args.world_size
        super().__init__(
            model=policy,
            args=args,
            data_collator=list,
            train_dataset=[items[place] for place in order],
            eval_dataset=list(validation) or None,
            callbacks=[EarlyStoppingCallback(config.patience)] if config.patience else None,
        )
        if self.is_fsdp_enabled:
            launched.check_fsdp(policy, arm, config, self.mixture)
            launched.share_out(self.accelerator.state.fsdp_plugin, policy)
        self.remove_callback(PrinterCallback)
        self.shown = Shown(policy, validation or items, config.sampling.max_new_tokens)

    def fit(self) -> None:
        """Train to the last update, from the newest complete checkpoint if there is one."""
        checkpoint = last_checkpoint(Path(self.args.output_dir), note)
        done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        paths = {name: self.folder / f"{name}.jsonl" for name in JOURNALS}
        if self.is_world_process_zero():
            for path in paths.values():
                cut_back(path, done)
        self.accelerator.wait_for_everyone()
        if checkpoint:
            self.reference.load(checkpoint)
            if stopped_early(checkpoint, self.config.patience):  # nothing is left to do but to load the best one
                self.args.max_steps = done
                self.train_dataset: list[Item] = self.train_dataset[: done * self.config.examples_per_update]
        with ExitStack() as stack:
            if self.server is not None:
                stack.callback(self.server.close)
            self.journals: dict[str, Journal] = {}
            if self.is_world_process_zero():
                for name, path in paths.items():
                    self.journals[name] = stack.enter_context(Journal(path, key=JOURNALS[name]))
                if not checkpoint:
                    self._show(0)
                self._operations = sum(row["operations"] for row in self.journals["metrics"].rows())
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        launched.make_whole(self.policy)

    # Trainer's hooks

    def create_optimizer(self, *args: Any) -> Any:
        """The last hook before DeepSpeed takes the policy; `create_scheduler` is the first after it."""
        self._lifted = launched.lift(self.policy) if self.is_deepspeed_enabled else []
        return super().create_optimizer(*args)

    def create_scheduler(self, *args: Any, **named: Any) -> Any:
        """See `create_optimizer`."""
        if self.is_deepspeed_enabled:
            launched.taken(self.accelerator.deepspeed_engine_wrapped.engine, self._lifted)
        return super().create_scheduler(*args, **named)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One update's gradient: sample, score, reference, then micro-batches. Returns the loss over all ranks."""
        update, clock, before = self.state.global_step + 1, Phases(), self.policy.operations
        self.reference.begin_update(update - 1)
        groups = [Group(item) for item in inputs]
        if "samples" in self.needs:
            groups = self._rollout(update, inputs, clock)
        pieces = micro_batches(self.mixture, self.config, groups, self._ties(update))
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            pieces = launched.in_step(pieces, groups[0].item)
        with clock("reference"):
            references = [self._reference(piece) for piece in pieces]
        totals = launched.summed([weights(self.mixture, self.config, piece) for piece in pieces])
        with clock("step"):
            loss, row = self._gradients(model, pieces, references, totals, update)
        if "samples" in self.needs:
            row |= rollout_counts(groups, self.mixture, self.config, self._ties(update))
            row |= launched.summed([self._counted])
            self._counted = {}
        row["seconds"] = {name: round(seconds, 3) for name, seconds in clock.seconds.items()}
        operations = torch.tensor(self.policy.operations - before, dtype=torch.float64)
        row["operations"] = float(self.accelerator.reduce(operations, "sum"))
        self._row = {"update": update, "arm": self.arm} | row
        return torch.tensor(loss)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """After the optimizer's step and before the checkpoint: the update's row goes to the disk and to loggers."""
        if not self._row or "grad_norm" not in logs:
            super().log(logs, start_time)
            return
        super().log(scalars(self._row) | logs, start_time)
        row, self._row = self._row, {}
        self._operations += row["operations"]
        row |= {"gradient_norm": logs["grad_norm"], "learning_rate": logs["learning_rate"]}
        if self.journals:
            self.journals["samples"].append(self._samples)
            self.journals["metrics"].append([finite(row | {"operations_total": self._operations})])
        self._samples = []
        self._show(row["update"])
        self.advance()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean negative log-likelihood a token of the teacher's answers on the validation views."""
        ranks = 1 if self.is_fsdp_enabled else self.args.world_size  # its forward passes are of all processes at once
        places = range(self.args.process_index % ranks, len(self.eval_dataset), ranks)
        views = [(view, self.eval_dataset[place].answer) for place in places for view in self.eval_dataset[place].views]
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for start in range(0, len(views), EVAL_BATCH):
                batch = views[start : start + EVAL_BATCH]
                logprobs, mask = self.policy([view for view, _ in batch], [[answer] for _, answer in batch])
                loss = sft(logprobs, mask)
                sums += torch.tensor([float(loss.sum), float(loss.weight)], dtype=torch.float64)
        total, tokens = self.accelerator.reduce(sums, "sum").tolist()
        metrics = {"eval_nll": total / tokens}
        if self.journals:
            self.journals["validation"].append([{"update": self.state.global_step, "nll": metrics["eval_nll"]}])
        self.log(dict(metrics))
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save_checkpoint(self, *args: Any) -> None:
        """All that goes into a checkpoint, and its checksums. Not public, but the one place that knows both ends."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with saving(folder, self.args.should_save, self.accelerator.wait_for_everyone):
            super()._save_checkpoint(*args)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint holds what trains, and the reference where it moves."""
        from safetensors.torch import save_file

        tensors = launched.whole(self.policy.trainable())
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / "model.safetensors")
            self.reference.save(folder)

    def _show(self, update: int) -> None:
        """Put down what the policy answers now, if it is time to."""
        every = self.config.answers_every
        if self.journals and every and update % every == 0:
            self.journals["answers"].append(list(self.shown.rows(update)))

    # One update

    def _rollout(self, update: int, items: Sequence[Item], clock: Phases) -> list[Group]:
        """Samples of the current policy, or those drawn when the epoch began; scored if the arm asks for it."""
        if self.config.sample_refresh == "step":
            return self._draw(update, items, clock)
        first = (update - 1) // self.per_epoch * self.per_epoch + 1
        if update == first or not self._stale:
            self._stale = {group.item.example.id: group for group in self._epoch_groups(first, update, clock)}
        return [self._stale[item.example.id] for item in items]

    def _epoch_groups(self, first: int, update: int, clock: Phases) -> list[Group]:
        """All samples of this rank's share of an epoch: drawn at its first update, read again after a resume."""
        size, ranks, rank = self.args.per_device_train_batch_size, self.args.world_size, self.args.process_index
        last = min(first + self.per_epoch - 1, self.config.updates)
        places = [(u * ranks + rank) * size + i for u in range(first - 1, last) for i in range(size)]
        items = [self.train_dataset[place] for place in places]
        if update == first:
            groups = self._draw(update, items, clock)
            if self.journals:
                self.journals["samples"].append(self._samples)
            self._samples = []
            self.accelerator.wait_for_everyone()
            return groups
        rows = Journal(self.folder / "samples.jsonl").rows()
        known = {(row["example"], row["view"], row["sample"]): row for row in rows if row["update"] == first}
        return restore_groups(items, known, self.config.samples_per_view)

    def _draw(self, update: int, items: Sequence[Item], clock: Phases) -> list[Group]:
        key = self.rollout_key.at(update=update)
        with clock("sample"):
            groups = self._sampled(update, items, key)
        if "scores" in self.needs:
            assert self.scorer is not None
            with clock("score"):
                before = counts_of(self.scorer)
                score_groups(self.policy, groups, self.scorer)
            after = counts_of(self.scorer)
            self._counted = {f"scorer_{name}": count - before[name] for name, count in after.items()}
        self._samples = list(gather_object([dict(row) for row in sample_rows(update, groups)]))
        return groups

    def _sampled(self, update: int, items: Sequence[Item], key: Key) -> list[Group]:
        """Samples of the policy as it is now, drawn here or by the server."""
        drawn_by = (self.policy, items, self.sampling, key, self.config.samples_per_view)
        if self.server is None:
            self.policy.refresh()
            return draw_groups(*drawn_by)
        self.server.load(self.policy, update, self.is_world_process_zero())
        self.accelerator.wait_for_everyone()
        return self.server.draw(*drawn_by)

    def _reference(self, piece: MicroBatch) -> Tensor | None:
        """Reference log-probs (R,T) of the rows that a term compares, zero elsewhere; None without a reference."""
        wanted = {*piece.compared(), *(piece.samples if "grpo" in self.mixture and self.config.grpo.kl else ())}
        if not self.reference.wanted or not wanted:
            return None
        views, branches, kept, row = [], [], [], 0
        for view, own in zip(piece.views, piece.branches, strict=True):
            places = [row + i for i in range(len(own)) if row + i in wanted]
            if places:
                views.append(view)
                branches.append([own[place - row] for place in places])
                kept += places
            row += len(own)
        logprobs, _ = self.reference.logprobs(views, branches)
        whole = logprobs.new_zeros(piece.mask().shape)
        whole[torch.tensor(kept), : logprobs.shape[1]] = logprobs
        return whole

    def _gradients(
        self,
        model: Any,
        pieces: list[MicroBatch],
        references: list[Tensor | None],
        totals: dict[str, float],
        update: int,
    ) -> tuple[float, dict[str, Any]]:
        """Backward over all pieces; the loss over all ranks, and the update's numbers by term."""
        sums: dict[str, float] = {}
        values: dict[str, list[float]] = {}
        parts: dict[str, list[Tensor]] = {}
        for index, (piece, reference) in enumerate(zip(pieces, references, strict=True)):
            last = index == len(pieces) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                made = self._terms(model, piece, reference)
                shares = {
                    name: scale * loss.sum / totals[name] if totals[name] else 0.0 * loss.sum
                    for name, (scale, loss) in made.items()
                }
                if not self.is_deepspeed_enabled and (update - 1) % TERM_NORMS_EVERY == 0:
                    for name in list(shares)[:-1]:  # the last one's is what remains
                        parts[name] = self._add_gradients(parts.get(name), shares[name])
                for name, (_, loss) in made.items():
                    sums[name] = sums.get(name, 0.0) + float(shares[name].detach())
                    for label, value in loss.diagnostics.items():
                        values.setdefault(label, []).extend(value.flatten().tolist())
                if last and self.is_deepspeed_enabled:  # its engine steps in the last backward pass
                    launched.check_finite(self.arm, update, sum(launched.summed([sums]).values()))
                # Times the world size, because DDP averages gradients while these shares are already of the whole.
                total_share = torch.stack(list(shares.values())).sum() * self.args.world_size
                launched.backward(self.accelerator, total_share, last)
        by_term = launched.summed([sums])
        total = sum(by_term.values())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.policy.trainable().values()]
        norm = launched.gradient_norm(self.accelerator, gradients)
        launched.check_finite(self.arm, update, total, norm)
        row: dict[str, Any] = {"loss": total, "weights": totals}
        row |= {f"{name}_loss": value for name, value in by_term.items()}
        norms = {next(iter(made)): norm} if len(made) == 1 else self._term_norms(gradients, parts)
        row |= {f"gradient_norm_{name}": value for name, value in norms.items()}
        row |= launched.means(values)
        return total, row

    def _terms(self, model: Any, piece: MicroBatch, reference: Tensor | None) -> dict[str, tuple[float, Loss]]:
        if "logits" not in self.needs:
            logprobs, mask = model(piece.views, piece.branches)
            return terms(self.mixture, self.config, piece, Values(mask, logprobs, reference=reference))
        teacher = {}
        if "kd" in self.mixture:
            teacher["kd"] = self._teacher([(item, "answer", item.answer) for item in piece.items])
        if "opd" in self.mixture:
            drawn = [(item, f"{one.view.index}/{one.sample}", one.ids) for item, one, _ in piece.drawn]
            teacher["opd"] = self._teacher(drawn)
        logits, mask = model(piece.views, piece.branches, "logits")
        logprobs = token_logprobs(logits, piece.rows) if set(self.mixture) - {"kd", "opd"} else None
        return terms(self.mixture, self.config, piece, Values(mask, logprobs, logits, teacher, reference))

    def _teacher(self, rows: Sequence[tuple[Item, str, Tensor]]) -> Tensor:
        """The text teacher's logits (rows, T, V) on (item, name, ids); what views share is computed once."""
        asked: dict[str, tuple[Item, dict[str, Tensor]]] = {}
        for item, name, ids in rows:
            asked.setdefault(item.example.id, (item, {}))[1][name] = ids
        if not rows:
            return torch.zeros(0, 1, self.policy.lm.config.get_text_config().vocab_size)
        texts = [item.example.instruction for item, _ in asked.values()]
        logits, _ = self.policy.text_logits(texts, [list(own.values()) for _, own in asked.values()])
        order = [(example, name) for example, (_, own) in asked.items() for name in own]
        places = {pair: place for place, pair in enumerate(order)}
        return logits[[places[item.example.id, name] for item, name, _ in rows]]

    def _add_gradients(self, part: list[Tensor] | None, share: Tensor) -> list[Tensor]:
        parameters = list(self.policy.trainable().values())
        own = torch.autograd.grad(share, parameters, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, own, strict=True)]
        return filled if part is None else [a + b for a, b in zip(part, filled, strict=True)]

    def _term_norms(self, gradients: list[Tensor], parts: dict[str, list[Tensor]]) -> dict[str, float]:
        """Norm of each term's own gradient, before clipping; empty at updates that did not measure it."""
        norms, rest = {}, gradients
        for name, part in parts.items():
            whole = [self.accelerator.reduce(value, "sum") for value in part]
            rest = [g - p for g, p in zip(rest, whole, strict=True)]
            norms[name] = float(torch.nn.utils.get_total_norm(whole))
        return {**norms, list(self.mixture)[-1]: float(torch.nn.utils.get_total_norm(rest))} if norms else {}

    def _ties(self, update: int) -> Key:
        """The key that breaks ties between equal scores."""
        return Key(self.rollout_key.seed, "ties", update)
