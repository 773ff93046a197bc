"""Seconds of one update on text (sample, score, reference, loss, step): AlignTrainer beside TRL's closest trainer.

    pip install -e ".[benchmark]"
    python benchmarks/beside_trl.py [--arms grpo rba-group] [--prompts 16] [--new 32] [--rounds 5] [--threads 2]

grpo beside GRPOTrainer (4 samples a prompt, no reference on either side: TRL's default), rba-group without its
supervised term beside the experimental OnlineDPOTrainer (2 samples, as that takes; the untouched model as reference on
both sides). Same weights, float32, LoRA, prompts (ids compared), reward, optimizer; no gradient checkpointing. Rounds
are interleaved in one process, the first is dropped, medians shown. The clock runs from the Trainer's `on_step_begin`
to its `on_step_end`, so that logging, saving and construction are nobody's. Speech is left out, because TRL has none:
`TextPolicy` reads the instruction where another policy hears it, and all else is what `rba align` runs.

Equal tokens: a reserved token that is hardly ever drawn stands for the end on both sides, so every sample runs to the
cap at no cost to either. The reward, which both call, counts what was sampled; unequal counts raise.

The floor is the products of the decoder's and the output layer's own weights alone, on the rows that an update needs
at least: each prompt once, each sampled token once with a cache, then the loss forward and back (and the reference
forward) with each prompt once. No attention, no LoRA, no norm, no softmax, no optimizer: nothing runs as fast.

The file is not named after TRL: a script's folder comes first on Python's path, and would hide the package.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from transformers.utils import logging

from rbalign.assets import model_folder
from rbalign.config.sections import AlignConfig, GrpoConfig, Sampling
from rbalign.data.dataset import Dataset
from rbalign.lm.load import load_lm, load_tokenizer
from rbalign.lm.products import packed, product
from rbalign.lm.templates import around_user
from rbalign.rundir.journal import read_rows
from rbalign.speechlm.base import Policy
from rbalign.speechlm.policy import SpeechPolicy
from rbalign.synth.heldout import SHIPPED_FOLDER
from rbalign.train.rollout import Item
from rbalign.train.trainer import AlignTrainer
from rbalign.types import Split, View, ViewSpec

MODEL = "smollm2-135m-instruct"
SYSTEM = "Answer in one short spoken sentence."
END = "<filename>"
"""Reserved in SmolLM2's vocabulary and absent from chats: stands for the end of an answer. Drawn once in 30 million
tokens (mean probability 3.5e-8 over eight answers), so a run's 25,000 go without it 999 times in a thousand."""
SAMPLES = {"grpo": 4, "rba-group": 2}
"""For each prompt. OnlineDPOTrainer knows no other number than two."""
PASS_ROWS = 32
"""Samples in one pass of GRPOTrainer's loss. Ours takes [align]'s default, 4 prompts x 4: more passes, for less memory,
which costs us a seventh of an update (CHANGELOG.md) and TRL nothing."""


class TextPolicy(Policy):
    """Reads each instruction where another policy would hear it."""

    def __init__(self, lm, texts, end, lora):
        super().__init__(lm.model, SimpleNamespace(tokenizer=lm.tokenizer), (end,), system=SYSTEM, lora=lora)
        self.before_ids, self.after_ids = around_user(lm.tokenizer, SYSTEM)
        self.texts = texts

    @property
    def lm(self):
        return self.speech

    def audio(self, views):
        raise NotImplementedError("nothing is heard here")

    def heard(self, views):
        return [self.texts[view.example_id] for view in views]

    def prompts(self, views, beside=""):
        return self.text_prompts(self.heard(views))

    text_prompts = SpeechPolicy.text_prompts


class ByLength:
    """The reward of both sides: costs nothing, knows no ties, and counts samples and their tokens to the first end."""

    name = __name__ = "length"
    needs = frozenset()

    def __init__(self, end):
        self.end, self.drawn = end, [0, 0]

    def __call__(self, prompts, completions, completion_ids, **columns):
        lengths = [ids.index(self.end) + 1 if self.end in ids else len(ids) for ids in completion_ids]
        self.drawn = [self.drawn[0] + len(lengths), self.drawn[1] + sum(lengths)]
        return [length + sum(ids) / 1e7 for length, ids in zip(lengths, completion_ids, strict=True)]


class UpdateClock(TrainerCallback):
    """Seconds of the last update."""

    seconds = start = 0.0

    def on_step_begin(self, args, state, control, **more):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **more):
        self.seconds = time.perf_counter() - self.start


@dataclass
class Side:
    """One update at each call, in seconds; `reward` has counted what it sampled."""

    reward: ByLength
    update: object


def align_config(arm, options):
    """What both sides train by, in our words: one update that takes all prompts."""
    return AlignConfig(
        updates=1,
        examples_per_update=options.prompts,
        samples_per_view=SAMPLES[arm],
        ce_weight=0.0,
        grpo=GrpoConfig(kl=0.0),
        sampling=Sampling(temperature=1.0, top_p=1.0, max_new_tokens=options.new),
    )


def our_side(arm, config, lm, examples, end):
    """AlignTrainer with a `TextPolicy`; LoRA starts anew for each update. Also the policy, and seconds by phase."""
    policy = TextPolicy(lm, {example.id: example.instruction for example in examples}, end, config.lora)
    views = {example.id: View(example.id, 0, "train", ViewSpec("text"), 0.0) for example in examples}
    items = [Item(example, (views[example.id],), policy.completion_ids(example.answer)) for example in examples]
    reward, clock, phases = ByLength(end), UpdateClock(), {}

    def update():
        policy.restart(0)
        with tempfile.TemporaryDirectory() as folder:
            trainer = AlignTrainer(policy, arm, config, items, Path(folder), seed=0, scorer=reward)
            trainer.add_callback(clock)
            trainer.fit()
            (row,) = read_rows(Path(folder) / "metrics.jsonl")
        phases.update(row["seconds"])
        return clock.seconds

    return Side(reward, update), policy, phases


def messages(example):
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": example.instruction}]


def their_side(arm, config, examples, end, folder):
    """TRL's trainer on a copy of the weights, with a new optimizer for each update. Also the trainer."""
    from datasets import Dataset as Rows
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    model = AutoModelForCausalLM.from_pretrained(model_folder(MODEL), dtype=torch.float32)
    model.generation_config.eos_token_id = end
    tokenizer = load_tokenizer(model_folder(MODEL))
    tokenizer.eos_token = END
    new, samples, rows = config.sampling.max_new_tokens, SAMPLES[arm], len(examples) * SAMPLES[arm]
    common = {
        "output_dir": folder,
        "max_steps": 1,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "temperature": 1.0,
        **config.args,
    }
    if arm == "grpo":
        passes = -(-rows // PASS_ROWS)
        sizes = {"per_device_train_batch_size": rows // passes, "gradient_accumulation_steps": passes}
        args = GRPOConfig(**common, **sizes, num_generations=samples, max_completion_length=new, beta=config.grpo.kl)
        trainer_class = GRPOTrainer
    else:
        size = len(examples)
        args = OnlineDPOConfig(**common, per_device_train_batch_size=size, max_new_tokens=new, beta=config.beta)
        trainer_class = OnlineDPOTrainer
    reward, clock = ByLength(end), UpdateClock()
    trainer = trainer_class(
        model=model,
        reward_funcs=reward,
        args=args,
        train_dataset=Rows.from_list([{"prompt": messages(example)} for example in examples]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **config.lora),
        callbacks=[clock],
    )

    trainer.remove_callback(PrinterCallback)

    def update():
        trainer.optimizer = None
        trainer.train()
        return clock.seconds

    return Side(reward, update), trainer


def check_equal(policy, trainer, examples):
    """Raises unless both sides read the same prompt ids and train as many parameters."""
    for example in examples:
        prompts = policy.text_prompts([example.instruction])
        ours = [*prompts.shared.tolist(), *prompts.rows[0].tolist()]
        theirs = trainer.processing_class.apply_chat_template(messages(example), add_generation_prompt=True)
        if ours != theirs["input_ids"]:
            raise RuntimeError(f"prompts differ: {ours} and {theirs['input_ids']}")
    sizes = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (policy, trainer.model)]
    if sizes[0] != sizes[1]:
        raise RuntimeError(f"trainable parameters differ: {sizes}")


def floor(arm, config, weights, head, prompts):
    """The products of one update (see the top): `weights` of the decoder's linear layers, `head` of the output layer.

    With packed weights, which is the fastest way at the rows of an update.
    """
    rows, new = len(prompts.rows) * SAMPLES[arm], config.sampling.max_new_tokens
    read = len(prompts.shared) + sum(map(len, prompts.rows))
    passed = read + rows * (new - 1)
    forward, head_forward = (list(map(packed, own)) for own in (weights, head))
    backward, head_backward = ([packed(weight.t()) for weight in own] for own in (weights, head))
    plan = [(forward, read), *[(forward + head_forward, rows)] * (new - 1)]
    plan += [(forward, passed), (head_forward, rows * new), (backward, passed), (head_backward, rows * new)]
    if arm == "rba-group":
        plan += [(forward, passed), (head_forward, rows * new)]
    shapes = {(count, matrix.shape[1]) for matrices, count in plan for matrix in matrices}
    inputs = {shape: torch.randn(shape) for shape in shapes}

    def run():
        start = time.perf_counter()
        for matrices, count in plan:
            for matrix in matrices:
                product(inputs[count, matrix.shape[1]], matrix)
        return time.perf_counter() - start

    return run


def measure(arm, options):
    """One arm: a line for each round, and at the end the JSON line."""
    config = align_config(arm, options)
    lm = load_lm(model_folder(MODEL))
    head = [lm.model.get_output_embeddings().weight]
    weights = [m.weight for m in lm.model.get_decoder().modules() if isinstance(m, torch.nn.Linear)]
    end = lm.tokenizer.convert_tokens_to_ids(END)
    examples = Dataset.open(SHIPPED_FOLDER).examples(Split.TEST)[: options.prompts]
    ours, policy, phases = our_side(arm, config, lm, examples, end)
    expected = [len(examples) * SAMPLES[arm], len(examples) * SAMPLES[arm] * options.new]
    times = {"ours": [], "theirs": [], "floor": []}
    with tempfile.TemporaryDirectory() as folder:
        theirs, trainer = their_side(arm, config, examples, end, folder)
        check_equal(policy, trainer, examples)
        floor_run = floor(arm, config, weights, head, policy.text_prompts([e.instruction for e in examples]))
        for round_number in range(options.rounds + 1):
            for name, side in (("ours", ours), ("theirs", theirs)):
                side.reward.drawn = [0, 0]
                times[name].append(side.update())
                if side.reward.drawn != expected:
                    raise RuntimeError(f"{name} sampled {side.reward.drawn}, not {expected} (samples, tokens)")
            with torch.no_grad():
                times["floor"].append(floor_run())
            told = {name: round(own[-1], 2) for name, own in times.items()} | {"our phases": dict(phases)}
            print(
                f"{arm} round {round_number}: {expected[0]} samples, {expected[1]} tokens each side,", json.dumps(told)
            )
    kept = {name: own[1:] for name, own in times.items()}
    ratios = [t / o for o, t in zip(kept["ours"], kept["theirs"], strict=True)]
    class_name = type(trainer).__name__
    sizes = f"{len(examples)} prompts x {SAMPLES[arm]} samples x {options.new} tokens, {options.threads} threads"
    return {
        "name": f"update of {arm} beside {class_name} (TRL {version('trl')}), {sizes}",
        "unit": "s",
        **{name: round(statistics.median(own), 2) for name, own in kept.items()},
        "ratio": round(statistics.median(ratios), 2),
        "spread": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--arms", nargs="+", choices=list(SAMPLES), default=list(SAMPLES))
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if find_spec("trl") is None:
        sys.exit('TRL is not installed: pip install -e ".[benchmark]"')
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # names that TRL 1.16 still uses
    rows = [measure(arm, options) for arm in options.arms]
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
