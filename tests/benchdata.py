"""Tiny local copies of benchmark data, and files of predictions, for the tests of tasks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rbalign.cli.main import run_command


def rba(*words):
    """The command line in this process: its exit code."""
    return run_command([str(word) for word in words])


CLOSED = [
    ("change_case:english_capital", {}, "HELLO THERE", "Hello there"),
    ("startend:quotation", {}, '"yes"', "yes"),
    ("detectable_format:json_format", {}, '{"a": 1}', "a: 1"),
    ("startend:end_checker", {"end_phrase": "Any more?"}, "Yes. Any more?", "Any more? No."),
]
CREATIVE = [
    ("keywords:existence", {"keywords": ["sea"]}, "The sea.", "The lake."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one two"),
]


class FirstLetter:
    """An embedder with an axis for each letter or digit that a text begins with."""

    def embed(self, texts):
        return np.eye(128, dtype=np.float32)[[ord(text[0].lower()) for text in texts]]


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def predictions(path, responses):
    """`responses`: id -> text or None."""
    return write_lines(Path(path), [{"id": name, "response": text} for name, text in responses.items()])


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def ifeval_row(constraint=None, arguments=None, metric="accuracy"):
    row = {"audio_filepath": "x.wav", "textual_audio": "hi (Gender: Male)", "instruction": "Do it.", "dataset": "MMAU"}
    row |= {"metric": metric, "label": "A"}
    return row if constraint is None else row | {"instruction_id_list": [constraint], "kwargs": [arguments]}


def write_ifeval(folder, reasoning=2):
    """Four closed items, two creative ones, some of reasoning."""
    for name, rows in (("closed_ended_questions", CLOSED), ("creative_writing", CREATIVE)):
        write_lines(folder / "eval_data" / f"{name}.jsonl", [ifeval_row(one, given) for one, given, _, _ in rows])
    write_lines(folder / "eval_data" / "chain-of-thought.jsonl", [ifeval_row(metric="cot")] * reasoning)
    return folder


def ifeval_answers(kept=True, reasoning=2):
    """Answers that keep every constraint, or break each one; "because" is what the tests' judge takes for reasoning."""
    found = {}
    for part, rows in (("closed", CLOSED), ("creative", CREATIVE)):
        found |= {f"{part}/{place}": row[2 if kept else 3] for place, row in enumerate(rows)}
    return found | {f"reasoning/{place}": "Because of this." if kept else "B." for place in range(reasoning)}


def write_alpaca(folder, n=4):
    rows = [{"instruction": f"Say {i}", "input": "", "output": f"The number is {i}."} for i in range(n)]
    write_lines(folder / "alpaca.jsonl", rows)
    return folder


def write_questions(folder, answers):
    parquet(
        folder / "data" / "test-00000-of-00001.parquet",
        question=[f"Question {i}?" for i in range(len(answers))],
        answers=answers,
        audio=[b"not read"] * len(answers),
    )
    return folder
