"""Fused decode loop beside transformers' `generate`: same model, prompts, keys and tokens; interleaved, medians.

    python benchmarks/sampler.py [--batch 32 64] [--new 48] [--rounds 3] [--threads 2]

The floor is the arithmetic alone: the same matrix products on the same shapes and in the faster of their two layouts,
nothing else, and nothing of the prompts.
"""

import argparse
import json
import statistics
import time
from functools import partial

import torch

from rbalign import assets
from rbalign.keys import Key
from rbalign.lm.fused import FusedSampler
from rbalign.lm.load import load_lm
from rbalign.lm.sampler import GenerateSampler, SamplingParams
from rbalign.teacher.local import LocalTeacher

QUESTIONS = ["What should I cook for dinner tonight?", "How do I repair a bicycle tyre by the road?"]


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def floor(model, batch, new):
    """The products of `new` decode steps: (batch, D) times every linear weight of the decoder and the output layer."""
    weights = [m.weight.t().contiguous() for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {len(w): torch.randn(batch, len(w)) for w in weights}

    def run():
        for _ in range(new):
            for weight in weights:
                inputs[len(weight)] @ weight

    return run


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = load_lm(assets.folder("smollm2-135m-instruct"))
    teacher = LocalTeacher(lm)
    samplers = {"ours": FusedSampler(lm.model), "theirs": GenerateSampler(lm.model)}
    params = SamplingParams(options.new, temperature=1.0, top_p=1.0, stop_ids=())  # no stop: equal work
    for batch in options.batch:
        prompts = teacher.prompts([QUESTIONS[i % 2] for i in range(batch)], None)
        keys = [[Key(0, "bench", example=str(i))] for i in range(batch)]
        times = {name: [] for name in (*samplers, "floor")}
        with torch.no_grad():
            for _ in range(options.rounds + 1):
                for name, sampler in samplers.items():
                    times[name].append(seconds(partial(sampler.sample, prompts, params, keys)))
                times["floor"].append(seconds(floor(lm.model, batch, options.new)))
        rate = {name: batch * options.new / statistics.median(own[1:]) for name, own in times.items()}
        ratios = [t / o for o, t in zip(times["ours"][1:], times["theirs"][1:], strict=True)]
        print(
            json.dumps(
                {
                    "name": f"sampler batch {batch}, {options.new} new tokens, {options.threads} threads",
                    "unit": "tokens/s",
                    "ours": round(rate["ours"], 1),
                    "theirs": round(rate["theirs"], 1),
                    "ratio": round(statistics.median(ratios), 2),
                    "floor": round(rate["floor"], 1),
                    "spread": [round(min(ratios), 2), round(max(ratios), 2)],
                }
            )
        )


if __name__ == "__main__":
    main()
