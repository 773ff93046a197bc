"""What a connector trains on and in which order: clips, splices of clips, batches of equal seconds. No torch.

The whole order of all epochs is fixed beforehand by keys, so a resumed run meets the same batches.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rbalign.keys import Key

MAX_SECONDS = 29.5
"""Below the encoder's 30 s, because resampling rounds."""
SPLICE_SECONDS = (8.0, 28.0)
GAP_SECONDS = (0.1, 0.6)
SPEEDS = (0.85, 1.15)


@dataclass(frozen=True, slots=True)
class Clips:
    """Speech to train on, by position."""

    ids: list[str]
    texts: list[str]
    """What each says."""
    answers: list[str | None]
    """What the teacher answered to it."""
    voices: list[str]
    seconds: np.ndarray
    read: Callable[[int], np.ndarray]
    """Mono float32 samples at 16 kHz of the clip at a position."""

    def only(self, positions: list[int]) -> Clips:
        """Some of the clips, in this order."""
        return Clips(
            [self.ids[p] for p in positions],
            [self.texts[p] for p in positions],
            [self.answers[p] for p in positions],
            [self.voices[p] for p in positions],
            np.asarray(self.seconds)[positions],
            lambda index: self.read(positions[index]),
        )


@dataclass(frozen=True, slots=True)
class Item:
    """One training input: clips said one after another by one voice, at one speed. `key` seeds what else is done."""

    clips: tuple[int, ...]
    gaps: tuple[float, ...]
    """Seconds of silence between the clips."""
    speed: float
    seconds: float
    """Length after splicing and speeding."""
    key: Key
    plain: bool = False
    """True leaves the sound as it is: no augmentation, no masks."""


def shortened(updates: int, max_steps: int) -> int:
    """Updates of a training that TrainingArguments' max_steps may cut short; below 1 it means all."""
    return min(updates, max_steps) if max_steps > 0 else updates


def plan_epoch(clips: Clips, key: Key, splice: float, augment: bool, seconds_per_batch: float) -> list[list[Item]]:
    """Each clip once, alone or in a splice; batches of alike lengths, at most `seconds_per_batch` with padding.

    splice: share of items that are several clips in one, 8 to 28 s long. key: names seed and epoch.
    """
    generator = key.generator()
    batches = _batches(_items(clips, key, generator, splice, augment), generator, seconds_per_batch)
    return [batches[index] for index in generator.permutation(len(batches))]


def plan_easy(clips: Clips, key: Key, seconds_per_batch: float) -> list[list[Item]]:
    """Each clip once as it is, shortest first: CTC has to find out by itself where the words are.

    Measured on 8,000 clips: 300 updates of 60 s of augmented, spliced speech left the loss at 7 nats a token and the
    WER at 95 %; 180 updates of 40 s of plain speech with a frozen encoder reached 2.5 nats and 36 %.
    """
    generator = key.generator()
    items = [replace(item, plain=True) for item in _items(clips, key, generator, 0.0, False)]
    return _batches(items, generator, seconds_per_batch)


def plan_validation(clips: Clips, seconds_per_batch: float) -> list[list[Item]]:
    """Each clip once as it is, longest batches first."""
    return plan_easy(clips, Key(0, "connect-validation"), seconds_per_batch)[::-1]


def _batches(items: list[Item], generator: np.random.Generator, seconds_per_batch: float) -> list[list[Item]]:
    """Batches of alike lengths, ascending."""
    # 5 % jitter: the same clips do not meet in every epoch.
    order = sorted(items, key=lambda item: item.seconds * generator.uniform(0.95, 1.05))
    batches: list[list[Item]] = [[]]
    for item in order:
        longest = max([item.seconds, *(other.seconds for other in batches[-1])])
        if batches[-1] and longest * (len(batches[-1]) + 1) > seconds_per_batch:
            batches.append([])
        batches[-1].append(item)
    return batches


def _items(clips: Clips, key: Key, generator: np.random.Generator, splice: float, augment: bool) -> list[Item]:
    order = [int(index) for index in generator.permutation(len(clips.ids))]
    waiting: dict[str, deque[int]] = defaultdict(deque)
    for index in order:
        waiting[clips.voices[index]].append(index)
    items, used = [], set()
    for index in order:
        if index in used:
            continue
        speed = float(generator.uniform(*SPEEDS)) if augment else 1.0
        chosen, gaps = [index], []
        total = float(clips.seconds[index])
        target = generator.uniform(*SPLICE_SECONDS) * speed if generator.random() < splice else 0.0
        queue = waiting[clips.voices[index]]
        used.add(index)
        while total < target:
            while queue and queue[0] in used:
                queue.popleft()
            gap = float(generator.uniform(*GAP_SECONDS))
            if not queue or (total + gap + clips.seconds[queue[0]]) / speed > MAX_SECONDS:
                break
            chosen.append(queue.popleft())
            used.add(chosen[-1])
            gaps.append(gap)
            total += gap + float(clips.seconds[chosen[-1]])
        name = key.at(example=clips.ids[index])
        items.append(Item(tuple(chosen), tuple(gaps), speed, total / speed, name))
    return items
