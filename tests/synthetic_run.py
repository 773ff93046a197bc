"""A finished run folder made of known effects, without a model: for tests of the report and of comparisons."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import soundfile

from rbalign.config.load import dump_recipe
from rbalign.config.recipe import Recipe
from rbalign.config.sections import AlignConfig
from rbalign.data.dataset import DatasetWriter
from rbalign.eval.metrics import optimised_by
from rbalign.eval.results import Evidence, Subject, build
from rbalign.types import Example, View, ViewSpec

VOICES = ("af_sarah", "am_michael", "bf_isabella", "bm_lewis")
EVIL = "</script><script>window.owned=1</script><img src=x onerror=window.owned=1>"
QUALITY = {"base": 0.30, "sft-s0": 0.34, "kd-s0": 0.35, "rba-single-s0": 0.36, "rba-group-s0": 0.38}
QUALITY |= {"text": 0.45, "cascade": 0.43, "self-cascade": 0.41}
WORDS = [
    "the",
    "weather",
    "is",
    "fine",
    "today",
    "and",
    "many",
    "people",
    "like",
    "to",
    "walk",
    "in",
    "the",
    "park",
    "near",
    "the",
    "old",
    "river",
]


def clip(seed: int) -> bytes:
    """Half a second of a tone, FLAC."""
    out = io.BytesIO()
    tone = 0.2 * np.sin(2 * np.pi * (220 + 20 * seed) * np.arange(8000) / 16000)
    soundfile.write(out, tone.astype(np.float32), 16000, format="FLAC")
    return out.getvalue()


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answer_row(example: str, view: int, sample: int, text: str, prompt: str, heard: str | None) -> dict:
    return {
        "id": f"{example}/{view}/{sample}",
        "example": example,
        "view": view,
        "sample": sample,
        "voice": VOICES[view],
        "prompt": prompt,
        "heard": heard,
        "answer": text,
        "stop": "end",
        "ids": [1, 2, 3],
        "logprob": -3.0,
        "values": {},
        "error": None,
        "settings": {},
        "seconds": 0.1,
    }


def make_run(folder: Path, instructions: int = 40, seed: int = 0) -> Path:
    """runs/NAME with a dataset, eval journals, training logs and results.json."""
    generator = np.random.default_rng(seed)
    examples = [
        Example(
            f"e{i:03d}",
            "test",
            EVIL if i == 0 else f"Tell me something about {WORDS[i % len(WORDS)]} number {i}.",
            "tell me something",
            answer=" ".join(generator.choice(WORDS, 12)),
            reference=EVIL if i == 1 else " ".join(generator.choice(WORDS, 12)),
        )
        for i in range(instructions)
    ]
    views = [View(example.id, v, "test", ViewSpec(VOICES[v]), 0.5, clip(v)) for example in examples for v in range(4)]
    writer = DatasetWriter(folder / "data", {"teacher": "made-up", "recipe": "0"})
    writer.add_examples(examples)
    writer.commit_views("test", 0, views)
    writer.finish()
    scores, answers = {}, {}
    item = generator.normal(0, 0.08, instructions)
    for arm, mean in QUALITY.items():
        name, _, number = arm.rpartition("-s")
        name, key = (name, int(number)) if number.isdigit() else (arm, None)
        drawn, marks = [], []
        for i, example in enumerate(examples):
            for view in range(4):
                for sample in range(2 if view == 0 else 1):
                    # Answers keep to their instruction: else they would be as far apart as those to another one.
                    words = [*generator.choice(WORDS, 7), *[WORDS[i % len(WORDS)]] * 3]
                    text = EVIL if (i, arm) == (2, "base") else " ".join(words)
                    drawn.append(answer_row(example.id, view, sample, text, "<clip>", "tell me some thing"))
                    marks.append(
                        {
                            **{k: drawn[-1][k] for k in ("id", "example", "view", "sample", "voice")},
                            "scores": {
                                "chrf": float(mean + item[i] - 0.02 * view + generator.normal(0, 0.05)),
                                "similarity": float(mean + 0.2 + generator.normal(0, 0.05)),
                                "teacher-likelihood": float(-1.2 + mean + generator.normal(0, 0.1)),
                                "tokens": 20.0,
                                "failed": 0.0,
                            },
                            "wer": [1, 3],
                        }
                    )
        write_jsonl(folder / "eval" / arm / "open.jsonl", drawn)
        write_jsonl(folder / "eval" / arm / "open.scores.jsonl", marks)
        scores[name, key, "open"], answers[name, key, "open"] = marks, drawn
        if key is not None:
            rows = [{"update": u, "loss": 1 / u, "gradient_norm": 1.0 + 0.1 * u} for u in range(1, 21)]
            write_jsonl(folder / "arms" / arm / "metrics.jsonl", rows)
            wrong = [answer_row(e.id, 0, 0, "wrong", "<other>", None) for e in examples]
            write_jsonl(folder / "eval" / arm / "open-wrong-audio.jsonl", wrong)
    subjects = [
        Subject("base"),
        *(Subject(n, (0,), optimised_by(AlignConfig().mixture(n))) for n in ("sft", "kd", "rba-single", "rba-group")),
        *(Subject(n) for n in ("text", "cascade", "self-cascade")),
    ]

    def embed(texts):
        vectors = np.array([[text.count(word) for word in sorted(set(WORDS))] for text in texts], dtype=float)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    ids = [example.id for example in examples]
    evidence = Evidence(subjects, {"open": ids}, scores, answers, {"words": embed}, {"open": "made up"})
    results = build(evidence, resamples=1000, seed=0)
    (folder / "results.json").write_text(json.dumps(results))
    recipe = Recipe.model_validate({"name": folder.name, "description": f"made up {EVIL}", "align": {}, "report": {}})
    (folder / "recipe.toml").write_text(dump_recipe(recipe))
    (folder / "environment.json").write_text(json.dumps([{"python": "3.11"}]))
    return folder
