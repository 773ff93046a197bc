"""Speaking of planned views into a dataset folder, shard by shard, for what evaluation asks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rbalign.data.dataset import DatasetWriter
from rbalign.rundir.progress import progress
from rbalign.types import Example, Split, View


def speak_shards(
    folder: Path, meta: Mapping[str, Any], examples: Sequence[Example], shards: Mapping[int, Sequence[View]], label: str
) -> None:
    """Commit every shard of test views that is not there yet, and finish the dataset. A clip that no voice can make is
    left out: whoever asks for it finds it missing."""
    from rbalign.synth.speak import speak_shard

    writer = DatasetWriter(folder, meta)
    writer.add_examples(examples)
    words = {example.id: example.spoken for example in examples}
    there = writer.committed(Split.TEST)
    done = sum(len(views) for number, views in shards.items() if number in there)
    with progress(sum(map(len, shards.values())), label, done, "clips") as advance:
        for number, planned in shards.items():
            if number not in there:
                clips = []
                for view, failure in speak_shard(planned, words, os.cpu_count() or 1):
                    advance()
                    if failure is None:
                        clips.append(view)
                writer.commit_views(Split.TEST, number, sorted(clips, key=lambda view: view.id))
    writer.finish()
