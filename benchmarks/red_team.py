"""What each scorer, alone or guarded, makes of degenerate answers to 100 real requests; one JSON line for each.

python benchmarks/red_team.py [--out results/benchmarks/red_team.json] [similarity] [similarity=1,novelty=0.75]
python benchmarks/red_team.py judge --judge JUDGE.toml
python benchmarks/red_team.py reward-model --reward-model FOLDER

The requests, the teacher's answers and the honest samples are in red_team_cases.jsonl (dev/red_team_cases.py).
"""

import argparse
import json
from collections import Counter
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
LABELS = {"qa": "aliases", "qa-ultraeval": "aliases", "qa-vocalbench": "aliases", "constraints": "constraints"}
"""Scorers of right and wrong -> the label that their requests have. All others are asked of open requests."""
FORMS = ("length", "repetition", "novelty", "language", "relevance", "polarity", "consistency")
RANKED = ("similarity", "chrf", "bleu", "teacher-likelihood", *LABELS, *FORMS)
"""Every scorer but hidden-similarity, which wants a policy that hears, and those that ask a model of yours."""
MIXED = ("similarity=1,novelty=0.75", "similarity=1,novelty=0.75,repetition=0.5")
"""What recipe laptop took when results/ was made, and the default."""


def load_cases(label=None):
    """The requests with that label, or the open ones."""
    rows = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    labels = {*LABELS.values()}
    return [
        Case(
            row["prompt"],
            row["answer"],
            row["reference"],
            tuple(row["honest"]),
            {name: row.get(name) for name in labels},
        )
        for row in rows
        if labels & row.keys() == ({label} if label else set())
    ]


def cases_of(name):
    """The requests of which a scorer, or the first part of a sum, is asked."""
    return load_cases(LABELS.get(name.partition("=")[0]))


class Collapsed:
    """Consistency as a policy gets it that answers so on every view; the honest answers to a request are its views."""

    def __init__(self, scorer):
        self.scorer, self.needs = scorer, scorer.needs

    def __call__(self, prompts, completions, completion_ids, **columns):
        seen = Counter(prompts)
        times = 1 if max(seen.values()) > 1 else 2
        count = times * len(prompts)
        return self.scorer(
            [*prompts] * times,
            [*completions] * times,
            [[]] * count,
            **{name: values * times for name, values in columns.items()}
            | {"group": [*prompts] * times, "view": [*range(count)]},
        )[: len(prompts)]


@cache
def teacher():
    from rbalign.lm.load import load_lm
    from rbalign.teacher.local import LocalTeacher

    return LocalTeacher(load_lm(assets.folder("smollm2-135m-instruct")))


@cache
def likelihoods(prompts, texts):
    """By far the slowest column; a scorer alone and with its guard want the same."""
    return teacher().loglikelihood(prompts, texts)


def columns_of(scorer):
    """The columns that a scorer asks for."""

    def columns(cases, texts):
        found = {"answer": [case.answer for case in cases], "reference": [case.reference for case in cases]}
        found |= {name: [case.labels[name] for case in cases] for name in set(LABELS.values())}
        if "teacher_logprobs" in scorer.needs:
            means = likelihoods(tuple(case.prompt for case in cases), tuple(texts))
            found["teacher_logprobs"] = [[] if mean is None else [mean] for mean in means]
        return found

    return columns


def with_guard(name, whole):
    """A scorer with its guard, or with all that mends it, at the least weights, as it is named here."""
    return ",".join(f"{part}={weight:g}" for part, weight in guarded({name: 1.0}, whole).items())


def every():
    """What the committed table holds: each scorer alone, with its guard, with all that mends it; what recipes take."""
    readers = [name for name in RANKED if SCORERS[name].guard]
    return [
        *dict.fromkeys([*RANKED, *(with_guard(name, whole) for name in readers for whole in (False, True)), *MIXED])
    ]


def build(name, options):
    """The scorer or sum, with the models that the options name."""
    given = parsed(name)
    resources = {"reward-model": {"folder": options.reward_model}} if options.reward_model else {}
    if options.judge:
        config = load_judge(options.judge)
        resources["judge"] = {"judge": LlmJudge(config, Client(config, assets.home()))}
    made = scorers.build(given, **resources.get(given, {}) if isinstance(given, str) else resources)
    return Collapsed(made) if name == "consistency" else made


def parsed(name):
    """A scorer's name, or a weighted sum written as a=1,b=0.5."""
    if "=" not in name:
        return name
    return {part: float(weight) for part, _, weight in (piece.partition("=") for piece in name.split(","))}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("scorers", nargs="*", default=every())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--judge", type=Path)
    parser.add_argument("--reward-model", type=Path)
    options = parser.parse_args()
    rows = []
    with torch.no_grad():
        for name in options.scorers:
            scorer = build(name, options)
            cases = cases_of(name)
            shares = survival(scorer, cases, columns_of(scorer))
            row = {"scorer": name, "cases": len(cases), **{attack: round(shares[attack], 3) for attack in ATTACKS}}
            row["safe"] = all(share >= SAFE for share in shares.values())
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.out:
        atomic_write(options.out, json.dumps({"safe": SAFE, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
