"""Training that is killed (a real SIGKILL) or finds the disk full, anywhere: it goes on, and ends as if nothing was."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from aligning import tiny_items, tiny_policy
from killing import killed_at
from test_align_trainer import ByLength, trainer
from transformers import Trainer, TrainerState

from rbalign.errors import DataError
from rbalign.lm import fused
from rbalign.rundir import journal
from rbalign.rundir.journal import read_rows
from rbalign.train.resume import last_checkpoint
from rbalign.train.trainer import AlignTrainer

resource = pytest.importorskip("resource", reason="fork, SIGKILL and RLIMIT_FSIZE are POSIX")

UPDATES, DONE = 4, 2
"""Each test finds a folder that was killed while it sampled for the update after DONE, and is disturbed there again."""


def made(folder, advance=lambda: None):
    """A trainer that saves every update. All clips are heard in one batch before: a resume is then equal to the bit."""
    policy = tiny_policy()
    policy.audio([view for item in tiny_items(policy) for view in item.views])
    changes = {"updates": UPDATES, "save_every": 1, "reference": "refresh:2"}
    return trainer(folder, "rba-group", policy, advance=advance, **changes)


def ended(folder):
    """Goes on to the end: the weights, and all that stands in the journals but the seconds."""
    one = made(folder)
    one.fit()
    metrics = [{name: value for name, value in row.items() if name != "seconds"} for row in _rows(folder, "metrics")]
    weights = {name: value.detach().clone() for name, value in one.policy.trainable().items()}
    return weights, metrics, _rows(folder, "samples")


def assert_equal(whole, other):
    for name, value in whole[0].items():
        assert torch.equal(value, other[0][name]), name
    assert whole[1:] == other[1:]


def stands(folder):
    return int(last_checkpoint(folder / "checkpoints").name.rpartition("-")[2])


def _rows(folder, name):
    return list(read_rows(folder / f"{name}.jsonl"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """A fork has none of its parent's threads: OpenMP would wait for them for ever."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    one = ended(tmp_path_factory.mktemp("whole"))
    assert [row["update"] for row in one[1]] == [1, 2, 3, 4]
    assert len(one[2]) == UPDATES * 2 * 2  # examples, views
    return one


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    kill(folder, fused, "draw", before, at=DONE * 6 + 3)  # six tokens an update
    return folder


@pytest.fixture
def cut(killed_once, tmp_path):
    folder = shutil.copytree(killed_once, tmp_path / "cut")
    assert (stands(folder), len(_rows(folder, "metrics"))) == (DONE, DONE)
    return folder


def kill(folder, owner, name, how, at=1):
    """SIGKILL at the `at`-th call of `owner.name`: `how` says when in it."""

    def watch(tick):
        setattr(owner, name, how(getattr(owner, name), tick))

    assert killed_at(lambda: made(folder).fit(), watch, at) == (at, "killed")


def before(original, tick):
    return lambda *args, **options: (tick(), original(*args, **options))[1]


def after(original, tick):
    return lambda *args, **options: (original(*args, **options), tick())[0]


def half_written(original, tick):
    """The file, whose path is the second argument, ends in its middle."""

    def write(content, path, **options):
        original(content, path, **options)
        os.truncate(path, Path(path).stat().st_size // 2)
        tick()

    return write


def half_a_block(original, tick):
    def write(file, block):
        original(file, block[: len(block) // 2])
        tick()
        original(file, block[len(block) // 2 :])

    return write


POINTS = {
    "sampling, at the fourth token": (fused, "draw", before, 4),
    "scoring": (ByLength, "__call__", before),
    "backward, after the first micro-batch": (Accelerator, "backward", after),
    "stepping, with other weights": (torch.optim.AdamW, "step", after),
    "writing samples.jsonl": (journal, "_write_all", half_a_block, 1),
    "writing metrics.jsonl": (journal, "_write_all", half_a_block, 2),
    "saving, nothing yet": (AlignTrainer, "save_model", before),
    "saving model.safetensors": (safetensors.torch, "save_file", half_written, 1),
    "saving reference.safetensors": (safetensors.torch, "save_file", half_written, 2),
    "saving optimizer.pt": (torch, "save", half_written, 1),
    "saving rng_state.pth": (torch, "save", half_written, 3),
    "saving trainer_state.json": (TrainerState, "save_to_json", half_written),
    "saving, all but the checksums": (Trainer, "_save_checkpoint", after),
    "saving, all": (AlignTrainer, "_save_checkpoint", after),
}
WHOLE_BY_THEN = ("saving, all but the checksums", "saving, all")


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_started_again_nothing_is_lost_and_nothing_is_double(cut, whole, point):
    kill(cut, *POINTS[point])
    assert stands(cut) == DONE + (point in WHOLE_BY_THEN)
    assert_equal(whole, ended(cut))


@pytest.mark.parametrize("torn", ["model.safetensors", "optimizer.pt"])
def test_a_full_disk_is_one_line_and_the_checkpoint_before_it_stands(cut, whole, torn):
    """Files may not grow past half of what this one needs: the kernel refuses the write as a full disk does."""
    before = contents(cut / f"checkpoints/checkpoint-{DONE}")
    with pytest.raises(DataError) as caught, files_up_to(len(before[torn]) // 2):
        made(cut).fit()
    refused_in_one_line(caught.value, DONE + 1, "MB are free", f"goes on from checkpoint-{DONE}")
    assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == ["checkpoint-1", "checkpoint-2"]
    assert contents(cut / f"checkpoints/checkpoint-{DONE}") == before
    assert_equal(whole, ended(cut))


def test_no_space_left_for_the_first_checkpoint(tmp_path, whole, monkeypatch):
    def full(state, path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", full)
        with pytest.raises(DataError) as caught:
            made(tmp_path).fit()
    refused_in_one_line(caught.value, 1, "No space left on device", "starts over")
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert_equal(whole, ended(tmp_path))


def test_what_is_no_fault_of_the_disk_is_told_as_it_is(cut, monkeypatch):
    def broken(state, path):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(TrainerState, "save_to_json", broken)
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        made(cut).fit()


def test_killed_while_it_writes_over_a_broken_checkpoint(cut, whole):
    """Half of the new one and half of the old one are no checkpoint, though a state and checksums stood there."""
    shutil.copytree(cut / f"checkpoints/checkpoint-{DONE}", newest := cut / f"checkpoints/checkpoint-{DONE + 1}")
    state = newest / "trainer_state.json"
    state.write_text(state.read_text().replace(f'"global_step": {DONE}', f'"global_step": {DONE + 1}'))
    assert stands(cut) == DONE  # the state is not what was written
    kill(cut, torch, "save", before)
    assert not state.exists()
    assert_equal(whole, ended(cut))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused_in_one_line(error, number, *said):
    assert str(error).startswith("cannot save ")
    for part in (f"checkpoint-{number}:", "free some disk space and start again", *said):
        assert part in str(error)
    assert "\n" not in str(error)


@contextmanager
def files_up_to(size):
    """No file of this process may grow past `size` bytes; a write beyond it is refused (Python ignores the signal)."""
    now, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (now, most))
