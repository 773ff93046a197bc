"""Near-duplicate queries a second: filed by bands, beside comparing with every row, at growing sizes.

    python benchmarks/near_duplicates.py [--rows 20000 200000 1000000] [--queries 200]

Rows are mixtures of the shipped connector's 22,000 real ones, so that they resemble each other as questions do. Both
must give the same answers. The floor is computing the query's signature. Memory is what signatures and files hold.
"""

import argparse
import json
import statistics
import time
import tracemalloc

import numpy as np

from rbalign.data.dataset import Dataset
from rbalign.data.signatures import NEAR, PERMUTATIONS, Signatures, signature
from rbalign.speechlm.connector import SIGNATURES, connector_folder
from rbalign.synth.heldout import SHIPPED, heldout_folder


def mixed(count):
    """(count, 128): each row has a tenth to half of its bytes from another real row."""
    path = connector_folder("default") / SIGNATURES
    real = np.frombuffer(path.read_bytes()[-len(Signatures.load(path)) * PERMUTATIONS :], np.uint8)
    real = real.reshape(-1, PERMUTATIONS)
    noise = np.random.default_rng(0)
    rows = real[noise.integers(len(real), size=count)]
    for start in range(0, count, 1 << 16):
        block = rows[start : start + (1 << 16)]
        other = real[noise.integers(len(real), size=len(block))]
        taken = noise.random(block.shape, np.float32) < noise.uniform(0.1, 0.5, size=(len(block), 1))
        block[taken] = other[taken]
    return rows


def each(action, texts):
    """Results and seconds of each call."""
    found, seconds = [], []
    for text in texts:
        start = time.perf_counter()
        found.append(action(text))
        seconds.append(time.perf_counter() - start)
    return found, seconds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    texts = [example.instruction for example in Dataset.open(heldout_folder(SHIPPED)).iter_examples()]
    texts = [" ".join(text.split()[cut:]) for cut in (0, 1) for text in texts][: options.queries]
    for rows in options.rows:
        tracemalloc.start()
        signatures = Signatures(mixed(rows))
        for text in texts[::3]:
            signatures.add(text)
        start = time.perf_counter()
        signatures.has_near(texts[0])
        filing = time.perf_counter() - start
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        near, ours = each(signatures.has_near, texts)
        compared, theirs = each(lambda text, all_rows=signatures: all_rows.worst(text) >= NEAR, texts)
        assert near == compared
        _, floor = each(signature, texts)
        ratios = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
        deciles = statistics.quantiles(ratios, n=10)
        print(
            json.dumps(
                {
                    "name": f"near-duplicate queries, {rows} rows",
                    "unit": "queries/s",
                    "ours": round(1 / statistics.median(ours), 1),
                    "theirs": round(1 / statistics.median(theirs), 1),
                    "ratio": round(statistics.median(ratios), 1),
                    "floor": round(1 / statistics.median(floor), 1),
                    "spread": [round(deciles[0], 1), round(deciles[-1], 1)],
                    "near": sum(near),
                    "filing_seconds": round(filing, 2),
                    "bytes a row": round(kept / rows),
                }
            )
        )


if __name__ == "__main__":
    main()
