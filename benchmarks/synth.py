"""Accepted instructions a second of `rba synth`'s writing half, embedded teacher, beside Magpie as users have it today.

python benchmarks/synth.py [--candidates 384] [--workers 0] [--rounds 2]

Theirs is distilabel's Magpie on its TransformersLLM (`pip install -e ".[benchmark]"`), which gives the pipeline one
prompt at a time; and, stronger but shipped by nobody, the same method in batches of 64 through transformers'
`generate`. All use every core, the same weights, prompts, limits and filters; instructions and answers are sampled
alike, for distilabel knows one setting. Alone, and with answers: theirs answer every instruction before any is judged.
Rounds are interleaved, medians shown. The floor is tokens: every candidate costs its own and its answer's.
"""

import argparse
import json
import os
import statistics
import sys
import time
from contextlib import closing
from importlib.util import find_spec
from itertools import count

import torch
from transformers import AutoModelForCausalLM

from rbalign.assets import model_folder
from rbalign.config.sections import Sampling, TeacherConfig
from rbalign.config.synth import SynthConfig, Writing
from rbalign.lm.load import load_tokenizer
from rbalign.lm.templates import chat_ids, end_ids, prequery_ids
from rbalign.synth.accept import Acceptance
from rbalign.synth.write import write_many
from rbalign.types import StopReason

BATCH, DISTILABEL_BATCH = 64, 16
DEFAULT_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""Of the embedded teacher's template, where it answers under a system prompt of ours."""
ALIKE = {"temperature": 1.0, "top_p": 0.99, "max_new_tokens": 64}


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
        "candidates a second": round(acceptance.seen / elapsed, 4),
        "accepted a second": round(len(acceptance.examples) / elapsed, 4),
        "candidates": acceptance.seen,
        "accepted": len(acceptance.examples),
        "dropped": dict(acceptance.causes.most_common(4)),
    }


def judged(config, candidates, batches):
    """Batches of drafts, the first of which warms up, until `candidates` are judged."""
    acceptance, start = Acceptance(config), 0.0
    for number, drafts in enumerate(batches):
        if number == 0:
            start = time.perf_counter()
            continue
        for place, draft in enumerate(drafts):
            acceptance.add({"id": f"{number}-{place}", **draft})
        if acceptance.seen >= candidates:
            break
    return rates(acceptance, time.perf_counter() - start)


def distilabel(config):
    """Batches of drafts by distilabel's Magpie; whole is what ended before the limit."""
    from distilabel.models.llms import TransformersLLM
    from distilabel.steps.tasks import Magpie

    folder = str(model_folder(TeacherConfig().model))
    tokenizer = load_tokenizer(folder)
    assert DEFAULT_SYSTEM in tokenizer.chat_template, "the template's own system prompt is another one"
    llm = TransformersLLM(
        model=folder, torch_dtype="float32", device="cpu", use_magpie_template=True,
        magpie_pre_query_template=tokenizer.decode(prequery_ids(tokenizer, config.system)),
        chat_template=tokenizer.chat_template.replace(DEFAULT_SYSTEM, config.answer_system),
        generation_kwargs=ALIKE | {"repetition_penalty": 1.0},
    )  # fmt: skip
    magpie = Magpie(llm=llm, n_turns=1, only_instruction=not config.answers)
    magpie.load()
    while True:
        rows = next(magpie.process([{}] * DISTILABEL_BATCH))
        yield [drafted([row["instruction"], row.get("response")], ended(row["distilabel_metadata"])) for row in rows]


def ended(metadata):
    """How the instruction, and the answer, ended."""
    (told,) = metadata.values()
    return [StopReason.END if made < ALIKE["max_new_tokens"] else StopReason.LENGTH for made in told["output_tokens"]]


def drafted(texts, stops):
    """What acceptance judges: an instruction, or one with its answer."""
    draft = {"text": texts[0].strip(), "stop": str(stops[0])}
    return draft | ({"answer": texts[1].strip(), "answer_stop": str(stops[1])} if len(stops) == 2 else {})


def batched(config):
    """The same by transformers' `generate`."""
    folder = model_folder(TeacherConfig().model)
    tokenizer, model = load_tokenizer(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ends, prefix = end_ids(tokenizer), prequery_ids(tokenizer, config.system)
    torch.manual_seed(0)
    while True:
        parts = [generated(model, tokenizer, [prefix] * BATCH, ends)]
        if config.answers:
            prompts = [chat_ids(tokenizer, text, config.answer_system) for text, _ in parts[0]]
            parts.append(generated(model, tokenizer, prompts, ends))
        yield [drafted(*zip(*row, strict=True)) for row in zip(*parts, strict=True)]


def generated(model, tokenizer, prompts, ends):
    """(text, stop) of each prompt, left-padded as a batch."""
    width = max(map(len, prompts))
    ids = torch.tensor([[ends[0]] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    made = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, eos_token_id=list(ends), pad_token_id=ends[0],
        **ALIKE,
    )[:, width:]  # fmt: skip
    stops = [StopReason.END if set(row.tolist()) & set(ends) else StopReason.LENGTH for row in made]
    return list(zip(tokenizer.batch_decode(made, skip_special_tokens=True), stops, strict=True))


THEIRS = {"distilabel": (distilabel, 4), "generate": (batched, 2)}
"""Whose batches, and how many times fewer candidates than ours they write: rates are flat, and theirs are slow."""


def main():
    """Both modes, everyone in turn; one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--candidates", type=int, default=384)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if find_spec("distilabel") is None:
        sys.exit('distilabel is not installed: pip install -e ".[benchmark]"')
    workers = options.workers or os.cpu_count() or 1
    alone = SynthConfig(
        train=10 * options.candidates, validation=0, test=0, answers=False,
        instruction=Writing(**ALIKE), answer=Sampling(**ALIKE),
    )  # fmt: skip
    result = {"name": f"synth, {workers} workers"}
    for name, answers in (("instructions alone", False), ("with complete answers", True)):
        config = alone.model_copy(update={"answers": answers})
        rounds = {who: [] for who in ("ours", *THEIRS)}
        for _ in range(options.rounds):
            rounds["ours"].append(measure(config, options.candidates, workers))
            for who, (batches, fewer) in THEIRS.items():
                rounds[who].append(judged(config, options.candidates // fewer, batches(config)))
            print(name, {who: rows[-1]["accepted a second"] for who, rows in rounds.items()}, file=sys.stderr)
        speeds = {who: [row["accepted a second"] for row in rows] for who, rows in rounds.items()}
        medians = {who: statistics.median(own) for who, own in speeds.items()}
        result[name] = {
            **{who: rows[-1] for who, rows in rounds.items()}, "accepted a second": speeds,
            "ratio": {who: round(medians["ours"] / medians[who], 2) for who in THEIRS},
        }  # fmt: skip
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
