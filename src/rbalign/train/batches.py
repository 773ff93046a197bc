"""From groups to micro-batches, and from log-probs to the terms of an arm's mixture.

A micro-batch asks, of each view, for one or more completions that hang on its one prompt. How an update is cut into
micro-batches changes memory and time, never the loss: terms are sums, and weights are known before the first pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rbalign.config.mixtures import needs
from rbalign.config.sections import AlignConfig
from rbalign.keys import Key
from rbalign.train import objectives
from rbalign.train.objectives import Answers, Loss
from rbalign.train.rollout import Drawn, Group, Item
from rbalign.types import View

Mixture = Mapping[str, float]
"""Terms of `config.mixtures` with their weights."""


@dataclass(slots=True)
class MicroBatch:
    """What one forward pass computes. A row is one completion on one view; rows are numbered view by view."""

    views: list[View] = field(default_factory=list)
    branches: list[list[Tensor]] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    """Of each row."""
    corrections: list[float] = field(default_factory=list)
    """Of each row: the importance weight of a sample that a server drew, else 1."""
    answers: list[int] = field(default_factory=list)
    """Rows that hold the teacher's answer on a view, for ce and kd."""
    items: list[Item] = field(default_factory=list)
    """The item of each of `answers`."""
    singles: list[tuple[int, int]] = field(default_factory=list)
    """(the teacher's answer, own sample), for rba_single."""
    pairs: list[tuple[int, int]] = field(default_factory=list)
    """(best, worst), for rba_group."""
    pair_corrections: list[float] = field(default_factory=list)
    """Of each of `pairs`, as `corrections`."""
    crossed: list[tuple[int, int]] = field(default_factory=list)
    """The same answers on each other's audio, for conditioning "cross"."""
    samples: list[int] = field(default_factory=list)
    """Rows that hold own samples, for grpo and opd."""
    drawn: list[tuple[Item, Drawn, float | None]] = field(default_factory=list)
    """What each of `samples` is, with its advantage."""

    @property
    def rows(self) -> list[Tensor]:
        """The ids of each row."""
        return [ids for own in self.branches for ids in own]

    def mask(self) -> Tensor:
        """(R, T) bool, as the forward pass will return it."""
        return pad_sequence([torch.ones(len(ids), dtype=torch.bool) for ids in self.rows], batch_first=True)

    def compared(self) -> list[int]:
        """Rows that pair terms compare with the reference."""
        return sorted({row for pair in (*self.singles, *self.pairs, *self.crossed) for row in pair})

    def extend(self, other: MicroBatch) -> None:
        """Append another one's views; its row numbers move up."""
        shift = len(self.truncated)
        self.views += other.views
        self.branches += other.branches
        self.truncated += other.truncated
        self.corrections += other.corrections
        self.pair_corrections += other.pair_corrections
        self.answers += [row + shift for row in other.answers]
        self.items += other.items
        self.samples += [row + shift for row in other.samples]
        self.drawn += other.drawn
        for name in ("singles", "pairs", "crossed"):
            getattr(self, name).extend((a + shift, b + shift) for a, b in getattr(other, name))


class _Unit:
    """The completions that one view, or a whole group, asks for; what several terms ask for is computed once."""

    def __init__(self, cap: float) -> None:
        """cap: of importance weights."""
        self.cap = cap
        self.wanted: dict[str, tuple[View, dict[str, tuple[Tensor, bool, float]]]] = {}
        self.roles: dict[str, list[tuple[tuple[str, str], ...]]] = {}
        self.made = MicroBatch()

    def answer(self, view: View, item: Item) -> tuple[str, str]:
        """Ask for the teacher's answer on a view."""
        return self._ask(view, "answer", item.answer, False, 1.0)

    def sample(self, view: View, drawn: Drawn) -> tuple[str, str]:
        """Ask for a sample on a view: its own, or another one's."""
        name = f"{drawn.view.index}/{drawn.sample}"
        return self._ask(view, name, drawn.ids, drawn.truncated, drawn.correction(self.cap))

    def note(self, role: str, *names: tuple[str, str]) -> None:
        """Say what completions are asked for, by the field of MicroBatch."""
        self.roles.setdefault(role, []).append(names)

    def _ask(self, view: View, name: str, ids: Tensor, truncated: bool, correction: float) -> tuple[str, str]:
        self.wanted.setdefault(view.id, (view, {}))[1][name] = (ids, truncated, correction)
        return view.id, name

    def build(self) -> MicroBatch:
        """Rows get their numbers."""
        unit, numbers = self.made, {}
        for view_id, (view, asked) in self.wanted.items():
            unit.views.append(view)
            unit.branches.append([ids for ids, _, _ in asked.values()])
            for name, (_, truncated, correction) in asked.items():
                numbers[view_id, name] = len(unit.truncated)
                unit.truncated.append(truncated)
                unit.corrections.append(correction)
        for role, entries in self.roles.items():
            places = [tuple(numbers[name] for name in names) for names in entries]
            setattr(unit, role, [place[0] for place in places] if role in ("answers", "samples") else places)
        return unit


def one_sided(pair: tuple[Drawn, Drawn]) -> bool:
    """Whether only one of the two was cut by the length cap."""
    return pair[0].truncated != pair[1].truncated


def group_advantages(group: Group, config: AlignConfig) -> list[float | None]:
    """Of each sample of an instruction, beside all its samples on all its views."""
    return objectives.advantages([drawn.score for drawn in group.drawn], config.grpo.advantage)


def group_units(group: Group, mixture: Mixture, config: AlignConfig, tie_key: Key) -> list[MicroBatch]:
    """What an instruction asks for: a unit a view, or one unit where a term spans views.

    The teacher's answer on every view (ce, kd) or beside each complete sample (single: a truncated one would make a
    one-sided pair and is dropped before any pass); every sample (opd), or each that has an advantage (grpo); the best
    and the worst sample (group), each on its own audio and, crossed, on the other's.
    """
    item, spans = group.item, "group" in mixture
    cap = config.rollout.max_weight if config.rollout else 1.0
    units = [_Unit(cap) for _ in (item.views[:1] if spans else item.views)]
    scores = group_advantages(group, config) if "grpo" in mixture else [None] * len(group.drawn)
    for place, view in enumerate(item.views):
        unit = units[0 if spans else place]
        if "ce" in mixture or "kd" in mixture:
            unit.note("answers", unit.answer(view, item))
            unit.made.items.append(item)
        for drawn, advantage in zip(group.drawn, scores, strict=True):
            if drawn.view is not view:
                continue
            if "single" in mixture and not drawn.truncated:
                unit.note("singles", unit.answer(view, item), unit.sample(view, drawn))
            if "opd" in mixture or advantage is not None:
                unit.note("samples", unit.sample(view, drawn))
                unit.made.drawn.append((item, drawn, advantage))
    pair = group.pair(tie_key.at(example=item.example.id), config.min_score_gap) if spans else None
    if pair is not None and not one_sided(pair):
        up, down = pair
        units[0].note("pairs", units[0].sample(up.view, up), units[0].sample(down.view, down))
        units[0].made.pair_corrections.append(group.correction(cap))
        if config.conditioning == "cross":
            units[0].note("crossed", units[0].sample(down.view, up), units[0].sample(up.view, down))
    return [made for unit in units if (made := unit.build()).views]


def micro_batches(mixture: Mixture, config: AlignConfig, groups: Sequence[Group], tie_key: Key) -> list[MicroBatch]:
    """Cut an update into pieces of about `micro_batch` views; never empty. Views of similar length stand together."""
    pieces: list[MicroBatch] = []
    for group in sorted(groups, key=lambda group: (_longest(group), group.item.example.id)):
        for unit in group_units(group, mixture, config, tie_key):
            if not pieces or len(pieces[-1].views) + len(unit.views) > config.micro_batch:
                pieces.append(MicroBatch())
            pieces[-1].extend(unit)
    if not pieces:  # ties and no supervised term, and yet a rank has to take part in the update
        item = groups[0].item
        pieces.append(MicroBatch([item.views[0]], [[item.answer]], [False], [1.0]))
    return pieces


def _longest(group: Group) -> int:
    return max((len(drawn.ids) for drawn in group.drawn), default=0) + len(group.item.answer)


@dataclass(frozen=True, slots=True)
class Values:
    """What the passes over one piece have given. R rows, T tokens, V vocabulary."""

    mask: Tensor
    """(R,T) bool."""
    logprobs: Tensor | None = None
    """(R,T) of the taken tokens under the policy; None where no term asks for them."""
    logits: Tensor | None = None
    """(R,T,V) of the policy, for kd and opd."""
    teacher: Mapping[str, Tensor] = field(default_factory=dict)
    """Term (kd, opd) -> the text teacher's logits (its rows, T', V); T' >= every such row's length."""
    reference: Tensor | None = None
    """(R,T) log-probs under the reference policy."""


def terms(mixture: Mixture, config: AlignConfig, piece: MicroBatch, values: Values) -> dict[str, tuple[float, Loss]]:
    """The mixture's terms on one piece: name -> (coefficient, Loss)."""
    return {name: (weight, _term(name, config, piece, values)) for name, weight in mixture.items()}


def _term(name: str, config: AlignConfig, piece: MicroBatch, values: Values) -> Loss:
    if name in ("kd", "opd"):
        places, teacher = piece.answers if name == "kd" else piece.samples, values.teacher[name]
        assert values.logits is not None
        width = teacher.shape[1]
        distil = objectives.kd if name == "kd" else objectives.opd
        own = _weights_of(config, values.logits, [piece.corrections[row] for row in places])
        return distil(values.logits[places, :width], teacher, values.mask[places, :width], row_weights=own)
    assert values.logprobs is not None
    logprobs, truncated = values.logprobs, torch.tensor(piece.truncated, device=values.logprobs.device)

    def rows(chosen: Iterable[int]) -> Answers:
        places = torch.tensor(list(chosen), dtype=torch.long, device=logprobs.device)
        base = None if values.reference is None else values.reference[places]
        return Answers(logprobs[places], values.mask[places], base, truncated[places])

    def sides(pairs: list[tuple[int, int]]) -> tuple[Answers, Answers]:
        return rows(pair[0] for pair in pairs), rows(pair[1] for pair in pairs)

    if name == "ce":
        answers = rows(piece.answers)
        return objectives.sft(answers.logprobs, answers.mask, reduction=config.ce_reduction)
    if name == "grpo":
        return _grpo(config, piece, rows)
    beta, mean = config.beta, config.length_normalise
    if name == "single":
        own = _weights_of(config, logprobs, [piece.corrections[row] for _, row in piece.singles])
        return objectives.rba_single(*sides(piece.singles), beta=beta, length_normalise=mean, row_weights=own)
    crossed = sides(piece.crossed) if config.conditioning == "cross" else None
    own = _weights_of(config, logprobs, piece.pair_corrections)
    return objectives.rba_group(*sides(piece.pairs), crossed, beta=beta, length_normalise=mean, row_weights=own)


def _weights_of(config: AlignConfig, like: Tensor, corrections: list[float]) -> Tensor | None:
    """Importance weights of rows, where a server draws."""
    return like.new_tensor(corrections) if config.rollout else None


def _grpo(config: AlignConfig, piece: MicroBatch, rows: Callable[[Iterable[int]], Answers]) -> Loss:
    """Samples that have an advantage; where they are stale, beside the log-probs with which they were drawn."""
    kept = [
        (row, drawn, advantage)
        for row, (_, drawn, advantage) in zip(piece.samples, piece.drawn, strict=True)
        if advantage is not None
    ]
    samples = rows(row for row, _, _ in kept)
    behaviour = correction = None
    if config.rollout:
        correction = torch.zeros_like(samples.logprobs)
        for place, (_, drawn, _) in enumerate(kept):
            correction[place, : len(drawn.ids)] = drawn.log_ratios().exp().clamp(max=config.rollout.max_weight)
    if config.sample_refresh == "epoch" and kept:
        behaviour = torch.zeros_like(samples.logprobs)
        for place, (_, drawn, _) in enumerate(kept):
            behaviour[place, : len(drawn.ids)] = drawn.logprobs
    chosen = config.grpo
    return objectives.grpo(
        samples,
        samples.logprobs.new_tensor([advantage for _, _, advantage in kept]),
        behaviour,
        correction,
        clip=(chosen.clip_low, chosen.clip_high),
        kl=chosen.kl,
        kl_estimator=chosen.kl_estimator,
        reduction=chosen.reduction,
        cap=config.sampling.max_new_tokens,
    )


@torch.no_grad()
def weights(mixture: Mixture, config: AlignConfig, piece: MicroBatch) -> dict[str, float]:
    """What `terms` will weigh, before any pass: the same functions on zeros."""
    mask = piece.mask()
    zeros = torch.zeros(mask.shape)
    places = {"kd": piece.answers, "opd": piece.samples}
    teacher = {name: zeros[own, :, None] for name, own in places.items()}
    values = Values(mask, zeros, zeros[..., None], teacher, zeros)
    return {name: float(loss.weight) for name, (_, loss) in terms(mixture, config, piece, values).items()}


def wants_reference(mixture: Mixture, config: AlignConfig) -> bool:
    """Whether any term is measured against the reference policy."""
    return "reference" in needs(mixture) or ("grpo" in mixture and config.grpo.kl > 0)
