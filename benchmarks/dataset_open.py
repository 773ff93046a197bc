"""Seconds and memory from nothing to the first batch of a large dataset: 64 clips with their audio and texts.

    python benchmarks/dataset_open.py [--rows 1000000] [--rounds 3] [--folder DIR]

Writes a dataset of tiny clips into a temporary folder (a million rows: 0.5 GB, some minutes), deletes it at the end.
Every measurement is a fresh process, imports included, interleaved, medians. `theirs` streams the same shards with
`datasets.load_dataset("parquet", streaming=True)`, clips only, no texts; the floor reads one file with pyarrow.
Wanted at a million rows: `ours` under 3 s, its `mb` under 500. `cpu` tells what a busy machine hides.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

START = time.perf_counter()
BATCH = 64
VIEWS = 4
TEXT = "Could you tell me, in a few words, what number {} has to do with the weather in the mountains?"


def write(folder, rows):
    """A dataset of `rows` clips, four for each example."""
    import numpy as np

    from rbalign.audio.io import to_flac
    from rbalign.data.dataset import VIEWS_PER_SHARD, DatasetWriter
    from rbalign.types import Example, View, ViewSpec

    flac = to_flac(np.zeros(160, np.float32))
    specs = [ViewSpec(voice) for voice in ("af_heart", "af_bella", "am_adam", "bf_emma")]
    writer = DatasetWriter(folder, {"teacher": "none", "recipe": "none"})
    texts = (TEXT.format(n) for n in range(rows // VIEWS))
    writer.add_examples(Example(f"{n:06d}", "train", text, text, text * 2) for n, text in enumerate(texts))
    for shard, first in enumerate(range(0, rows, VIEWS_PER_SHARD)):
        places = range(first, min(rows, first + VIEWS_PER_SHARD))
        views = [View(f"{n // VIEWS:06d}", n % VIEWS, "train", specs[n % VIEWS], 0.01, flac) for n in places]
        writer.commit_views("train", shard, views)
    writer.finish()
    return range(BATCH)


def ours(folder):
    from rbalign.data.dataset import Dataset

    data = Dataset.open(folder)
    examples = data.by_id()
    return [(view.flac, examples[view.example_id].answer) for view in islice(data.iter_views("train"), BATCH)]


def eager(folder):
    from rbalign.data.dataset import Dataset

    data = Dataset.open(folder)
    examples = {example.id: example for example in data.examples("train")}
    return [(view.flac, examples[view.example_id].answer) for view in data.views("train")[:BATCH]]


def theirs(folder):
    from datasets import load_dataset

    files = str(folder / "views" / "train-*.parquet")
    data = load_dataset("parquet", data_files={"train": files}, streaming=True, cache_dir=str(folder / "cache"))
    return list(data["train"].take(BATCH))


def floor(folder):
    import pyarrow.parquet as pq

    with pq.ParquetFile(folder / "views" / "train-00000.parquet", memory_map=True) as file:
        return file.read_row_groups(range(4)).to_pylist()


SUBJECTS = {"ours": ours, "theirs": theirs, "floor": floor, "eager": eager, "write": write}


def measure(name, folder, *words):
    """In a fresh process: (seconds, CPU seconds, MB at most). This one stays small: a child inherits its peak."""
    command = [sys.executable, __file__, "--measure", name, "--folder", str(folder), *words]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found["seconds"], found["cpu"], found["mb"]


def report(name, folder, *more):
    assert len(SUBJECTS[name](folder, *more)) == BATCH
    mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.perf_counter() - START, "cpu": time.process_time(), "mb": mb}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the temporary folder lies")
    parser.add_argument("--eager", action="store_true", help="also all rows at once, as lists (8 GB at a million)")
    parser.add_argument("--measure", choices=SUBJECTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        report(options.measure, options.folder, *([options.rows] if options.measure == "write" else []))
        return
    place = Path(tempfile.mkdtemp(prefix="rba-dataset-open-", dir=options.folder))
    try:
        written = measure("write", place, "--rows", str(options.rows))
        names = ["ours", "theirs", "floor", *(["eager"] if options.eager else [])]
        found = {name: [] for name in names}
        for _ in range(options.rounds):
            for name in names:
                found[name].append(measure(name, place))
        middle = {name: [statistics.median(column) for column in zip(*own, strict=True)] for name, own in found.items()}
        ratios = [theirs[0] / ours[0] for ours, theirs in zip(found["ours"], found["theirs"], strict=True)]
        print(
            json.dumps(
                {
                    "name": f"dataset open and first batch, {options.rows} rows",
                    "unit": "s",
                    **{name: round(middle[name][0], 2) for name in ("ours", "theirs")},
                    "ratio": round(statistics.median(ratios), 2),
                    "floor": round(middle["floor"][0], 2),
                    "spread": [round(min(ratios), 2), round(max(ratios), 2)],
                    "write": round(written[0]),
                    "cpu": {name: round(own[1], 2) for name, own in {**middle, "write": written}.items()},
                    "mb": {name: round(own[2]) for name, own in {**middle, "write": written}.items()},
                }
            )
        )
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
