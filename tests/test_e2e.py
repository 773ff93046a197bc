"""Whole recipes on the real models, as a user starts them; `make e2e` runs them, the gate runs `rba run smoke`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from rbalign.data.dataset import Dataset


def rba(*arguments: str) -> str:
    """Output of a command that must succeed."""
    command = [str(Path(sys.executable).with_name("rba")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_connector_is_trained_and_used_by_alignment_and_evaluation(tmp_path: Path) -> None:
    """Sentences written, spoken and heard; then a model that has met three batches answers, badly."""
    small = ["--synth.train", "24", "--synth.vocabulary", "8", "--synth.validation", "4", "--synth.test", "2"]
    runs = ["--runs", str(tmp_path)]
    rba("run", "connect", *small, "--connect.args.max_steps", "3", "--connect.args.eval_steps", "3", *runs)
    connector = tmp_path / "connect" / "connect" / "connector"
    counts = json.loads((connector / "counts.json").read_text())
    assert counts["updates"] == 3
    assert counts["practice_sentences"] == 8
    assert 0 < counts["eval_wer"] <= 1.5
    assert len(Dataset.open(tmp_path / "connect" / "data").examples("train")) == 32

    recipe = tmp_path / "gap.toml"
    packaged = resources.files("rbalign.recipes").joinpath("gap.toml").read_text()
    recipe.write_text(f'{packaged}\n[align]\nconnector = "{connector}"\narms = ["sft"]\nupdates = 0\n')
    rba("run", str(recipe), "--synth.test", "2", "--eval.qa", "2", "--eval.bootstrap", "20", *runs)
    results = json.loads((tmp_path / "gap" / "results.json").read_text())
    arms = {row["arm"] for row in results["rows"]}
    assert {"base", "text", "cascade", "self-cascade"} <= arms
