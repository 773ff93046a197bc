"""Instructions a second of `rba synth`'s writing half on every core, embedded teacher: alone, and with answers.

python benchmarks/synth.py [--candidates 800] [--workers 0] [--rounds 2]

Theirs is Magpie as distilabel's TransformersLLM does it: batches of 64 through transformers' `generate` on every core,
the same weights, prompts, limits and filters, every instruction answered before it is judged. Rounds are interleaved,
medians shown. The floor is tokens: every candidate costs its own and its answer's, and most do not end within their
limit.
"""

import argparse
import json
import os
import statistics
import sys
import time
from contextlib import closing
from itertools import count

import torch

from rbalign.assets import model_folder
from rbalign.config.sections import TeacherConfig
from rbalign.config.synth import SynthConfig
from rbalign.lm.load import load_lm
from rbalign.lm.templates import chat_ids, end_ids, prequery_ids
from rbalign.synth.accept import Acceptance
from rbalign.synth.write import write_many
from rbalign.types import StopReason

BATCH = 64


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
    return rates(acceptance, elapsed)


def rates(acceptance, elapsed):
    """What was judged and accepted in so many seconds."""
    return {
        "candidates a second": round(acceptance.seen / elapsed, 2),
        "accepted a second": round(len(acceptance.examples) / elapsed, 2),
        "candidates": acceptance.seen,
        "accepted": len(acceptance.examples),
        "dropped": dict(acceptance.causes.most_common(4)),
    }


def measure_generate(config, candidates):
    """The same with transformers' `generate`, after a batch that is not counted."""
    lm = load_lm(model_folder(TeacherConfig().model))
    ends, acceptance, start = end_ids(lm.tokenizer), Acceptance(config), 0.0
    prefix = prequery_ids(lm.tokenizer, config.system)
    torch.manual_seed(0)
    for number in count(-1):
        texts = generated(lm, [prefix] * BATCH, config.instruction, ends)
        prompts = [chat_ids(lm.tokenizer, text, config.answer_system) for text, _ in texts]
        answers = generated(lm, prompts, config.answer, ends) if config.answers else [("", None)] * BATCH
        if number < 0:
            start = time.perf_counter()
            continue
        for place, ((text, stop), (answer, answer_stop)) in enumerate(zip(texts, answers, strict=True)):
            draft = {"id": f"{number}-{place}", "text": text, "stop": stop}
            acceptance.add(draft | ({"answer": answer, "answer_stop": answer_stop} if config.answers else {}))
        if acceptance.seen >= candidates:
            return rates(acceptance, time.perf_counter() - start)
    raise AssertionError


def generated(lm, prompts, sampling, ends):
    """(text, stop) of each prompt, left-padded as a batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[ends[0]] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    made = lm.model.generate(
        input_ids=ids, attention_mask=mask, do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p,
        top_k=0, max_new_tokens=sampling.max_new_tokens, eos_token_id=list(ends), pad_token_id=ends[0],
    )[:, width:]  # fmt: skip
    stops = [str(StopReason.END if set(row.tolist()) & set(ends) else StopReason.LENGTH) for row in made]
    return list(
        zip((text.strip() for text in lm.tokenizer.batch_decode(made, skip_special_tokens=True)), stops, strict=True)
    )


def main():
    """Both modes, ours and theirs in turn; one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--candidates", type=int, default=800)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    workers = options.workers or os.cpu_count() or 1
    endless = 10 * options.candidates
    alone = SynthConfig(train=endless, validation=0, test=0, answers=False)
    result = {"name": f"synth, {workers} workers"}
    for name, config in (
        ("instructions alone", alone),
        ("with complete answers", alone.model_copy(update={"answers": True})),
    ):
        ours, theirs = [], []
        for _ in range(options.rounds):
            ours.append(measure(config, options.candidates, workers))
            theirs.append(measure_generate(config, options.candidates))
        speeds = [[row["accepted a second"] for row in rows] for rows in (ours, theirs)]
        medians = [statistics.median(own) for own in speeds]
        result[name] = {
            "ours": ours[-1], "theirs": theirs[-1], "accepted a second, ours": speeds[0],
            "accepted a second, theirs": speeds[1], "ratio": round(medians[0] / medians[1], 2),
        }  # fmt: skip
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
