"""Two processes equal one: same samples, same loss, same weights (gloo on the CPU, really started by torchrun)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from test_align_stage import write_data

from rbalign.cli.main import run_command
from rbalign.rundir.journal import read_rows

SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from aligning import LORA, tiny_items, tiny_policy
from rbalign.config.sections import AlignConfig, Sampling
from rbalign.train.trainer import AlignTrainer

class ByLength:
    name, needs = "length", frozenset()
    def __call__(self, prompts, completions, completion_ids, **columns):
        return [float(len(ids) + sum(ids) / 1e6) for ids in completion_ids]

folder, ranks = Path(sys.argv[1]), int(sys.argv[2])
for arm in ("kd", "rba-single", "rba-group", "everything"):
    policy = tiny_policy()
    config = AlignConfig(
        updates=2, examples_per_update=4, micro_batch=3, lora=LORA, sampling=Sampling(max_new_tokens=5),
        args={"learning_rate": 0.3, "optim": "sgd", "use_cpu": True},
        mixtures={"everything": {"single": 1.0, "group": 0.5, "grpo": 0.3, "opd": 0.4, "kd": 0.2, "ce": 0.1}},
    )
    scorer = ByLength() if arm in ("rba-group", "everything") else None
    made = AlignTrainer(policy, arm, config, tiny_items(policy), folder / arm, seed=1, scorer=scorer)
    assert made.args.world_size == ranks, made.args.world_size
    made.fit()
    if made.is_world_process_zero():
        numbers = {name: value.detach().flatten().tolist() for name, value in policy.trainable().items()}
        (folder / arm / "weights.json").write_text(json.dumps(numbers))
"""


VERB = """
import sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from aligning import tiny_policy
from rbalign.cli import main
from rbalign.stages import policy
policy.open_policy = lambda recipe, run, share=False, **options: tiny_policy(**options)
sys.exit(main.run_command([sys.argv[3], str(Path(sys.argv[1]) / "recipe.toml"), "--runs", sys.argv[1]]))
"""
RECIPE = """
name = "tiny"
[align]
connector = "connect"
arms = ["kd", "rba-single", "sft-matched", "sft"]
workers = 1
updates = 2
examples_per_update = 2
save_every = 1
select_by = "validation"
sampling = { max_new_tokens = 30 }
lora = { r = 4, lora_alpha = 8 }
args = { learning_rate = 0.3, optim = "sgd", use_cpu = true }
"""


def launch(folder: Path, ranks: int, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    path = folder / "script.py"
    path.write_text(script)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [*(launcher if ranks > 1 else [sys.executable]), str(path), str(folder), str(ranks), *words]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )


def run(folder: Path, ranks: int) -> None:
    done = launch(folder, ranks, SCRIPT)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.timeout(900)
def test_two_ranks_equal_one(tmp_path):
    for ranks in (1, 2):
        run(tmp_path / str(ranks), ranks)
    for arm in ("kd", "rba-single", "rba-group", "everything"):
        one, two = (tmp_path / str(ranks) / arm for ranks in (1, 2))
        rows = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (one, two)]
        assert [row["update"] for row in rows[1]] == [1, 2]
        for a, b in zip(*rows, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)
            assert a["weights"] == pytest.approx(b["weights"])
            for name in set(a) & {name for name in a if name.startswith("gradient_norm_")}:
                assert a[name] == pytest.approx(b[name], rel=1e-3)
        samples = [{row["id"]: row["ids"] for row in read_rows(f / "samples.jsonl")} for f in (one, two)]
        assert len(samples[0]) == (0 if arm == "kd" else 16)
        assert samples[0] == samples[1]
        weights = [json.loads((f / "weights.json").read_text()) for f in (one, two)]
        for name, values in weights[0].items():
            assert values == pytest.approx(weights[1][name], abs=1e-5)


@pytest.mark.timeout(900)
def test_the_verb_align_under_a_launcher_makes_the_run_that_one_process_makes(tmp_path):
    arms = ("kd-s0", "rba-single-s0", "sft-s0", "sft-matched-s0")
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        (folder / "recipe.toml").write_text(RECIPE)
        write_data(folder / "tiny/data")
        done = launch(folder, ranks, VERB, "align")
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("align: done") == 1
        assert done.stderr.count("2/2 updates in") == 3  # those of the matched arm are more
        again = launch(folder, ranks, VERB, "align")
        assert "align: finished before, skipped" in again.stdout
    statuses = [json.loads((tmp_path / f"{ranks}/tiny/status.json").read_text()) for ranks in (1, 2)]
    assert {name: entry["state"] for name, entry in statuses[1]["stages"].items()} == dict.fromkeys(
        ["align", *(f"align/{arm}" for arm in arms)], "done"
    )
    keys = [{name: entry["key"] for name, entry in status["stages"].items()} for status in statuses]
    assert keys[0] == keys[1]
    for arm in arms:
        one, two = (
            load_file(tmp_path / f"{ranks}/tiny/arms/{arm}/final/adapter_model.safetensors") for ranks in (1, 2)
        )
        for name, value in one.items():
            assert value.flatten().tolist() == pytest.approx(two[name].flatten().tolist(), abs=1e-5)


def test_only_align_is_launched_in_several_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    assert run_command(["run", str(tmp_path / "recipe.toml"), "--runs", str(tmp_path)]) == 2
    assert "2 processes were launched for `rba run`" in capsys.readouterr().err


def test_launcher_files_are_accelerates():
    for path in sorted((Path(__file__).parent.parent / "launchers").glob("*.yaml")):
        config = load_config_from_file(str(path))
        assert config.num_processes > 1, path
        text = path.read_text()
        assert ("Not run here" in text) == (config.distributed_type != "MULTI_CPU")
