"""Writes trl_dpo.json: pair losses of TRL's DPOTrainer on a two-layer text model. Run once, by hand, where TRL is:

    pip install --no-deps --target TRL_FOLDER trl==1.16.0
    PYTHONPATH=TRL_FOLDER python tests/goldens/make_trl_dpo.py

DPO's loss is inline in the trainer, so the real trainer runs; the log-probs that it saw are recomputed beside it.
"""

import json
import tempfile
from copy import deepcopy
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

LENGTHS = ((5, 3), (2, 7), (4, 4))
PROMPT = 4


def model(seed, flat=1.0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=37, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    made = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        made.lm_head.weight.mul_(30 * flat)  # initial logits are flat; spread them so that ratios are not zero
    return made


def batch():
    torch.manual_seed(7)
    width = PROMPT + max(max(pair) for pair in LENGTHS)
    ids = torch.zeros(2 * len(LENGTHS), width, dtype=torch.long)
    attention, completion = torch.zeros_like(ids), torch.zeros_like(ids)
    for side in (0, 1):
        for row, pair in enumerate(LENGTHS):
            end, place = PROMPT + pair[side], side * len(LENGTHS) + row
            ids[place, :end] = torch.randint(2, 37, (end,))
            attention[place, :end] = 1
            completion[place, PROMPT:end] = 1
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}


def taken(policy, inputs):
    with torch.no_grad():
        logits = policy(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    logprobs = logits[:, :-1].log_softmax(-1).gather(2, inputs["input_ids"][:, 1:, None])[..., 0]
    return (logprobs * inputs["completion_mask"][:, 1:])[:, PROMPT - 1 :].tolist()


def main():
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(37)}, "w2")),
        pad_token="w0", eos_token="w1",
    )  # fmt: skip
    policy, reference, inputs = model(1), model(2), batch()
    golden = {"trl": "1.16.0", "beta": 0.1, "lengths": LENGTHS}
    golden |= {"policy": taken(policy, inputs), "reference": taken(reference, inputs)}
    rows = Dataset.from_list([{"prompt": "w3", "chosen": " w4", "rejected": " w5"}] * 4)
    for name in ("sigmoid", "sigmoid_norm"):
        with tempfile.TemporaryDirectory() as folder:
            args = DPOConfig(
                output_dir=folder, beta=0.1, loss_type=name, report_to=[], use_cpu=True, bf16=False,
                gradient_checkpointing=False,
            )  # fmt: skip
            trainer = DPOTrainer(
                deepcopy(policy), deepcopy(reference), args, train_dataset=rows, processing_class=words
            )
            golden[name] = float(trainer._compute_loss(trainer.model.eval(), inputs, False))
            golden["margins"] = trainer._metrics["eval"]["rewards/margins"][0]
    Path(__file__).with_name("trl_dpo.json").write_text(json.dumps(golden, indent=1) + "\n")


main()
