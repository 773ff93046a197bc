"""The trainer on a tiny speech model: exact under any cut, equal after a kill, one encoder pass a clip."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from aligning import LORA, VOICES, tiny_items, tiny_policy

from rbalign.config.sections import AlignConfig, Sampling
from rbalign.errors import RunError, UsageError
from rbalign.rundir.journal import read_rows
from rbalign.train.arguments import training_arguments
from rbalign.train.resume import keyed_order
from rbalign.train.trainer import AlignTrainer

MIXTURES = {
    "everything": {"single": 1.0, "group": 0.5, "grpo": 0.3, "opd": 0.4, "kd": 0.2, "ce": 0.1},
    "own": {"opd": 1.0, "single": 0.5},
}
ARMS = ("sft", "kd", "rba-single", "rba-group", "grpo", "opd", *MIXTURES)
SAMPLED = ARMS[2:]
FULL = {"full_finetuning": True, "lora": {}, "args": {"learning_rate": 1e-3}}
REWARDED = ("rba-group", "grpo", "everything")


class ByLength:
    """A scorer that needs nothing: longer answers are better."""

    name = "length"
    needs = frozenset()

    def __call__(self, prompts, completions, completion_ids, **columns):
        assert len(columns["answer"]) == len(completions)
        return [float(len(ids) + sum(ids) / 1e6) for ids in completion_ids]


def config(**changes):
    settings = {
        "updates": 4, "examples_per_update": 2, "micro_batch": 2, "save_every": 2, "lora": LORA, "mixtures": MIXTURES,
        "sampling": Sampling(max_new_tokens=6), "args": {"learning_rate": 1e-2},
    }  # fmt: skip
    return AlignConfig(**(settings | changes))


def trainer(folder, arm, policy=None, advance=lambda: None, validation=(), **changes):
    settings = config(**changes)
    policy = policy or tiny_policy(
        lora=settings.lora, full=settings.full_finetuning, train_adapter=settings.train_adapter
    )
    items = tiny_items(policy)
    scorer = ByLength() if arm in REWARDED else None
    made = AlignTrainer(
        policy, arm, settings, items, folder, seed=3, scorer=scorer, validation=validation, advance=advance
    )
    return made


def trained(folder, arm, **changes):
    made = trainer(folder, arm, **changes)
    made.fit()
    return {name: value.detach().clone() for name, value in made.policy.trainable().items()}, list(
        read_rows(folder / "metrics.jsonl")
    )


def assert_same(a, b, tolerance=1e-5):
    (weights_a, rows_a), (weights_b, rows_b) = a, b
    assert [row["update"] for row in rows_a] == [row["update"] for row in rows_b]
    for one, other in zip(rows_a, rows_b, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=tolerance)
    assert weights_a.keys() == weights_b.keys()
    for name, value in weights_a.items():
        torch.testing.assert_close(value, weights_b[name], atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_learns_and_tells(tmp_path, arm, changes):
    before = {n: v.clone() for n, v in trainer(tmp_path / "x", arm, **changes).policy.trainable().items()}
    after, rows = trained(tmp_path / "arm", arm, **changes)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert [row["update"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row["gradient_norm"] > 0
        assert row["operations"] > 0
        assert row["seconds"]["step"] >= 0
    assert rows[-1]["operations_total"] == pytest.approx(sum(row["operations"] for row in rows))
    samples = list(read_rows(tmp_path / "arm/samples.jsonl"))
    assert len(samples) == (4 * 2 * 2 if arm in SAMPLED else 0)
    terms = config().mixture(arm)
    norms = [rows[0][f"gradient_norm_{term}"] for term in terms]
    assert 2 * max(norms) - sum(norms) - 1e-6 <= rows[0]["gradient_norm"] <= sum(norms) + 1e-6
    assert len(terms) == 1 or f"gradient_norm_{next(iter(terms))}" not in rows[1]
    assert rows[0]["loss"] == pytest.approx(sum(rows[0][f"{term}_loss"] for term in terms))
    if arm in SAMPLED:
        assert 0 < sum(row["truncated"] for row in rows) < 4
    if "single" in terms or "group" in terms:
        assert {"margin", "length_difference", "one_sided"} <= rows[0].keys()
    if arm in REWARDED:
        assert rows[0]["reward"] > 0
    if "grpo" in terms:
        assert rows[0]["without_advantage"] == 0
        assert rows[0]["clipped"] == 0
        assert rows[0]["reference_kl"] == pytest.approx(0, abs=1e-6)
        assert rows[3]["reference_kl"] != 0
    if "opd" in terms:
        assert rows[0]["reverse_kl"] > 0
    if "group" in terms:
        assert sum(rows[0]["chosen_voices"].values()) == sum(rows[0]["rejected_voices"].values()) == 2
        assert set(rows[0]["chosen_voices"]) <= set(VOICES)


@pytest.mark.parametrize("arm", ARMS)
def test_micro_batch_changes_nothing(tmp_path, arm):
    plain = {"learning_rate": 0.3, "optim": "sgd"}  # Adam would blow the rounding of gradients near zero up
    whole, cut = (trained(tmp_path / str(size), arm, micro_batch=size, args=plain) for size in (100, 1))
    assert_same(whole, cut)
    assert [s["ids"] for s in read_rows(tmp_path / "100/samples.jsonl")] == [
        s["ids"] for s in read_rows(tmp_path / "1/samples.jsonl")
    ]


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("sft", {}),
        ("kd", {}),
        ("rba-single", {"reference": "refresh:2", "train_adapter": True}),
        ("rba-single", {"sample_refresh": "epoch", "examples_per_update": 1}),
        ("rba-group", {"conditioning": "cross", "reference": "refresh:3"}),
        ("grpo", {"sample_refresh": "epoch", "examples_per_update": 1}),
        ("everything", {"train_adapter": True}),
        ("everything", FULL),
        ("rba-single", FULL | {"reference": "refresh:2"}),
    ],
)
@pytest.mark.parametrize("killed_at", [3, 5])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, arm, changes, killed_at):
    changes = {"updates": 6, "save_every": 2} | changes
    whole = trained(tmp_path / "whole", arm, **changes)

    class Kill(BaseException):
        pass

    seen = []

    def advance():
        seen.append(1)
        if len(seen) == killed_at:
            raise Kill

    with pytest.raises(Kill):
        trainer(tmp_path / "cut", arm, advance=advance, **changes).fit()
    metrics = tmp_path / "cut/metrics.jsonl"
    *kept, late = metrics.read_text().splitlines()
    assert json.loads(late)["update"] == killed_at  # later than the checkpoint: to be cut back and made again
    metrics.write_text("".join(f"{line}\n" for line in [*kept, json.dumps(json.loads(late) | {"loss": 99.0})]))
    again = trained(tmp_path / "cut", arm, **changes)
    # It hears in other batches: noise of float32, which Adam makes 2e-6 of weights that move by 1e-2 an update.
    assert_same(whole, again)
    ids = [{s["id"]: s["ids"] for s in read_rows(tmp_path / name / "samples.jsonl")} for name in ("whole", "cut")]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("arm", ["sft", "rba-single"])
def test_answers_to_the_same_clips_are_kept_as_training_goes_on(tmp_path, arm):
    changes = {"updates": 6, "save_every": 2, "answers_every": 3, "args": {"learning_rate": 0.05}}
    whole = trained(tmp_path / "whole", arm, **changes)
    assert_same(whole, trained(tmp_path / "unseen", arm, **(changes | {"answers_every": 0})))  # nobody is disturbed
    assert not (tmp_path / "unseen/answers.jsonl").stat().st_size
    rows = list(read_rows(tmp_path / "whole/answers.jsonl"))
    assert [row["update"] for row in rows] == [0] * 4 + [3] * 4 + [6] * 4
    asked = {(row["example"], row["view"]) for row in rows}
    assert len(asked) == 4
    texts = [[row["text"] for row in rows if row["update"] == update] for update in (0, 3, 6)]
    assert texts[0] != texts[2]
    left = iter([True] * 4)
    with pytest.raises(StopIteration):  # after five updates
        trainer(tmp_path / "cut", arm, advance=lambda: next(left), **changes).fit()
    again = trained(tmp_path / "cut", arm, **changes)  # goes on from 4: what was put down at 0 and 3 stays
    assert len(again[1]) == 6
    assert list(read_rows(tmp_path / "cut/answers.jsonl")) == rows


CHECKPOINT = ("model.safetensors", "optimizer.pt", "reference.safetensors", "rng_state.pth", "scheduler.pt",
              "sha256.json", "trainer_state.json")  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An arm at its end, to be copied; its trainer answers `trained` the same again."""
    folder = tmp_path_factory.mktemp("finished")
    whole = trained(folder, "rba-single", reference="refresh:2")
    assert sorted(path.name for path in (folder / "checkpoints/checkpoint-4").iterdir()) == sorted(CHECKPOINT)
    return folder, whole


def broken(finished, tmp_path, name, change, *gone):
    """A copy whose newest checkpoint has one file changed, without those that are `gone`."""
    folder = shutil.copytree(finished[0], tmp_path / "broken")
    newest = folder / "checkpoints/checkpoint-4"
    content = bytearray((newest / name).read_bytes())
    change(content)
    (newest / name).write_bytes(content)
    for other in gone:
        (newest / other).unlink()
    return folder


def flip_the_middle(content):
    content[len(content) // 2] ^= 1


def cut_the_end(content):
    del content[50:]


@pytest.mark.parametrize("name", CHECKPOINT)
def test_one_changed_byte_of_a_checkpoint_is_seen_and_the_one_before_is_used(tmp_path, capfd, finished, name):
    folder = broken(finished, tmp_path, name, flip_the_middle)
    assert_same(finished[1], trained(folder, "rba-single", reference="refresh:2"))
    said = capfd.readouterr().err
    assert f"checkpoint-4 is not whole ({'' if name == 'sha256.json' else name}" in said
    assert said.count("going on from checkpoint-2") == 1


@pytest.mark.parametrize(
    ("name", "change"),
    [("trainer_state.json", cut_the_end), ("model.safetensors", cut_the_end), ("optimizer.pt", flip_the_middle)],
)
def test_a_checkpoint_of_before_the_checksums_is_looked_at_as_before(tmp_path, capfd, finished, name, change):
    folder = broken(finished, tmp_path, name, change, "sha256.json")
    assert_same(finished[1], trained(folder, "rba-single", reference="refresh:2"))
    assert f"checkpoint-4 is not whole ({name}" in capfd.readouterr().err


def test_a_checkpoint_of_before_the_checksums_is_used(tmp_path, capfd, finished):
    folder = broken(finished, tmp_path, "scheduler.pt", lambda content: None, "sha256.json")
    assert_same(finished[1], trained(folder, "rba-single", reference="refresh:2"), tolerance=0)
    assert "not whole" not in capfd.readouterr().err


def test_a_missing_file_and_no_other_checkpoint(tmp_path, capfd, finished):
    folder = broken(finished, tmp_path, "scheduler.pt", lambda content: None, "reference.safetensors")
    shutil.rmtree(folder / "checkpoints/checkpoint-2")
    assert_same(finished[1], trained(folder, "rba-single", reference="refresh:2"))
    assert "(reference.safetensors is missing): starting over" in capfd.readouterr().err


def test_a_best_checkpoint_that_is_broken_is_trained_again(tmp_path, capfd):
    """Its weights are what the arm ends with: going on from the last one would load them unseen."""
    settings = {"select_by": "validation", "updates": 6}
    ends = []
    for _ in range(2):
        policy = tiny_policy()
        made = trainer(tmp_path, "sft", policy, validation=getting_worse(policy), **settings)
        made.fit()
        assert made.state.best_global_step == 2
        ends.append({name: value.clone() for name, value in policy.trainable().items()})
        weights = tmp_path / "checkpoints/checkpoint-2/model.safetensors"
        content = bytearray(weights.read_bytes())
        flip_the_middle(content)
        weights.write_bytes(content)
    said = capfd.readouterr().err
    assert "checkpoint-6 is not whole (its best, checkpoint-2: model.safetensors" in said
    assert said.count("starting over") == 2
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], atol=1e-5, rtol=1e-4)


def test_fit_again_after_the_end_does_nothing(tmp_path):
    first = trained(tmp_path, "rba-single")
    assert_same(first, trained(tmp_path, "rba-single"), tolerance=0)


def test_the_encoder_runs_once_per_clip(tmp_path):
    made = trainer(tmp_path, "rba-single", updates=9)
    made.fit()
    assert made.policy.cache.computed == {"frames": 12, "positions": 12}
    adapting = trainer(tmp_path / "adapter", "rba-single", updates=9, train_adapter=True)
    adapting.fit()
    assert adapting.policy.cache.computed == {"frames": 12}


def test_a_loss_that_is_no_number_stops_before_the_step(tmp_path):
    made = trainer(tmp_path, "sft")
    name, weight = next((n, v) for n, v in made.policy.trainable().items() if "lora_B" in n)
    with torch.no_grad():
        weight.fill_(math.nan)
    others = {n: v.clone() for n, v in made.policy.trainable().items() if n != name}
    with pytest.raises(RunError, match="no step was taken"):
        made.fit()
    assert all(torch.equal(value, made.policy.trainable()[n]) for n, value in others.items())
    assert not list(read_rows(tmp_path / "metrics.jsonl"))


def test_rba_single_at_the_first_update_is_half_beta_times_sft(tmp_path):
    """pi_theta = pi_ref: every margin is 0 and the loss log 2, whatever was sampled."""
    _, rows = trained(tmp_path, "rba-single", ce_weight=0.0, sampling=Sampling(max_new_tokens=40))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert rows[1]["loss"] != pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["gradient_norm_single"] == pytest.approx(rows[0]["gradient_norm"], rel=1e-5)


def getting_worse(policy):
    """Validation that every update makes worse: answers of a token that no training answer has."""
    taught = {int(token) for item in tiny_items(policy) for token in item.answer}
    other = next(token for token in range(200, 300) if token not in taught)
    return [replace(item, answer=torch.full((5,), other)) for item in tiny_items(policy, count=3)]


def test_the_best_checkpoint_on_validation_is_kept(tmp_path):
    policy = tiny_policy()
    made = trainer(tmp_path, "sft", policy, validation=getting_worse(policy), select_by="validation", updates=8)
    made.fit()
    curve = {row["update"]: row["nll"] for row in read_rows(tmp_path / "validation.jsonl")}
    assert list(curve) == [2, 4, 6, 8]
    assert curve[2] < curve[8] - 0.05
    assert made.evaluate()["eval_nll"] == pytest.approx(curve[2], abs=1e-5)


def test_training_stops_when_validation_gets_worse(tmp_path):
    """And an arm that was killed between its stop and its end does not train on."""
    settings = {"select_by": "validation", "updates": 20, "patience": 2, "save_every": 1}
    weights = []
    for _ in range(2):
        policy = tiny_policy()
        made = trainer(tmp_path, "sft", policy, validation=getting_worse(policy), **settings)
        made.fit()
        assert [row["update"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
        assert (made.state.global_step, made.state.best_global_step) == (3, 1)
        weights.append({name: value.clone() for name, value in policy.trainable().items()})
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    with pytest.raises(ValueError, match='select_by = "validation"'):
        config(patience=2)


@pytest.mark.parametrize("arm", ["sft", "kd", "everything"])
def test_gradient_checkpointing_keeps_less_and_changes_no_gradient(tmp_path, arm):
    def measured(folder, checkpointing):
        policy = tiny_policy()
        policy.gradient_checkpointing = checkpointing
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            made = trainer(folder, arm, policy, updates=3)
            made.fit()
        return policy.trainable(), list(read_rows(folder / "metrics.jsonl")), sum(kept)

    plain, rows, much = measured(tmp_path / "plain", False)
    weights, again, less = measured(tmp_path / "again", True)
    assert less < 0.7 * much
    for one, other in zip(rows, again, strict=True):
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
    for name, value in plain.items():
        torch.testing.assert_close(value, weights[name], atol=1e-5, rtol=1e-4)


def test_order_is_keyed_and_every_epoch_visits_all():
    names = [f"e{i}" for i in range(7)]
    order = keyed_order(names, updates=9, per_update=2, seed=1)
    assert len(order) == 18
    epochs = [order[start : start + 6] for start in (0, 6, 12)]
    assert all(len(set(epoch)) == 6 for epoch in epochs)
    assert epochs[0] != epochs[1]
    moved = [names[i] for i in (3, 1, 0, 2, 6, 5, 4)]
    assert [moved[i] for i in keyed_order(moved, 9, 2, 1)] == [names[i] for i in order]
    with pytest.raises(UsageError, match="fewer than examples_per_update"):
        keyed_order(names, 1, 8, 0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"learning_rte": 1e-4}, "learning_rate"),
        ({"gradient_accumulation_steps": 4}, "micro_batch"),
        ({"max_steps": 7}, "updates"),
        ({"lr_scheduler_type": "zigzag"}, "zigzag"),
    ],
)
def test_arguments_that_the_recipe_may_not_set(tmp_path, args, message):
    with pytest.raises(UsageError, match=message):
        training_arguments(config(args=args), tmp_path, 0)


def test_lora_fields_that_would_break_the_reference():
    refused = (("lora_dropout", 0.1, "keyed"), ("init_lora_weights", "pissa", "zero"), ("rank", 4, "rank"))
    for field, value, said in refused:
        with pytest.raises(UsageError, match=said):
            tiny_policy(lora={**LORA, field: value})


def test_metrics_are_json_without_nan(tmp_path):
    trained(tmp_path, "rba-group", ce_weight=0.0)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda value: pytest.fail(value))
