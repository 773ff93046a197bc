"""What each scorer, alone or with a guard, makes of degenerate answers to 100 real requests; one JSON line for each.

python benchmarks/red_team.py [--out results/benchmarks/red_team.json] [similarity] [similarity=1,novelty=0.75]
python benchmarks/red_team.py judge --judge JUDGE.toml
python benchmarks/red_team.py reward-model --reward-model FOLDER

The requests, the teacher's answers and the honest samples are in red_team_cases.jsonl (dev/red_team_cases.py).
"""

import argparse
import json
from functools import cache
from pathlib import Path

import torch

from rbalign import assets, scorers
from rbalign.config.load import load_judge
from rbalign.eval.judges import LlmJudge
from rbalign.remote.client import Client
from rbalign.rundir.files import atomic_write
from rbalign.scorers.red_team import ATTACKS, SAFE, Case, survival
from rbalign.scorers.registry import SCORERS, guarded

CASES = Path(__file__).with_name("red_team_cases.jsonl")
RANKED = ("similarity", "chrf", "bleu", "teacher-likelihood", "length", "repetition", "novelty", "language")
"""Scorers of open answers; qa and constraints want columns that these requests do not have, consistency and
hidden-similarity a policy that hears."""
MIXED = ("similarity=1,novelty=0.75", "similarity=1,novelty=0.75,repetition=0.5")
"""What recipe laptop and the default take."""


def load_cases():
    rows = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    return [Case(row["prompt"], row["answer"], row["reference"], tuple(row["honest"])) for row in rows]


@cache
def teacher():
    from rbalign.lm.load import load_lm
    from rbalign.teacher.local import LocalTeacher

    return LocalTeacher(load_lm(assets.folder("smollm2-135m-instruct")))


def columns_of(scorer):
    """The columns that a scorer asks for."""

    def columns(cases, texts):
        found = {"answer": [case.answer for case in cases], "reference": [case.reference for case in cases]}
        if "teacher_logprobs" in scorer.needs:
            means = teacher().loglikelihood([case.prompt for case in cases], texts)
            found["teacher_logprobs"] = [[] if mean is None else [mean] for mean in means]
        return found

    return columns


def with_guard(name):
    """A scorer with its guard at its least weight, as it is named here."""
    return ",".join(f"{part}={weight:g}" for part, weight in guarded({name: 1.0}).items())


def build(name, options):
    """The scorer or sum, with the models that the options name."""
    given = parsed(name)
    resources = {"reward-model": {"folder": options.reward_model}} if options.reward_model else {}
    if options.judge:
        config = load_judge(options.judge)
        resources["judge"] = {"judge": LlmJudge(config, Client(config, assets.home()))}
    return scorers.build(given, **resources.get(given, {}) if isinstance(given, str) else resources)


def parsed(name):
    """A scorer's name, or a weighted sum written as a=1,b=0.5."""
    if "=" not in name:
        return name
    return {part: float(weight) for part, _, weight in (piece.partition("=") for piece in name.split(","))}


def main():
    parser = argparse.ArgumentParser()
    every = [*RANKED, *(with_guard(name) for name in RANKED if SCORERS[name].guard), *MIXED]
    parser.add_argument("scorers", nargs="*", default=every)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--reward-model", type=Path)
    options = parser.parse_args()
    cases, rows = load_cases(), []
    with torch.no_grad():
        for name in options.scorers:
            scorer = build(name, options)
            shares = survival(scorer, cases, columns_of(scorer))
            row = {"scorer": name, **{attack: round(shares[attack], 3) for attack in ATTACKS}}
            row["safe"] = all(share >= SAFE for share in shares.values())
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.out:
        atomic_write(options.out, json.dumps({"cases": len(cases), "safe": SAFE, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
