"""Paired comparison of arms and runs on made-up runs with known effects."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from synthetic_run import make_run

from rbalign.cli.main import run_command
from rbalign.errors import UsageError
from rbalign.eval.paired import arms_of
from rbalign.eval.score import load_rows
from rbalign.stages.compare import compare


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "one")
    status = {"forked_from": None, "stages": {"synth": {"outputs": {"dataset": "d"}}}}
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def row(found, metric, arm=None):
    return next(r for r in found.paired if r["metric"] == metric and arm in (None, r["arm"]))


def test_two_arms_of_one_run(run):
    found = compare(f"{run}:base", f"{run}:rba-group")
    chrf = row(found, "chrf")
    assert chrf["arm"] == "rba-group - base"
    assert chrf["difference"] == pytest.approx(0.08, abs=0.015)
    assert chrf["ci_low"] > 0
    assert chrf["wins"] + chrf["losses"] + chrf["ties"] == chrf["n"] == 40
    assert chrf["wins"] > 35
    assert found.pairs == []
    turned = row(compare(f"{run}:rba-group", f"{run}:base"), "chrf")
    assert turned["difference"] == pytest.approx(-chrf["difference"])
    assert (turned["wins"], turned["losses"]) == (chrf["losses"], chrf["wins"])


def test_samples_that_flipped_between_two_arms_come_greatest_first(run, capsys):
    found = compare(f"{run}:base", f"{run}:rba-group").flips
    changes = [abs(flip.after - flip.before) for flip in found]
    assert changes == sorted(changes, reverse=True)
    assert min(changes) > 0
    first = found[0]
    task, metric = first.metric.split()
    for place, (arm, value) in enumerate((("base", first.before), ("rba-group-s0", first.after))):
        folder = run / "eval" / arm
        scores, answers = (
            {row["id"]: row for row in load_rows([folder / f"{task}{end}"])} for end in (".scores.jsonl", ".jsonl")
        )
        assert value == scores[first.id]["scores"][metric]
        assert first.responses[place] == answers[first.id]["answer"]
    assert compare(run, run).flips == []
    assert run_command(["compare", f"{run}:base", f"{run}:rba-group"]) == 0
    out = capsys.readouterr().out
    assert f"samples that flipped: 10 of {len(found)}" in out
    assert "effect" in out


def test_two_runs_pair_the_arms_they_share(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "two")
    path = other / "eval" / "sft-s0" / "open.scores.jsonl"
    changed = [{**r, "scores": {**r["scores"], "chrf": r["scores"]["chrf"] + 0.1}} for r in load_rows([path])]
    path.write_text("".join(json.dumps(r) + "\n" for r in changed))
    shutil.rmtree(other / "eval" / "kd-s0")
    found = compare(run, other)
    assert {r["arm"] for r in found.paired} == set(arms_of(run)) - {"kd"}
    assert row(found, "chrf", "sft")["difference"] == pytest.approx(0.1)
    assert row(found, "chrf", "sft")["losses"] == 0
    assert row(found, "chrf", "base")["difference"] == 0
    assert row(found, "chrf", "base")["ties"] == 40


def test_unknown_arm_is_named(run):
    with pytest.raises(UsageError, match="did you mean 'rba-group'"):
        compare(f"{run}:base", f"{run}:rba-grup")


def test_comparing_imports_no_torch(run):
    code = f"import sys; from rbalign.stages.compare import compare; compare({str(run)!r}, {str(run)!r})"
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], check=True)
