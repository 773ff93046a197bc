"""Clips a second of `rba synth`'s speaking half on every core, beside the bare synthesiser.

python benchmarks/speaking.py [--clips 120] [--rounds 3]

Ours: views of the shipped held-out texts, spoken in a shard, encoded, and committed to a dataset folder; the start of
the worker pool is counted, as at every shard of 250. Theirs, which is the floor: as many processes, one thread each,
that hold Kokoro already and do nothing but call it, the next text to whoever is free; nothing is encoded, sent or kept.
Rounds are interleaved, medians shown. Then, with tones in the place of speech, what a clip costs beside its speaking in
a dataset of 100 and of 10,000.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

from rbalign.data.dataset import VIEWS_PER_SHARD, Dataset
from rbalign.stages.speaking import speak_shards
from rbalign.synth.heldout import SHIPPED_FOLDER
from rbalign.types import Example, Split, View, ViewSpec
from rbalign.voices.bank import load_bank
from rbalign.voices.kokoro import KokoroSpeaker

SECONDS = 3
"""Of a tone: about what an instruction lasts."""


def planned(count):
    """Instructions by id, and a view of each in the train voices in turn."""
    texts = [one.spoken for one in Dataset.open(SHIPPED_FOLDER).examples()]
    voices = load_bank().names(Split.TRAIN, "kokoro")
    examples = [Example(f"e{i:05d}", Split.TEST, texts[i % len(texts)], texts[i % len(texts)]) for i in range(count)]
    return examples, [
        View(one.id, 0, Split.TEST, ViewSpec(voices[i % len(voices)]), 0.0) for i, one in enumerate(examples)
    ]


def ours(count, folder):
    """Seconds to speak and commit."""
    examples, views = planned(count)
    shards = dict(enumerate(views[at : at + VIEWS_PER_SHARD] for at in range(0, count, VIEWS_PER_SHARD)))
    began = time.perf_counter()
    speak_shards(folder, {"kind": "benchmark"}, examples, shards, "ours")
    return time.perf_counter() - began


def bare(count, workers):
    """Seconds to speak the same with processes that hold the synthesiser already."""
    examples, views = planned(count)
    jobs = [(example.spoken, view.spec.voice) for example, view in zip(examples, views, strict=True)]
    barrier = multiprocessing.get_context("spawn").Barrier(workers + 1)
    with multiprocessing.get_context("spawn").Pool(workers, hold, (barrier,)) as pool:
        barrier.wait()
        began = time.perf_counter()
        for _ in pool.imap_unordered(say, jobs):
            pass
        return time.perf_counter() - began


def hold(barrier):
    """In a process: the synthesiser, warm."""
    os.environ["OMP_NUM_THREADS"] = "1"
    global held
    held = KokoroSpeaker()
    held.speak("Hello.", "af_heart")
    barrier.wait()


def say(job):
    """In a process: one clip; its length alone goes back."""
    return len(held.speak(*job))


def beside_speaking(count):
    """Milliseconds a clip without its speaking."""
    tone = (0.3 * np.sin(np.arange(SECONDS * 16_000) / 20)).astype(np.float32)

    def tones(jobs, workers):
        return ((job.id, tone) for job in jobs)

    with mock.patch("rbalign.synth.speak.speak_many", tones), tempfile.TemporaryDirectory() as folder:
        return round(1000 * ours(count, Path(folder)) / count, 2)


def main():
    """Ours and theirs in turn; one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    workers = os.cpu_count() or 1
    KokoroSpeaker()  # fetched before any clock
    seconds = {"ours": [], "theirs": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            seconds["ours"].append(ours(options.clips, Path(folder)))
        seconds["theirs"].append(bare(options.clips, workers))
    middle = {name: statistics.median(own) for name, own in seconds.items()}
    ratios = [theirs / mine for mine, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    result = {
        "name": f"speaking, kokoro, {options.clips} clips, {workers} processes",
        "unit": "clips a second",
        **{name: round(options.clips / own, 3) for name, own in middle.items()},
        "ratio": round(statistics.median(ratios), 3),
        "floor": round(options.clips / middle["theirs"], 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "ms a clip beside speaking": {str(count): beside_speaking(count) for count in (100, 10_000)},
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
