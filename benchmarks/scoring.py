"""Seconds to score and compare ten thousand stored answers with 10,000 bootstrap resamples, one process.

    python benchmarks/scoring.py [--samples 10000] [--task answers preference translation]

Answers are made up from a vocabulary of common words, 5 to 40 words each; judges are offline. Two files are scored,
each written as JSON and Markdown, read back and compared, as `rba score --task` and `rba compare` do. Aim: 20 s.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from rbalign.stages.compare import compare_files
from rbalign.stages.tasks import RESAMPLES, read, score

WORDS = """
the of and to in is it you that he was for on are with as his they at be this from have or by one had not but what all
were when we there can an your which their said if do will each about how up out them then she many some so seven Paris
London river mountain nineteen hundred music doctor winter yellow carbon engine theory planet
""".split()  # noqa: SIM905


def text(draw, least=5, most=40):
    return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def files(folder, kind, samples):
    """Data of a task and two files of predictions."""
    draw = random.Random(0)
    rows = {
        "answers": lambda: {"answers": [text(draw, 1, 2)], "question": text(draw)},
        "preference": lambda: {"instruction": text(draw), "input": "", "output": text(draw)},
        "translation": lambda: {"sentence": text(draw), "translation": text(draw)},
    }[kind]
    write(
        folder / "data" / ("en_de/test.jsonl" if kind == "translation" else "q.jsonl"), [rows() for _ in range(samples)]
    )
    made = []
    for name in ("a", "b"):
        said = [{"id": str(place), "response": text(draw)} for place in range(samples)]
        made.append(write(folder / f"{name}.jsonl", said))
    return made


def timed(kind, samples):
    task = {"answers": "web-questions-twinkstart", "preference": "spoken-alpaca", "translation": "covost2:en_de"}[kind]
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        a, b = files(folder, kind, samples)
        opponent = write(folder / "opponent.jsonl", [{"id": str(i), "response": "No idea."} for i in range(samples)])
        more = {"against": opponent, "judge": "chrf"} if kind == "preference" else {}
        start = time.perf_counter()
        scored = []
        for file in (a, b):
            asked = read(task, str(folder / "data"), file, **more)
            score(asked)
            scored.append(asked.out)
        between = time.perf_counter()
        compare_files(*scored)
        end = time.perf_counter()
    return between - start, end - between


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--task", nargs="+", default=["answers", "preference", "translation"])
    options = parser.parse_args()
    for kind in options.task:
        scoring, comparing = timed(kind, options.samples)
        print(
            json.dumps(
                {
                    "name": f"score and compare two files, {kind}, {options.samples} samples, {RESAMPLES} resamples",
                    "unit": "s",
                    "ours": round(scoring + comparing, 2),
                    "aim": 20,
                    "scoring": round(scoring, 2),
                    "comparing": round(comparing, 2),
                }
            )
        )


if __name__ == "__main__":
    main()
