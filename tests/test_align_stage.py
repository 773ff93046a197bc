"""`rba align` on a tiny model and a real dataset folder: files, resume by arm, and what it refuses."""

import json

import pytest
import torch
from aligning import LORA, tiny_policy
from safetensors.torch import load_file
from tiny import TEXTS, tiny_clip

from rbalign.audio.io import to_flac
from rbalign.config.recipe import Recipe
from rbalign.data.dataset import DatasetWriter
from rbalign.errors import RunError, UsageError
from rbalign.rundir.journal import read_rows
from rbalign.rundir.run import RunDir
from rbalign.stages import align, arms
from rbalign.types import Example, View, ViewSpec
from rbalign.voices.bank import load_bank

CAP = 30


def recipe(**changes):
    section = {
        "connector": "connect", "arms": ["sft", "rba-single"], "workers": 1, "updates": 2,
        "examples_per_update": 2, "save_every": 1,
        "sampling": {"max_new_tokens": CAP}, "lora": LORA, "args": {"learning_rate": 1e-2},
    }  # fmt: skip
    return Recipe.model_validate({"name": "tiny", "align": section | changes})


def write_data(folder, voice="af_heart"):
    """Six training instructions (one without answer, one with a long one, one without view), two for validation."""
    writer = DatasetWriter(folder, {"teacher": "tiny", "recipe": "none"})
    answers = ["Yes.", None, "word " * 60, "No.", "Tea.", "Paris.", "Birds."]
    splits = ["train"] * 5 + ["validation"] * 2
    examples = [
        Example(f"e{i}", split, TEXTS[i % 5], TEXTS[i % 5], answer)
        for i, (split, answer) in enumerate(zip(splits, answers, strict=True))
    ]
    writer.add_examples([*examples, Example("mute", "train", "Hm?", "Hm?", "Yes.")])
    for split in ("train", "validation"):
        views = [
            View(e.id, k, split, ViewSpec(voice), 0.7, to_flac(tiny_clip(0.7, seed=10 * i + k)))
            for i, e in enumerate(examples)
            if e.split == split
            for k in (0, 1)
        ]
        writer.commit_views(split, 0, views)
    writer.finish()


@pytest.fixture
def opened(monkeypatch):
    """open_policy gives the tiny model; what it was asked for is kept."""
    asked = []

    def open_policy(recipe, run, share=False, **options):
        asked.append(options)
        return tiny_policy(**options)

    monkeypatch.setattr("rbalign.stages.policy.open_policy", open_policy)
    return asked


def test_arms_are_trained_saved_and_not_trained_again(tmp_path, opened):
    with RunDir.open(tmp_path, recipe()) as run:
        write_data(run.path("data"))
        assert {row.what for row in align.plan(run.recipe, run).rows} == {"updates of sft", "updates of rba-single"}
        outputs = align.run(run.recipe, run)
        assert set(outputs) == {"sft-s0", "rba-single-s0"}
        assert align.plan(run.recipe, run).rows == ()
        assert align.run(run.recipe, run) == outputs
    retuned = recipe(args_of={"rba-single": {"learning_rate": 1e-3}})
    with RunDir.open(tmp_path, retuned) as run, pytest.raises(RunError, match="rba-single"):
        align.run(retuned, run)
    assert len(opened) == 1
    final = arms.final_folder(run, "sft", 0)
    about = json.loads((final / "arm.json").read_text())
    assert about["left_out"] == {"no answer": 1, f"answer over {CAP} tokens": 1, "no view": 1}
    assert about["examples"] == 3
    assert about["selected_update"] == about["updates"] == 2
    assert [row["update"] for row in read_rows(run.path("arms", "sft-s0", "metrics.jsonl"))] == [1, 2]
    policy = tiny_policy(lora=None)
    for arm in ("sft", "rba-single"):
        policy.load(arms.final_folder(run, arm, 0))
        assert any("lora_B" in name and value.any() for name, value in policy.speech.named_parameters())


def test_an_arm_killed_inside_goes_on_and_ends_the_same(tmp_path, opened, monkeypatch):
    from rbalign.train.trainer import AlignTrainer

    log = AlignTrainer.log

    def dying(self, logs, start_time=None):
        log(self, logs, start_time)
        if self.arm == "rba-single" and self.state.global_step == 3 and "grad_norm" in logs:
            raise KeyboardInterrupt

    weights = {}
    for name in ("whole", "cut"):
        with RunDir.open(tmp_path / name, recipe(updates=4)) as run:
            write_data(run.path("data"))
            if name == "cut":
                with monkeypatch.context() as patch:
                    patch.setattr(AlignTrainer, "log", dying)
                    with pytest.raises(KeyboardInterrupt):
                        align.run(run.recipe, run)
                assert run.outputs("align/rba-single-s0") is None
                # The dearest arm came first, and was killed after its third update and before that checkpoint.
                assert [row.count for row in align.plan(run.recipe, run).rows] == [4, 1 + 1]
            align.run(run.recipe, run)
            policy = tiny_policy(lora=None)
            policy.load(arms.final_folder(run, "rba-single", 0))
            weights[name] = {n: v.clone() for n, v in policy.speech.named_parameters() if "lora" in n}
    for key, value in weights["whole"].items():
        torch.testing.assert_close(value, weights["cut"][key], atol=1e-6, rtol=1e-5)


def test_the_update_whose_weights_were_chosen_is_told(tmp_path, opened, monkeypatch):
    from rbalign.train.trainer import AlignTrainer

    def evaluate(self, *args, **kwargs):
        return {"eval_nll": {1: 2.0, 2: 1.0, 3: 1.5}[self.state.global_step]}

    monkeypatch.setattr(AlignTrainer, "evaluate", evaluate)
    with RunDir.open(tmp_path, recipe(arms=["sft"], updates=3, select_by="validation")) as run:
        write_data(run.path("data"))
        align.run(run.recipe, run)
        assert json.loads((arms.final_folder(run, "sft", 0) / "arm.json").read_text())["selected_update"] == 2
        assert arms.cost(run, "sft", 0)["selected_update"] == 2
        assert arms.cost(run, "sft", 0)["updates"] == 3


def test_seeds_are_different_runs_and_an_arm_does_not_depend_on_its_neighbours(tmp_path, opened):
    with RunDir.open(tmp_path / "both", recipe(seeds=[0, 1])) as run:
        write_data(run.path("data"))
        both = align.run(run.recipe, run)
        beside = load_file(arms.final_folder(run, "rba-single", 1) / "adapter_model.safetensors")
    with RunDir.open(tmp_path / "alone", recipe(arms=["rba-single"], seeds=[1])) as run:
        write_data(run.path("data"))
        align.run(run.recipe, run)
        alone = load_file(arms.final_folder(run, "rba-single", 1) / "adapter_model.safetensors")
    assert len(set(both.values())) == 4
    for name, value in alone.items():  # not bit for bit: clips that neighbours had encoded stood in other batches
        torch.testing.assert_close(value, beside[name], atol=1e-5, rtol=1e-4)


def test_a_changed_setting_is_refused(tmp_path, opened):
    with RunDir.open(tmp_path, recipe()) as run:
        write_data(run.path("data"))
        align.run(run.recipe, run)
        with pytest.raises(RunError, match="beta"):
            align.run(recipe(beta=0.5), run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select_by": "validation", "sampling": {"max_new_tokens": 2}}, "validation"),
        ({"examples_per_update": 9}, "fewer than examples_per_update"),
    ],
)
def test_what_cannot_be_right_is_refused(tmp_path, opened, changes, message):
    with RunDir.open(tmp_path, recipe(**changes)) as run:
        write_data(run.path("data"))
        with pytest.raises(UsageError, match=message):
            align.run(run.recipe, run)


def test_test_voices_may_not_teach(tmp_path, opened):
    voice = load_bank().names(split="test")[0]
    with RunDir.open(tmp_path, recipe()) as run:
        write_data(run.path("data"), voice)
        with pytest.raises(UsageError, match=voice):
            align.run(run.recipe, run)


def test_samples_are_the_policys_own():
    with pytest.raises(UsageError, match="temperature 1"):
        align.check(recipe(sampling={"temperature": 0.7}))
    align.check(recipe())


def test_kd_needs_the_backbone_as_its_teacher():
    other = Recipe.model_validate(
        {"name": "tiny", "teacher": {"model": "elsewhere"}, "connect": {}, "align": {"arms": ["kd"]}}
    )
    with pytest.raises(UsageError, match="kd reads"):
        align.check(other)


def test_a_matched_arm_spends_what_the_rba_arm_spent(tmp_path, opened):
    with RunDir.open(tmp_path, recipe(arms=["sft-matched", "sft", "rba-single"])) as run:
        write_data(run.path("data"))
        assert "updates of sft-matched" in {row.what for row in align.plan(run.recipe, run).rows}
        outputs = align.run(run.recipe, run)
        assert outputs["sft-matched-s0"] != outputs["sft-s0"]
        plain, rival, matched = (arms.cost(run, arm, 0) for arm in ("sft", "rba-single", "sft-matched"))
        assert matched["updates"] > plain["updates"] == rival["updates"] == 2
        one = plain["operations"] / plain["updates"]
        assert abs(matched["operations"] - rival["operations"]) <= 2 * one
        rows = list(read_rows(run.path("arms", "sft-matched-s0", "metrics.jsonl")))
        assert rows[-1]["update"] == matched["updates"]
        assert json.loads((arms.final_folder(run, "sft-matched", 0) / "arm.json").read_text())["arm"] == "sft-matched"


def test_a_matched_arm_needs_what_it_matches():
    with pytest.raises(ValueError, match="sft-matched needs sft and an rba arm beside it"):
        recipe(arms=["sft", "sft-matched"])
