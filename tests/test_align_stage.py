"""`rba align` on a tiny model and a real dataset folder: files, resume by arm, and what it refuses."""

import json

import pytest
import torch
from aligning import LORA, tiny_policy
from loopback import Loopback, bodies, chat, status
from safetensors.torch import load_file
from tiny import TEXTS, tiny_clip

from rbalign.audio.io import to_flac
from rbalign.config.recipe import Recipe
from rbalign.data.dataset import DatasetWriter
from rbalign.errors import RunError, UsageError
from rbalign.remote.client import EndpointError
from rbalign.rundir.journal import read_rows
from rbalign.rundir.run import RunDir
from rbalign.stages import align, arms
from rbalign.stages.chain import settings
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


def test_a_reward_that_is_unsafe_alone_is_refused_before_any_work():
    with pytest.raises(UsageError, match=r"write scorer = { similarity = 1, novelty = 0.5, repetition = 0.5 }"):
        align.check(recipe(arms=["sft", "grpo"], scorer="similarity"))
    align.check(recipe(arms=["sft"], scorer="similarity"))  # no arm is rewarded
    align.check(recipe(arms=["rba-group"]))


def test_a_reward_that_asks_a_model_needs_one(tmp_path, monkeypatch):
    for scorer, line in (("judge", "judge = { url"), ({"reward-model": 1.0}, 'reward_model = "FOLDER"')):
        with pytest.raises(UsageError, match=f"has no model to ask.*{line}"):
            align.check(recipe(arms=["grpo"], scorer=scorer))
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    judge = {"url": "http://127.0.0.1:1/v1", "model": "m", "key_env": "JUDGE_KEY"}
    with pytest.raises(UsageError, match="JUDGE_KEY is not set"):
        align.check(recipe(arms=["grpo"], scorer="judge", judge=judge))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "id2label": {"0": "a", "1": "b"}}')
    with pytest.raises(UsageError, match="has 2 labels"):
        align.check(recipe(arms=["grpo"], scorer="reward-model", reward_model=str(tmp_path)))


def test_the_price_of_a_judge_is_no_part_of_a_result():
    judge = {"url": "http://127.0.0.1:1/v1", "model": "m"}
    own = recipe(arms=["grpo"], scorer="judge", judge=judge)
    slower = recipe(arms=["grpo"], scorer="judge", judge=judge | {"concurrency": 1, "retries": 0, "price_in": 3.0})
    other = recipe(arms=["grpo"], scorer="judge", judge=judge | {"model": "n"})
    assert settings(own, "align") == settings(slower, "align") != settings(other, "align")
    assert not {"judge", "reward_model"} & settings(recipe(), "align")["align"].keys()


def test_a_judge_rewards_training_dies_and_training_goes_on(tmp_path, opened, monkeypatch):
    """Killed by its judge after one update, then resumed: nothing is asked twice, and the counts are on the disk."""
    monkeypatch.setattr("rbalign.stages.rewards.home", lambda: tmp_path / "home")
    alive = [5]  # ratings until the server refuses everybody

    def answer(asked):
        alive[0] -= 1
        text = asked.body["messages"][1]["content"]
        return chat(f"Score: {1 + len(text) % 10}") if alive[0] >= 0 else status(401, "closed")

    with Loopback(answer) as server:
        judge = {"url": server.url, "model": "m", "retries": 0, "concurrency": 1}
        asking = recipe(arms=["grpo"], scorer="judge", judge=judge, grpo={"kl": 0.0}, sampling={"max_new_tokens": 5})
        with RunDir.open(tmp_path, asking) as run:
            write_data(run.path("data"))
            with pytest.raises(EndpointError, match="refuses"):
                align.run(run.recipe, run)
            alive[0] = 1000
            align.run(run.recipe, run)
            rows = list(read_rows(arms.arm_folder(run, "grpo", 0) / "metrics.jsonl"))
            drawn = list(read_rows(arms.arm_folder(run, "grpo", 0) / "samples.jsonl"))
    answered = [bodies([one])[0] for one in server.answered]
    refused = [body for body in answered if answered.count(body) > 1]
    assert len(answered) - len(set(answered)) == 1, "only the request that was refused is sent again"
    assert len(refused) == 2
    assert [row["update"] for row in rows] == [1, 2]
    assert all(row["scorer_failures"] == row["unscored"] == 0 for row in rows)
    assert all(one["score"] is not None for one in drawn)


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
