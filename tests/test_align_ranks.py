"""Two processes equal one: same samples, same loss, same weights (gloo on the CPU, really started by torchrun)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def run(folder: Path, ranks: int) -> None:
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [*(launcher if ranks > 1 else [sys.executable]), str(script), str(folder), str(ranks)]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
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
