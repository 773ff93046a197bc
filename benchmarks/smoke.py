"""The arms of a run on every smoke task, with the written request as reference.

python benchmarks/smoke.py [runs/laptop] [--arms sft,rba-single] [--references text,cascade] [--limit N]

`rba eval --model` of the run's start, then of each arm with those before it as baselines: every figure, and the
differences between arms by instruction. Answers are greedy. Holm's adjustment is over the headlines of all pairs of
arms. It goes on where it was stopped: what is answered stays. One JSON line.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rbalign.eval.stats import holm

BASE = "base"
JUDGE = "wordllama"
"""An embedder that is nobody's reward: whose answer is nearer to the reference."""


def evaluated(options, arm, before):
    """evaluation.json of an arm, with models by the names of arms."""
    words = ["--tasks", "smoke", "--max-new-tokens", options.max_new_tokens, "--batch-size", options.batch_size]
    words += ["--limit", options.limit] if options.limit else []
    words += ["--baselines", ",".join(str(options.output / name) for name in before)] if before else []
    words += ["--references", options.references] if arm == BASE else []
    words += ["--judge", JUDGE, "--output", options.output / arm]
    command = [sys.executable, "-m", "rbalign", "eval", "--model", f"{options.run}:{arm}", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((options.output / arm / "evaluation.json").read_text(encoding="utf-8"))


def by_arms(found):
    """Figures, and differences between arms, of every arm's evaluation.json; models by the names of arms."""
    arms = {one["model"]["name"]: arm for arm, one in found.items()}
    figures = [
        {**figure, "model": arms.get(figure["model"], figure["model"])}
        for one in found.values()
        for figure in one["figures"]
    ]
    differences = [
        {**row, "a": arms[row["a"]], "b": arms[row["b"]]}
        for one in found.values()
        for row in one["comparisons"]
        if row["b"] in arms
    ]
    return figures, differences


def main():
    """Evaluate, compare; one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/laptop"))
    parser.add_argument("--arms", default="sft,rba-single")
    parser.add_argument("--references", default="text,cascade")
    parser.add_argument("--output", type=Path, help="default: RUN/smoke")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    options.output = options.output or options.run / "smoke"
    arms = [BASE, *options.arms.split(",")]
    if not options.run.is_dir():
        sys.exit(f"there is no run at {options.run}: make it by `rba run laptop`, or name another one")
    found = {arm: evaluated(options, arm, arms[:place]) for place, arm in enumerate(arms)}
    figures, differences = by_arms(found)
    tested = [row for row in differences if row["headline"]]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = round(adjusted, 4)
    result = {
        "name": f"smoke tasks, {', '.join(arms)} of {options.run.name}",
        "limit": options.limit,
        "max_new_tokens": options.max_new_tokens,
        "judge": JUDGE,
        "models": [*options.references.split(","), *arms],
        "figures": figures,
        "differences": tested,
    }
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
