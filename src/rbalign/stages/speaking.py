"""Speaking of planned views into a dataset folder, shard by shard, for what evaluation asks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rbalign.audio.channel import needs_talkers
from rbalign.data.dataset import DatasetWriter
from rbalign.rundir.progress import progress
from rbalign.types import Example, Split, View


def speak_shards(
    folder: Path, meta: Mapping[str, Any], examples: Sequence[Example], shards: Mapping[int, Sequence[View]], label: str
) -> None:
    """Commit every shard of test views that is not there yet, and finish the dataset. A clip that no voice can make is
    left out: whoever asks for it finds it missing."""
    writer = DatasetWriter(folder, meta)
    writer.add_examples(examples)
    words = {example.id: example.spoken for example in examples}
    there = writer.committed(Split.TEST)
    done = sum(len(views) for number, views in shards.items() if number in there)
    missing = {number: views for number, views in shards.items() if number not in there}
    with progress(sum(map(len, shards.values())), label, done, "clips") as advance:
        for number, clips in _spoken(missing, words, advance):
            writer.commit_views(Split.TEST, number, sorted(clips, key=lambda view: view.id))
    writer.finish()


def _spoken(
    shards: Mapping[int, Sequence[View]], words: dict[str, str], advance: Callable[[], None]
) -> Iterator[tuple[int, list[View]]]:
    """Each shard once all of its clips are made. One pool speaks all shards without babble: starting it for five
    instructions takes as long as speaking three. Babble is made of its own shard's clips alone."""
    from rbalign.synth.speak import speak_shard

    alone = [number for number, views in shards.items() if any(needs_talkers(view.spec.channel) for view in views)]
    together = [number for number in shards if number not in alone]
    for numbers in ([together] if together else []) + [[number] for number in alone]:
        place = {view.id: number for number in numbers for view in shards[number]}
        left = Counter(place.values())
        clips: dict[int, list[View]] = {number: [] for number in numbers}
        for view, failure in speak_shard([v for n in numbers for v in shards[n]], words, os.cpu_count() or 1):
            advance()
            number = place[view.id]
            if failure is None:
                clips[number].append(view)
            left[number] -= 1
            if not left[number]:
                yield number, clips.pop(number)
