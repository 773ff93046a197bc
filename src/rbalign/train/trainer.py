"""`AlignTrainer`: transformers' Trainer, by public hooks only, where one dataloader batch is one update.

Two traps make sampling elsewhere off-policy without a sound: accelerate's loader reads one batch ahead, and the
Trainer takes all micro-batches of a step before the first. So `gradient_accumulation_steps` stays 1, and
`training_step` itself samples and scores the whole batch, sums weights over ranks, and runs the micro-batches.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from torch import Tensor
from transformers import PrinterCallback, Trainer

from rbalign.config.sections import AlignConfig
from rbalign.errors import RunError, UsageError
from rbalign.keys import Key
from rbalign.lm.sampler import SamplingParams
from rbalign.rundir.journal import Journal
from rbalign.scorers.base import Scorer
from rbalign.speechlm.policy import SpeechPolicy
from rbalign.train.arguments import training_arguments
from rbalign.train.batches import SAMPLED, MicroBatch, micro_batches, one_sided, terms, weights
from rbalign.train.objectives import sft
from rbalign.train.reference import Reference
from rbalign.train.resume import cut_back, keyed_order, last_checkpoint
from rbalign.train.rollout import Group, Item, draw_groups, restore_groups, sample_rows, score_groups

TERM_NORMS_EVERY = 5
"""Updates between measurements of each term's own gradient norm, which cost one more backward pass."""
EVAL_BATCH = 16


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


class AlignTrainer(Trainer):  # type: ignore[misc]
    """Trains one arm with one seed. `fit()` starts or resumes it; killed and resumed equals uninterrupted.

    Writes `metrics.jsonl` (a row for each update), `samples.jsonl`, `validation.jsonl` and `checkpoints/` in `folder`.
    """

    def __init__(
        self,
        policy: SpeechPolicy,
        arm: str,
        config: AlignConfig,
        items: Sequence[Item],
        folder: Path,
        *,
        seed: int,
        scorer: Scorer | None = None,
        validation: Sequence[Item] = (),
        advance: Callable[[], None] = lambda: None,
    ) -> None:
        """`items` are the training examples; every update takes `examples_per_update` of them in keyed order."""
        if arm == "rba-group" and scorer is None:
            raise UsageError("rba-group needs a scorer", "set [align] scorer, see `rba list scorers`")
        self.policy, self.arm, self.config, self.folder = policy, arm, config, folder
        self.scorer, self.advance = scorer, advance
        self.reference = Reference(policy, config.reference if arm in SAMPLED else "none")
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
        )
        self.remove_callback(PrinterCallback)

    def fit(self) -> None:
        """Train to the last update, from the newest complete checkpoint if there is one."""
        checkpoint = last_checkpoint(Path(self.args.output_dir))
        done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        paths = {name: self.folder / f"{name}.jsonl" for name in ("metrics", "samples", "validation")}
        if self.is_world_process_zero():
            for path in paths.values():
                cut_back(path, done)
        self.accelerator.wait_for_everyone()
        if checkpoint:
            self.reference.load(checkpoint)
        with ExitStack() as stack:
            self.journals: dict[str, Journal] = {}
            if self.is_world_process_zero():
                keys = {"samples": "id"}
                for name, path in paths.items():
                    self.journals[name] = stack.enter_context(Journal(path, key=keys.get(name, "update")))
                self._operations = sum(row["operations"] for row in self.journals["metrics"].rows())
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    # Trainer's hooks

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One update's gradient: sample, score, reference, then micro-batches. Returns the loss over all ranks."""
        update, clock, before = self.state.global_step + 1, Phases(), self.policy.operations
        self.reference.begin_update(update - 1)
        groups = [Group(item) for item in inputs]
        if self.arm in SAMPLED:
            groups = self._rollout(update, inputs, clock)
        pieces = micro_batches(self.arm, self.config, groups, Key(self.rollout_key.seed, "ties", update))
        with clock("reference"):
            references = [self._reference(piece) for piece in pieces]
        totals = self._summed([weights(self.arm, self.config, piece) for piece in pieces])
        with clock("step"):
            loss, row = self._gradients(model, pieces, references, totals, update)
        row |= self._counts(groups, update)
        row["seconds"] = {name: round(seconds, 3) for name, seconds in clock.seconds.items()}
        operations = torch.tensor(self.policy.operations - before, dtype=torch.float64)
        row["operations"] = float(self.accelerator.reduce(operations, "sum"))
        self._row = {"update": update, "arm": self.arm} | row
        return torch.tensor(loss)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """After the optimizer's step and before the checkpoint: the update's row is complete and goes to the disk."""
        super().log(logs, start_time)
        if not self._row or "grad_norm" not in logs:
            return
        row, self._row = self._row, {}
        self._operations += row["operations"]
        row |= {"gradient_norm": logs["grad_norm"], "learning_rate": logs["learning_rate"]}
        if self.journals:
            self.journals["samples"].append(self._samples)
            self.journals["metrics"].append([finite(row | {"operations_total": self._operations})])
        self._samples = []
        self.advance()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean negative log-likelihood a token of the teacher's answers on the validation views."""
        places = range(self.args.process_index, len(self.eval_dataset), self.args.world_size)
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
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint holds what trains, and the reference where it moves."""
        from safetensors.torch import save_file

        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: value.detach().contiguous() for name, value in self.policy.trainable().items()}
            save_file(tensors, folder / "model.safetensors")
            self.reference.save(folder)

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
            self.policy.refresh()
            groups = draw_groups(self.policy, items, self.sampling, key, self.config.samples_per_view)
        if self.arm == "rba-group":
            assert self.scorer is not None
            with clock("score"):
                score_groups(self.policy, groups, self.scorer)
        self._samples = list(gather_object([dict(row) for row in sample_rows(update, groups)]))
        return groups

    def _reference(self, piece: MicroBatch) -> Tensor | None:
        """Reference log-probs (R,T) of the rows that pairs compare, zero elsewhere; None without a reference."""
        wanted = set(piece.compared())
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
        part: list[Tensor] | None = None
        for index, (piece, reference) in enumerate(zip(pieces, references, strict=True)):
            last = index == len(pieces) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                made = self._terms(model, piece, reference)
                shares = {
                    name: scale * loss.sum / totals[name] if totals[name] else 0.0 * loss.sum
                    for name, (scale, loss) in made.items()
                }
                if len(shares) > 1 and (update - 1) % TERM_NORMS_EVERY == 0:
                    part = self._add_gradients(part, shares["pair"])
                # Times the world size, because DDP averages gradients while these shares are already of the whole.
                self.accelerator.backward(torch.stack(list(shares.values())).sum() * self.args.world_size)
            for name, (_, loss) in made.items():
                sums[name] = sums.get(name, 0.0) + float(shares[name].detach())
                for label, value in loss.diagnostics.items():
                    values.setdefault(label, []).extend(value.flatten().tolist())
        by_term = self._summed([sums])
        loss = sum(by_term.values())
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.policy.trainable().values()]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise RunError(
                f"{self.arm} at update {update} has loss {loss} and gradient norm {norm}; no step was taken",
                "lower [align.args] learning_rate or beta; the last checkpoint is untouched",
            )
        row: dict[str, Any] = {"loss": loss, "weights": totals}
        row |= {f"{name}_loss": value for name, value in by_term.items()}
        norms = {next(iter(made)): norm} if len(made) == 1 else self._term_norms(gradients, part)
        row |= {f"gradient_norm_{name}": value for name, value in norms.items()}
        row |= self._means(values)
        return loss, row

    def _terms(self, model: Any, piece: MicroBatch, reference: Tensor | None) -> dict[str, Any]:
        if self.arm != "kd":
            logprobs, mask = model(piece.views, piece.branches)
            return terms(self.arm, self.config, piece, logprobs, mask, reference)
        items = {item.example.id: item for item in piece.items}
        places = {name: place for place, name in enumerate(items)}
        texts = [item.example.instruction for item in items.values()]
        teacher, _ = self.policy.text_logits(texts, [item.answer for item in items.values()])
        logits, mask = model(piece.views, piece.branches, "logits")
        chosen = torch.tensor([places[item.example.id] for item in piece.items])
        return terms(self.arm, self.config, piece, logits, mask, None, teacher[chosen])

    def _add_gradients(self, part: list[Tensor] | None, share: Tensor) -> list[Tensor]:
        parameters = list(self.policy.trainable().values())
        own = torch.autograd.grad(share, parameters, retain_graph=True, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, own, strict=True)]
        return filled if part is None else [a + b for a, b in zip(part, filled, strict=True)]

    def _term_norms(self, gradients: list[Tensor], part: list[Tensor] | None) -> dict[str, float]:
        """Norm of each term's own gradient, before clipping; empty at updates that did not measure it."""
        if part is None:
            return {}
        pair = [self.accelerator.reduce(value, "sum") for value in part]
        rest = [g - p for g, p in zip(gradients, pair, strict=True)]
        return {"pair": float(torch.nn.utils.get_total_norm(pair)), "ce": float(torch.nn.utils.get_total_norm(rest))}

    # Numbers of an update

    def _summed(self, rows: list[dict[str, float]]) -> dict[str, float]:
        """Sums by name over rows and ranks."""
        total: dict[str, float] = {}
        for row in gather_object(rows):
            for name, value in row.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def _means(self, values: dict[str, list[float]]) -> dict[str, float | None]:
        every: dict[str, list[float]] = {}
        for own in gather_object([values]):
            for name, numbers in own.items():
                every.setdefault(name, []).extend(numbers)
        return {name: sum(numbers) / len(numbers) if numbers else None for name, numbers in sorted(every.items())}

    def _counts(self, groups: list[Group], update: int) -> dict[str, Any]:
        """Samples, lengths, truncation and scores; for RBA-Group how often each voice is chosen and rejected."""
        if self.arm not in SAMPLED:
            return {}
        tie_key = Key(self.rollout_key.seed, "ties", update)
        mine = []
        for group in groups:
            pair = group.pair(tie_key.at(example=group.item.example.id))
            drawn = [(len(one.ids), one.truncated, one.score) for one in group.drawn]
            voices = [end.view.spec.voice for end in pair or ()]
            mine.append({"drawn": drawn, "pair": voices, "one_sided": pair is not None and one_sided(pair)})
        every = list(gather_object(mine))
        drawn = [one for group in every for one in group["drawn"]]
        counts: dict[str, Any] = {
            "samples": len(drawn),
            "sample_length": sum(length for length, _, _ in drawn) / len(drawn),
            "truncated": sum(cut for _, cut, _ in drawn) / len(drawn),
        }
        # RBA-Single pairs with a complete answer, so that every truncated sample is a one-sided pair.
        counts["one_sided"] = sum(cut for _, cut, _ in drawn)
        if self.arm == "rba-group":
            scores = [score for _, _, score in drawn if score is not None]
            counts["reward"] = sum(scores) / len(scores) if scores else None
            counts["unscored"] = len(drawn) - len(scores)
            counts["one_sided"] = sum(group["one_sided"] for group in every)
            counts["without_pair"] = sum(not group["pair"] for group in every)
            counts["chosen_voices"] = dict(Counter(group["pair"][0] for group in every if group["pair"]))
            counts["rejected_voices"] = dict(Counter(group["pair"][1] for group in every if group["pair"]))
        return counts


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN: such a number becomes None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
