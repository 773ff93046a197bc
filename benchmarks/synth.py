"""Instructions a second of `rba synth`'s writing half on every core, embedded teacher: alone, and with answers.

python benchmarks/synth.py [--candidates 800] [--workers 0]

The floor is tokens: every candidate costs its own and its answer's, and most answers do not end within their limit.
"""

import argparse
import json
import os
import sys
import time
from contextlib import closing
from itertools import count

from rbalign.config.sections import TeacherConfig
from rbalign.config.synth import SynthConfig
from rbalign.synth.accept import Acceptance
from rbalign.synth.write import write_many


def measure(config, candidates, workers):
    """Write until `candidates` are judged; the first chunk of each worker loads the models and is not counted."""
    acceptance, start, skipped = Acceptance(config), 0.0, 0
    chunks = (range(first, first + config.batch_size) for first in count(0, config.batch_size))
    with closing(write_many(TeacherConfig(), config, 0, chunks, workers)) as written:
        for drafts in written:
            if skipped < workers:
                skipped, start = skipped + 1, time.perf_counter()
                continue
            for draft in drafts:
                acceptance.add(draft)
            if acceptance.seen >= candidates:
                break
        elapsed = time.perf_counter() - start
    return {
        "candidates a second": round(acceptance.seen / elapsed, 2),
        "accepted a second": round(len(acceptance.examples) / elapsed, 2),
        "candidates": acceptance.seen,
        "accepted": len(acceptance.examples),
        "dropped": dict(acceptance.causes.most_common(4)),
    }


def main():
    """Both modes, one after the other; one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--candidates", type=int, default=800)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    workers = options.workers or os.cpu_count() or 1
    endless = 10 * options.candidates
    alone = SynthConfig(train=endless, validation=0, test=0, answers=False)
    result = {
        "name": f"synth, {workers} workers",
        "instructions alone": measure(alone, options.candidates, workers),
        "with complete answers": measure(alone.model_copy(update={"answers": True}), options.candidates, workers),
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
