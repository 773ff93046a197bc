"""Instructions a second of `rba synth`'s writing half (Magpie, filters, answers) on every core, embedded teacher.

python benchmarks/synth.py [--accepted 64] [--workers 0]
"""

import argparse
import json
import os
import time
from contextlib import closing
from itertools import count

from rbalign.config.sections import SynthConfig, TeacherConfig
from rbalign.synth.accept import Acceptance
from rbalign.synth.filters import drop_cause
from rbalign.synth.write import write_many
from rbalign.types import StopReason


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--accepted", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    config = SynthConfig(train=options.accepted, validation=0, test=0)
    workers = options.workers or os.cpu_count() or 1
    acceptance, candidates, speakable = Acceptance(config), 0, 0
    chunks = (range(start, start + config.batch_size) for start in count(0, config.batch_size))
    with closing(write_many(TeacherConfig(), config, 0, chunks, workers)) as written:
        first, start = True, time.perf_counter()
        for drafts in written:
            if first:  # the first chunk pays for loading the models in the workers
                first, start = False, time.perf_counter()
                continue
            for draft in drafts:
                candidates += 1
                speakable += drop_cause(draft["text"], StopReason(draft["stop"]), config.filters) is None
                acceptance.add(draft)
            if acceptance.is_full():
                break
        elapsed = time.perf_counter() - start
    print(
        json.dumps(
            {
                "name": f"synth, {workers} workers",
                "unit": "a second",
                "candidates": round(candidates / elapsed, 2),
                "accepted_instructions": round(speakable / elapsed, 2),
                "accepted_with_complete_answer": round(len(acceptance.examples) / elapsed, 2),
                "dropped": dict(acceptance.causes.most_common(4)),
            }
        )
    )


if __name__ == "__main__":
    main()
