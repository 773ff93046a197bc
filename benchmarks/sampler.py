"""Fused decode loop beside transformers' own sampling: same model, prompts and number of tokens; interleaved, medians.

    python benchmarks/sampler.py [--batch 32 64] [--samples 1 4] [--new 48] [--rounds 3] [--threads 2]

A batch is so many samples: each of a prompt of its own, and four of each prompt, as objectives over groups draw them.
Theirs is `generate(do_sample=True)` as a user calls it: for the tokens alone, and for the log-prob of every token as
well, which training needs and ours always returns. At temperature 1 without a cut, as objectives sample, and at
temperature 0.7 with top-p 0.95, as recipes have teachers and arms answer. The floor is the arithmetic alone: the same
matrix products with the same packed weights, nothing else, and nothing of the prompts.
"""

import argparse
import json
import statistics
import time
from functools import partial
from itertools import product as pairs

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from rbalign import assets
from rbalign.keys import Key
from rbalign.lm.fused import FusedSampler
from rbalign.lm.load import load_lm
from rbalign.lm.products import packed, product
from rbalign.lm.sampler import SamplingParams
from rbalign.teacher.local import LocalTeacher

QUESTIONS = ["What should I cook for dinner tonight?", "How do I repair a bicycle tyre by the road?"]
SETTINGS = ((1.0, 1.0), (0.7, 0.95))
"""(temperature, top-p)."""
WANTED = ("tokens", "tokens and log-probs")
"""Of `generate`."""


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def floor(model, batch, new):
    """The products of `new` decode steps: (batch, D) times every linear weight of the decoder and the output layer."""
    weights = [packed(m.weight) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {w.shape[1]: torch.randn(batch, w.shape[1]) for w in weights}

    def run():
        for _ in range(new):
            for weight in weights:
                product(inputs[weight.shape[1]], weight)

    return run


def generate(model, prompts, params, samples, logprobs):
    """The prompts as a left-padded batch of ids, sampled by transformers. No end token: equal work."""
    rows = [torch.cat([prompts.shared, row]) for row in prompts.rows]
    width = max(map(len, rows))
    ids = torch.stack([torch.cat([torch.zeros(width - len(row), dtype=torch.long), row]) for row in rows])
    mask = torch.stack([(torch.arange(width) >= width - len(row)).long() for row in rows])
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=params.temperature, top_p=params.top_p, top_k=0,
        num_return_sequences=samples, max_new_tokens=params.max_new_tokens, pad_token_id=0,
    )  # fmt: skip
    made = model.generate(
        input_ids=ids, attention_mask=mask, output_logits=logprobs, return_dict_in_generate=True
    )  # fmt: skip
    drawn = made.sequences[:, width:]
    assert drawn.shape[1] == params.max_new_tokens
    if logprobs:  # untempered, as ours
        steps = zip(made.logits, drawn.T, strict=True)
        torch.stack([logits.log_softmax(-1).gather(1, own[:, None])[:, 0] for logits, own in steps], dim=1)


def row(lm, released, prompts, params, options, samples, wanted):
    """Ours, theirs (`released` is transformers' own) and the floor in turn; the first round warms up."""
    fused = FusedSampler(lm.model)
    keys = [[Key(0, "bench", example=str(i), sample=j) for j in range(samples)] for i in range(len(prompts.rows))]
    batch = len(keys) * samples
    actions = {
        "ours": partial(fused.sample, prompts, params, keys),
        "theirs": partial(generate, released, prompts, params, samples, wanted != "tokens"),
        "floor": floor(lm.model, batch, options.new),
    }
    times = {name: [] for name in actions}
    with torch.no_grad():
        for _ in range(options.rounds + 1):
            for name, action in actions.items():
                times[name].append(seconds(action))
    rate = {name: round(batch * options.new / statistics.median(own[1:]), 1) for name, own in times.items()}
    ratios = [t / o for o, t in zip(times["ours"][1:], times["theirs"][1:], strict=True)]
    how = f"{len(keys)} x {samples}, temperature {params.temperature:g}, top-p {params.top_p:g}"
    return {
        "name": f"sampler batch {batch} = {how}, {wanted}, {options.new} new tokens, {options.threads} threads",
        "unit": "tokens/s",
        "ours": rate["ours"],
        "theirs": rate["theirs"],
        "ratio": round(statistics.median(ratios), 2),
        "floor": rate["floor"],
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def main():
    """A JSON line for each batch size and setting."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--wanted", nargs="+", choices=WANTED, default=WANTED)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = load_lm(folder := assets.folder("smollm2-135m-instruct"))
    released = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    teacher = LocalTeacher(lm)
    for temperature, top_p in SETTINGS:
        params = SamplingParams(options.new, temperature=temperature, top_p=top_p, stop_ids=())
        for batch in options.batch:
            for samples, wanted in pairs(options.samples, options.wanted):
                prompts = teacher.prompts([QUESTIONS[i % 2] for i in range(batch // samples)], None)
                print(json.dumps(row(lm, released, prompts, params, options, samples, wanted)), flush=True)


if __name__ == "__main__":
    main()
