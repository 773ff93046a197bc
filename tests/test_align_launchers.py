"""FSDP2 and DeepSpeed as the committed launcher files start them, on two CPU processes: what one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from aligning import tiny_items
from safetensors.torch import load_file
from test_align_trainer import config

from rbalign.rundir.journal import read_rows

LAUNCHERS = Path(__file__).parent.parent / "launchers"
# accelerate starts both on accelerators alone: here it takes the CPU for one.
SCRIPT = """
import os, sys
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
if "LOCAL_RANK" in os.environ:
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *args: ("gloo", DistributedType.MULTI_GPU)
torch.set_num_threads(1)
from pathlib import Path
from aligning import tiny_policy
from test_align_launchers import some_items, settings
from test_align_trainer import ByLength
from rbalign.train.trainer import AlignTrainer

folder, last = Path(sys.argv[1]), int(sys.argv[2])
for arm in sys.argv[3:]:
    policy = tiny_policy()
    policy.gradient_checkpointing = arm == "sft"
    left = iter([True] * last)
    scorer = ByLength() if arm == "everything" else None
    made = AlignTrainer(
        policy, arm, settings(arm), some_items(policy), folder / arm, seed=1, scorer=scorer,
        validation=some_items(policy)[:3], advance=lambda: next(left),
    )
    assert made.args.world_size == int(os.environ.get("WORLD_SIZE", 1))
    try:
        made.fit()
    except StopIteration:
        sys.exit(0)
    if made.is_world_process_zero():
        policy.save(folder / arm / "final")
"""


def settings(arm):
    """Micro-batches of one view: one process has more of them than the other."""
    args = {"learning_rate": 0.1, "optim": "adamw_torch", "adam_epsilon": 1.0}  # no noise of gradients near zero
    return config(updates=4, examples_per_update=4, micro_batch=1, save_every=2, select_by="validation", args=args)


def some_items(policy):
    return [replace(item, views=item.views[: 1 + place % 2]) for place, item in enumerate(tiny_items(policy))]


def trained(folder, launcher, arms, last=9):
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(SCRIPT)
    plain = [sys.executable]
    started = [*plain, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCHERS / f"{launcher}.yaml")]
    command = [*started, "--num_processes", "2"] if launcher else plain
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(folder / "script.py"), str(folder), str(last), *arms],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("launcher", "arms"), [("fsdp2", ["sft"]), ("deepspeed_zero2", ["sft", "kd", "rba-single", "everything"])]
)
def test_a_launcher_trains_what_one_process_trains_and_goes_on_after_a_kill(tmp_path, launcher, arms):
    if launcher == "deepspeed_zero2" and not find_spec("deepspeed"):
        pytest.skip("deepspeed is missing: pip install deepspeed")
    trained(tmp_path / "one", None, arms)
    trained(tmp_path / "two", launcher, arms, last=3)  # after the checkpoint of the second update
    assert not (tmp_path / f"two/{arms[0]}/final").exists()
    trained(tmp_path / "two", launcher, arms)
    for arm in arms:
        one, two = (tmp_path / name / arm for name in ("one", "two"))
        for name, fields in (("metrics", ("loss", "gradient_norm", "learning_rate")), ("validation", ("nll",))):
            rows = [list(read_rows(folder / f"{name}.jsonl")) for folder in (one, two)]
            for a, b in zip(*rows, strict=True):
                assert [a[field] for field in fields] == pytest.approx([b[field] for field in fields], rel=1e-4)
        weights = [load_file(folder / "final/adapter_model.safetensors") for folder in (one, two)]
        assert weights[0].keys() == weights[1].keys()
        for name, value in weights[0].items():
            torch.testing.assert_close(value, weights[1][name], atol=1e-5, rtol=1e-3)
        held = load_file(two / "checkpoints/checkpoint-4/model.safetensors")
        assert all("lora_" in name for name in held)
        state = json.loads((two / "checkpoints/checkpoint-4/trainer_state.json").read_text())
        assert state["global_step"] == 4
