"""From groups to micro-batches, and from log-probs to the terms of an arm's loss.

A micro-batch asks, of each view, for one or more completions that hang on its one prompt. How an update is cut into
micro-batches changes memory and time, never the loss: terms are sums, and weights are known before the first pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rbalign.config.sections import AlignConfig
from rbalign.keys import Key
from rbalign.train.objectives import Answers, Loss, kd, rba_group, rba_single, sft
from rbalign.train.rollout import Drawn, Group, Item
from rbalign.types import View

SAMPLED = frozenset({"rba-single", "rba-group"})
"""Arms that draw from the policy."""


@dataclass(slots=True)
class MicroBatch:
    """What one forward pass computes. A row is one completion on one view; rows are numbered view by view."""

    views: list[View] = field(default_factory=list)
    branches: list[list[Tensor]] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    """Of each row."""
    answers: list[int] = field(default_factory=list)
    """Rows that hold the teacher's answer on a view."""
    items: list[Item] = field(default_factory=list)
    """The item of each of `answers`."""
    pairs: list[tuple[int, int]] = field(default_factory=list)
    """(chosen row, rejected row)."""
    crossed: list[tuple[int, int]] = field(default_factory=list)
    """The same answers on each other's audio, for conditioning "cross"."""

    @property
    def rows(self) -> list[Tensor]:
        """The ids of each row."""
        return [ids for own in self.branches for ids in own]

    def mask(self) -> Tensor:
        """(R, T) bool, as the forward pass will return it."""
        return pad_sequence([torch.ones(len(ids), dtype=torch.bool) for ids in self.rows], batch_first=True)

    def compared(self) -> list[int]:
        """Rows that the reference is needed for."""
        return sorted({row for pair in (*self.pairs, *self.crossed) for row in pair})

    def extend(self, other: MicroBatch) -> None:
        """Append another one's views; its row numbers move up."""
        shift = len(self.truncated)
        self.views += other.views
        self.branches += other.branches
        self.truncated += other.truncated
        self.answers += [row + shift for row in other.answers]
        self.items += other.items
        self.pairs += [(a + shift, b + shift) for a, b in other.pairs]
        self.crossed += [(a + shift, b + shift) for a, b in other.crossed]


class _Builder:
    """Collects the completions that one unit (a view, or a whole group) asks for; equal ones are asked for once."""

    def __init__(self) -> None:
        self.wanted: dict[str, tuple[View, dict[str, tuple[Tensor, bool]]]] = {}

    def ask(self, view: View, name: str, ids: Tensor, truncated: bool) -> tuple[str, str]:
        """Ask for a completion on a view; the pair names its row later."""
        self.wanted.setdefault(view.id, (view, {}))[1][name] = (ids, truncated)
        return view.id, name

    def build(self) -> tuple[MicroBatch, dict[tuple[str, str], int]]:
        """The unit and the row number of each (view id, name)."""
        unit, numbers = MicroBatch(), {}
        for view_id, (view, asked) in self.wanted.items():
            unit.views.append(view)
            unit.branches.append([ids for ids, _ in asked.values()])
            for name, (_, truncated) in asked.items():
                numbers[view_id, name] = len(unit.truncated)
                unit.truncated.append(truncated)
        return unit, numbers


def view_units(group: Group, supervised: bool) -> list[MicroBatch]:
    """SFT, KD and RBA-Single: each view with the teacher's answer, paired with each of its own complete samples.

    The teacher's answer is complete, so a truncated sample makes a one-sided pair: it is dropped before any pass.
    """
    units = []
    for view in group.item.views:
        own = [drawn.ids for drawn in group.drawn if drawn.view is view and not drawn.truncated]
        if own or supervised:
            unit = MicroBatch([view], [[group.item.answer, *own]], [False] * (1 + len(own)), [0], [group.item])
            unit.pairs = [(0, place) for place in range(1, 1 + len(own))]
            units.append(unit)
    return units


def one_sided(pair: tuple[Drawn, Drawn]) -> bool:
    """Whether only one of the two was cut by the length cap."""
    return pair[0].truncated != pair[1].truncated


def group_unit(group: Group, pair: tuple[Drawn, Drawn] | None, supervised: bool, crossed: bool) -> MicroBatch:
    """RBA-Group: the best and the worst sample, each on its own audio; the teacher's answer on every view if asked.

    No pair where only one of them is truncated.
    """
    asked = _Builder()
    answers = [asked.ask(view, "answer", group.item.answer, False) for view in group.item.views if supervised]
    names = []
    if pair is not None and not one_sided(pair):
        up, down = pair
        for first, second in ((up.view, down.view), (down.view, up.view))[: 2 if crossed else 1]:
            better = asked.ask(first, "chosen", up.ids, up.truncated)
            names.append((better, asked.ask(second, "rejected", down.ids, down.truncated)))
    unit, numbers = asked.build()
    unit.answers = [numbers[name] for name in answers]
    unit.items = [group.item] * len(answers)
    places = [(numbers[a], numbers[b]) for a, b in names]
    unit.pairs, unit.crossed = places[:1], places[1:]
    return unit


def micro_batches(arm: str, config: AlignConfig, groups: Sequence[Group], tie_key: Key) -> list[MicroBatch]:
    """Cut an update into pieces of about `micro_batch` views; never empty. Views of similar length stand together."""
    units: list[MicroBatch] = []
    for group in sorted(groups, key=lambda group: (_longest(group), group.item.example.id)):
        if arm == "rba-group":
            pair = group.pair(tie_key.at(example=group.item.example.id))
            units.append(group_unit(group, pair, config.ce_weight > 0, config.conditioning == "cross"))
        else:
            units += view_units(group, arm not in SAMPLED or config.ce_weight > 0)
    pieces: list[MicroBatch] = []
    for unit in units:
        if not unit.views:  # a tie and no supervised term: nothing to compute
            continue
        if not pieces or len(pieces[-1].views) + len(unit.views) > config.micro_batch:
            pieces.append(MicroBatch())
        pieces[-1].extend(unit)
    if not pieces:  # a rank still has to take part in the update
        item = groups[0].item
        pieces.append(MicroBatch([item.views[0]], [[item.answer]], [False]))
    return pieces


def _longest(group: Group) -> int:
    return max((len(drawn.ids) for drawn in group.drawn), default=0) + len(group.item.answer)


def terms(
    arm: str,
    config: AlignConfig,
    piece: MicroBatch,
    values: Tensor,
    mask: Tensor,
    reference: Tensor | None = None,
    teacher: Tensor | None = None,
) -> dict[str, tuple[float, Loss]]:
    """The arm's loss on one piece: name -> (coefficient, Loss). `values`: log-probs (R,T), or logits (R,T,V) for kd."""
    if arm == "kd":
        assert teacher is not None
        return {"kd": (1.0, kd(values[piece.answers], teacher, mask[piece.answers]))}
    found: dict[str, tuple[float, Loss]] = {}
    truncated = torch.tensor(piece.truncated, device=values.device)

    def rows(places: Iterable[int]) -> Answers:
        chosen = torch.tensor(list(places), dtype=torch.long, device=values.device)
        base = None if reference is None else reference[chosen]
        return Answers(values[chosen], mask[chosen], base, truncated[chosen])

    def sides(pairs: list[tuple[int, int]]) -> tuple[Answers, Answers]:
        return rows(pair[0] for pair in pairs), rows(pair[1] for pair in pairs)

    if arm in SAMPLED:
        better, worse = sides(piece.pairs)
        beta, mean = config.beta, config.length_normalise
        if arm == "rba-single":
            found["pair"] = (1.0, rba_single(better, worse, beta=beta, length_normalise=mean))
        else:
            crossed = sides(piece.crossed) if config.conditioning == "cross" else None
            found["pair"] = (1.0, rba_group(better, worse, crossed, beta=beta, length_normalise=mean))
    weight = config.ce_weight if arm in SAMPLED else 1.0
    if weight > 0:
        answers = rows(piece.answers)
        found["ce"] = (weight, sft(answers.logprobs, answers.mask, reduction=config.ce_reduction))
    return found


@torch.no_grad()
def weights(arm: str, config: AlignConfig, piece: MicroBatch) -> dict[str, float]:
    """What `terms` will weigh, before any pass: the same functions on zeros."""
    mask = piece.mask()
    zeros = torch.zeros(*mask.shape, *((1,) if arm == "kd" else ()))
    teacher = zeros[piece.answers] if arm == "kd" else None
    made = terms(arm, config, piece, zeros, mask, None, teacher)
    return {name: float(loss.weight) for name, (_, loss) in made.items()}
