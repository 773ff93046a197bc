"""Arms trained by several processes: the same as by one, matched arms last, and told well when a process dies."""

from __future__ import annotations

import os
import pickle
import re
from functools import partial

import pytest
from aligning import tiny_policy
from safetensors.torch import load_file
from test_align_stage import recipe, write_data
from torch.testing import assert_close

from rbalign.errors import RunError, UsageError
from rbalign.rundir.run import RunDir
from rbalign.rundir.workers import workers_that_fit
from rbalign.stages import align, arms
from rbalign.stages import policy as stage_policy
from rbalign.stages.arms import Arms, training, workers_for

THREE = ["sft-matched", "sft", "rba-single"]


def open_tiny(recipe, run, share=False, **options):
    return tiny_policy(**options)


def reopen(folder, changes):
    """What a worker finds: the run's data, and a tiny random policy (`trained` lends it where no worker does)."""
    stage_policy.open_policy = open_tiny
    chosen = recipe(**changes)
    return Arms(chosen, RunDir.look(folder, chosen))


def dying():
    os._exit(9)


class DiesAfterTwo(Arms):
    """Its process is gone after the second update of rba-single."""

    def train(self, job, advance):
        if job.arm != "rba-single":
            return super().train(job, advance)
        seen = []
        return super().train(job, lambda: os._exit(9) if len(seen) == 1 else seen.append(1))


def reopen_dying(folder, changes):
    made = reopen(folder, changes)
    made.__class__ = DiesAfterTwo
    return made


def weights(run, arm):
    return load_file(arms.final_folder(run, arm, 0) / "adapter_model.safetensors")


def trained(folder, monkeypatch, opener=reopen, **changes):
    """The run of a recipe, aligned; its arms come from `opener`."""
    with RunDir.open(folder, recipe(**changes)) as run:
        if not run.path("data").exists():
            write_data(run.path("data"))
        with monkeypatch.context() as patch:
            patch.setattr(stage_policy, "open_policy", open_tiny)  # so that it is put back, whoever sets it
            patch.setattr(align, "training", partial(training, reopen=partial(opener, folder, changes)))
            align.run(run.recipe, run)
        return run


def test_two_processes_train_as_one_does(tmp_path, monkeypatch):
    runs = {n: trained(tmp_path / str(n), monkeypatch, arms=THREE, workers=n) for n in (1, 2)}
    for arm in THREE:
        alone, beside = (weights(runs[n], arm) for n in (1, 2))
        assert alone.keys() == beside.keys()
        for name, value in alone.items():
            assert_close(value, beside[name], atol=1e-5, rtol=1e-4)
    assert arms.cost(runs[2], "sft-matched", 0)["updates"] > 2


def test_an_arm_whose_process_died_goes_on_and_ends_the_same(tmp_path, monkeypatch, capsys):
    whole = trained(tmp_path / "whole", monkeypatch, updates=4, workers=2)
    with pytest.raises(RunError, match="a training process died") as caught:
        trained(tmp_path / "cut", monkeypatch, reopen_dying, updates=4, workers=2)
    assert "--align.workers 1" in caught.value.cure
    folder = tmp_path / "cut" / "tiny" / "arms" / "rba-single-s0"
    assert arms.updates_done(folder) in (1, 2)
    assert not (folder / "final").exists()
    capsys.readouterr()
    cut = trained(tmp_path / "cut", monkeypatch, updates=4, workers=2)
    for arm in ("sft", "rba-single"):
        for name, value in weights(whole, arm).items():
            assert_close(value, weights(cut, arm)[name], atol=1e-6, rtol=1e-5)
    # 4 of 4 if sft had ended before the other one's process died.
    assert re.search(r"align .*rba-single-s0.*: ([48])/\1 updates", capsys.readouterr().err)


def test_an_error_of_a_worker_keeps_its_kind_and_its_cure(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="fewer than examples_per_update") as caught:
        trained(tmp_path, monkeypatch, examples_per_update=9, workers=2)
    assert "lower examples_per_update" in caught.value.cure
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.problem, again.cure) == (UsageError, caught.value.problem, caught.value.cure)


def test_nothing_to_train_starts_no_process(tmp_path, monkeypatch):
    trained(tmp_path, monkeypatch, workers=1)
    run = trained(tmp_path, monkeypatch, lambda folder, changes: dying(), workers=2)
    assert run.outputs("align/sft-s0")


def test_no_more_processes_than_arms_at_once(monkeypatch):
    config = recipe(arms=THREE, workers=8).align
    assert workers_for(config) == 2
    assert workers_for(recipe(arms=THREE, seeds=[0, 1], workers=3).align) == 3
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert workers_for(config) == 1


def test_as_many_processes_as_asked_or_as_fit(monkeypatch):
    assert workers_that_fit(3, 1 << 60) == 3
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": (16 << 30) // 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert workers_that_fit(0, 3 << 30) == 2
    pages["SC_PHYS_PAGES"] //= 4
    assert workers_that_fit(0, 3 << 30) == 1


def test_longest_arms_come_first_and_matched_ones_last(tmp_path, monkeypatch):
    order = []

    def fake(recipe, run):
        class Crew:
            def __enter__(self):
                return lambda jobs: order.append([(job.arm, job.seed) for job in jobs]) or iter(())

            def __exit__(self, *error):
                return None

        return Crew()

    monkeypatch.setattr(align, "training", fake)
    spent = {"rba-single": 2.0, "sft": 1.0}
    monkeypatch.setattr(align, "cost", lambda run, arm, seed: {"operations": spent[arm], "updates": 1})
    with RunDir.open(tmp_path, recipe(arms=THREE, seeds=[0, 1])) as run:
        write_data(run.path("data"))
        with pytest.raises(KeyError):  # nothing was trained, so there are no hashes to give
            align.run(run.recipe, run)
    assert order == [
        [("rba-single", 0), ("rba-single", 1), ("sft", 0), ("sft", 1)],
        [("sft-matched", 0), ("sft-matched", 1)],
    ]
