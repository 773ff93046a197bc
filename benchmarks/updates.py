"""Seconds of one alignment update by arm and phase: SmolLM2-135M, 4 instructions x 4 views, at most 32 tokens.

    python benchmarks/updates.py [--updates 3] [--arms sft kd rba-single rba-group grpo opd] [--threads 2]
    python benchmarks/updates.py --arms rba-single --views 1 2 4 8 --examples 4 400    # how it grows

Arms and sizes are interleaved, medians shown. An update takes 4 of the data's examples. The clips' audio positions are
random (17 to 24 a view, as the CTC adapter makes of a spoken sentence) and stand in the cache, as they do after the
first pass over the data.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor

from rbalign.assets import model_folder
from rbalign.audio.io import to_flac
from rbalign.config.sections import AlignConfig, Sampling
from rbalign.lm.load import load_lm
from rbalign.lm.sampler import Sample
from rbalign.rundir.journal import read_rows
from rbalign.speechlm import RbaSpeechConfig, RbaSpeechForConditionalGeneration, RbaSpeechProcessor
from rbalign.speechlm.policy import SpeechPolicy
from rbalign.train.rollout import Item
from rbalign.train.trainer import AlignTrainer
from rbalign.types import Example, StopReason, View, ViewSpec

ANSWER = (
    "You can keep herbs fresh by trimming the stems, standing them in a glass of cold water, and covering the leaves"
    " loosely with a bag in the fridge"
)


class ByLength:
    """Costs nothing: the reward's own time is measured by its own benchmark."""

    name, needs = "length", frozenset()

    def __call__(self, prompts, completions, completion_ids, **columns):
        return [float(len(ids)) + sum(ids) / 1e7 for ids in completion_ids]


def complete(sample):
    """The same sample, as if it had ended by itself."""
    return Sample(sample.ids, sample.logprobs, StopReason.END)


def policy_of():
    lm = load_lm(model_folder("smollm2-135m-instruct"))
    shape = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 384, "encoder_attention_heads": 6}
    config = RbaSpeechConfig(audio_config=WhisperConfig(**shape), text_config=lm.model.config, adapter_layers=1)
    speech = RbaSpeechForConditionalGeneration(config, language_model=lm.model)
    processor = RbaSpeechProcessor(WhisperFeatureExtractor(), lm.tokenizer)
    lora = AlignConfig().lora
    return SpeechPolicy(speech, processor, system="Answer in one short spoken sentence.", lora=lora)


def items_of(policy, examples, views_each):
    """Examples with so many views, their audio positions in the policy's cache."""
    ids = policy.completion_ids(ANSWER)[-28:]
    torch.manual_seed(0)
    items = []
    for number in range(examples):
        views = []
        for index in range(views_each):
            clip = np.full(1600, (views_each * number + index + 1) / (2 * views_each * examples), np.float32)
            view = View(f"e{number}", index, "train", ViewSpec("bench"), 0.1, to_flac(clip))
            made = [0.2 * torch.randn(17 + (number + index) % 8, policy.lm.config.hidden_size)]
            policy.cache.get("positions", [view], lambda _, made=made: made)
            views.append(view)
        example = Example(f"e{number}", "train", "How do I keep herbs fresh for longer?", "", ANSWER)
        items.append(Item(example, tuple(views), ids))
    return items


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=["sft", "kd", "rba-single", "rba-group", "grpo", "opd"])
    parser.add_argument("--views", type=int, nargs="+", default=[4])
    parser.add_argument("--examples", type=int, nargs="+", default=[4])
    parser.add_argument("--micro-batch", type=int, default=AlignConfig().micro_batch)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    policy = policy_of()
    policy.end_ids = (policy.tokenizer.vocab_size - 1,)  # hardly ever drawn: every sample costs its 32 tokens,
    draw = policy.sample  # and counts as complete, for truncated ones are left out of pairs
    policy.sample = lambda *given, **more: [[complete(one) for one in own] for own in draw(*given, **more)]
    sizes = list(itertools.product(options.examples, options.views))
    items = {size: items_of(policy, *size) for size in sizes}
    found = {(arm, *size): [] for arm in options.arms for size in sizes}
    for _ in range(options.updates):
        for (arm, *size), rows in found.items():
            policy.restart(0)
            config = AlignConfig(
                updates=2,
                examples_per_update=4,
                micro_batch=options.micro_batch,
                sampling=Sampling(max_new_tokens=32),
            )
            with tempfile.TemporaryDirectory() as folder:
                AlignTrainer(policy, arm, config, items[tuple(size)], Path(folder), seed=0, scorer=ByLength()).fit()
                *_, row = read_rows(Path(folder) / "metrics.jsonl")  # the first also measures each term's gradient norm
            rows.append({**row["seconds"], "gigaflop": row["operations"] / 1e9})
    for (arm, examples, views), rows in found.items():
        medians = {name: round(statistics.median(row[name] for row in rows), 2) for name in rows[0]}
        total = round(sum(medians.values()) - medians["gigaflop"], 2)
        print(json.dumps({"arm": arm, "examples": examples, "views": views, "total": total, **medians}))


main()
