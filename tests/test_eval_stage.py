"""The whole stage on a tiny random speech LLM: every task, resume, noise shared by arms, wrong audio, failures."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny import TEXTS, tiny_clip, tiny_processor, tiny_speech_model

from rbalign.audio.io import to_flac
from rbalign.config.recipe import Recipe
from rbalign.data.dataset import DatasetWriter
from rbalign.data.signatures import Signatures
from rbalign.errors import DataError, RunError, UsageError
from rbalign.eval import answerers
from rbalign.eval.collect import Answered, collect, in_turn
from rbalign.eval.items import Item, by_example, chosen_view, every_view, repeats, wrong_audio
from rbalign.eval.schedule import Spoken, arm_work, reference_work
from rbalign.eval.score import load_rows
from rbalign.rundir.journal import count_lines
from rbalign.rundir.run import RunDir
from rbalign.speechlm.policy import SpeechPolicy
from rbalign.stages import align
from rbalign.stages import eval as stage
from rbalign.stages import score as score_stage
from rbalign.stages.arms import final_folder
from rbalign.stages.chain import chain, settings
from rbalign.types import Example, View, ViewSpec

VOICES = ("af_sarah", "am_michael", "bf_isabella")
LORA = {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}


class Letters:
    name = "minilm"

    def embed(self, texts):
        out = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def example(i):
    return Example(
        f"e{i}",
        "test",
        TEXTS[i % len(TEXTS)],
        TEXTS[i % len(TEXTS)].lower(),
        answer="How do birds fly?",
        reference="tea",
    )


def view(i, v, flac=None):
    seconds = 0.4 + 0.05 * i
    flac = to_flac(tiny_clip(seconds, seed=3 * i + v)) if flac is None else flac
    return View(f"e{i}", v, "test", ViewSpec(VOICES[v]), seconds, flac)


def new_policy(**options):
    return SpeechPolicy(tiny_speech_model(), tiny_processor(), system="Be brief.", **options)


@pytest.fixture
def recipe():
    return Recipe.model_validate(
        {
            "name": "tiny",
            "synth": {"train": 0, "validation": 0, "test": 4, "views": [{"voices": "kokoro", "per_example": 3}]},
            "align": {"arms": ("sft", "rba-group"), "seeds": (0,), "lora": LORA},
            "eval": {
                "sampling": {"temperature": 0.7, "max_new_tokens": 6},
                "bootstrap": 50,
                "batch_size": 5,
                "workers": 1,
            },
        }
    )


@pytest.fixture
def run(tmp_path, recipe, monkeypatch):
    opened = RunDir.open(tmp_path / "runs", recipe)
    writer = DatasetWriter(opened.path("data"), {"teacher": "tiny", "recipe": "0"})
    writer.add_examples([example(i) for i in range(4)])
    writer.commit_views("test", 0, [view(i, v) for i in range(4) for v in range(3)])
    writer.finish()
    for seed, arm in ((11, "sft"), (12, "rba-group")):
        policy = new_policy(lora=LORA, seed=seed)
        with_noise = np.random.default_rng(seed)
        for value in policy.trainable().values():
            value.data += 0.5 * value.data.new_tensor(with_noise.normal(size=value.shape))
        policy.save(final_folder(opened, arm, 0))
    monkeypatch.setattr(stage, "build_embedder", lambda name: Letters() if name == "minilm" else missing(name))
    monkeypatch.setattr("rbalign.stages.policy.open_policy", lambda recipe, run, **options: new_policy())
    monkeypatch.setattr("rbalign.stages.answering.whisper", lambda: lambda views: ["what is tea" for _ in views])
    with opened:
        yield opened


def missing(name):
    raise UsageError(f"unknown asset {name!r}")


def assert_close(found, wanted):
    """Equal but for the last digits of sums that another batch adds up in another order."""
    if isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1e-4)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert_close(found[key], wanted[key])
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_close(one, other)
    else:
        assert found == wanted


def rows(run, subject, task):
    return {row["id"]: row for row in load_rows([run.path("eval", subject, f"{task}.jsonl")])}


def test_the_stage_writes_every_task_and_the_results(run, recipe):
    outputs = stage.run(recipe, run)
    results = json.loads(run.path("results.json").read_text())
    assert set(outputs) == {"results.json"}
    names = {row["arm"] for row in results["rows"]}
    assert names == {"base", "sft", "rba-group", "text", "cascade", "self-cascade"}
    chrf = {row["arm"]: row for row in results["rows"] if (row["task"], row["metric"]) == ("open", "chrf")}
    assert all(row["n"] == 4 for row in chrf.values())
    assert len(rows(run, "base", "open")) == 4 * 3 + 4
    assert len(rows(run, "cascade", "open")) == 4
    assert set(rows(run, "base", "open")) == set(rows(run, "sft-s0", "open")) == set(rows(run, "text", "open"))
    assert any("wordllama left out" in note for note in results["notes"])
    group = next(r for r in results["rows"] if (r["arm"], r["metric"]) == ("rba-group", "similarity-answer"))
    assert group["optimised"]
    text_side = {row["task"] for row in results["rows"] if row["arm"] == "sft"}
    assert {"open", "open-text", "open-wrong-audio", "nll"} <= text_side
    likely = {row["task"] for row in results["rows"] if (row["arm"], row["metric"]) == ("sft", "teacher-likelihood")}
    assert likely == {"open"}


def test_the_plan_counts_what_the_stage_writes_and_then_nothing(run, recipe):
    planned = {row.what: row.count for row in stage.plan(recipe, run).rows}
    stage.run(recipe, run)
    written = {path: count_lines(path) for path in run.path("eval").glob("*/*.jsonl")}
    assert planned.pop("scores") == sum(count for path, count in written.items() if ".scores" in path.name)
    assert planned == {
        "answers to speech": 3 * (12 + 4 * (recipe.eval.consistency_samples - 1)),
        "answers to another item's audio": 3 * 4,
        "answers to text": written[run.path("eval", "text", "open.jsonl")] + 2 * 4,
        "answers to what the model heard": written[run.path("eval", "self-cascade", "open.jsonl")],
        "answers to what Whisper heard": 4,
        "losses of y_ref on speech": 3 * 4,
        "losses of y_ref on text": 4,
    }
    assert stage.plan(recipe, run).rows == ()


def test_resumed_equals_uninterrupted(run, recipe):
    stage.run(recipe, run)
    whole = json.loads(run.path("results.json").read_text())
    kept = {}
    for path in sorted(run.path("eval").rglob("*.jsonl")):
        kept[path] = {row["id"]: row for row in load_rows([path])}
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"id": "torn')
    run.path("results.json").unlink()
    stage.run(recipe, run)
    assert_close(json.loads(run.path("results.json").read_text()), whole)
    for path, before in kept.items():
        again = {row["id"]: row for row in load_rows([path])}
        assert again.keys() == before.keys()
        assert all(again[i].get("answer") == before[i].get("answer") for i in before)


def test_arms_differ_base_is_untouched_and_text_is_the_plain_llm(run, recipe):
    stage.run(recipe, run)
    base, sft = rows(run, "base", "open"), rows(run, "sft-s0", "open")
    assert any(base[i]["answer"] != sft[i]["answer"] for i in base)
    params = new_policy().params(0.7, 1.0, 6)
    items = every_view([example(i) for i in range(4)], by_example(view(i, v) for i in range(4) for v in range(3)))
    fresh = answerers.SpeechAnswerer(new_policy(), params, recipe.seed, base=True).answer(items)
    assert [base[item.id]["ids"] for item in items] == [list(answer.ids) for answer in fresh]
    read = answerers.TextAnswerer(new_policy(), params, recipe.seed, base=True).answer(items)
    assert [rows(run, "text", "open")[item.id]["ids"] for item in items] == [list(answer.ids) for answer in read]


def test_base_on_a_loaded_arm_is_still_base(run, recipe):
    stage.run(recipe, run)
    policy = new_policy()
    policy.load(final_folder(run, "sft", 0))
    items = every_view([example(0)], by_example(view(0, v) for v in range(3)))
    found = answerers.SpeechAnswerer(policy, policy.params(0.7, 1.0, 6), recipe.seed, base=True).answer(items)
    assert [list(answer.ids) for answer in found] == [rows(run, "base", "open")[item.id]["ids"] for item in items]


def test_answers_do_not_depend_on_the_batch():
    policy = new_policy()
    items = every_view([example(i) for i in range(3)], by_example(view(i, v) for i in range(3) for v in range(2)))
    answerer = answerers.SpeechAnswerer(policy, policy.params(0.7, 1.0, 6), 0, hear=True)
    together = answerer.answer(items)
    alone = [answerer.answer([item])[0] for item in reversed(items)][::-1]
    assert [a.ids for a in together] == [a.ids for a in alone]
    assert [a.heard for a in together] == [a.heard for a in alone]


@pytest.mark.parametrize(("temperature", "asked"), [(0.0, 2), (0.7, 6)])
def test_a_greedy_reader_answers_a_text_once_whatever_the_clip(monkeypatch, temperature, asked):
    policy, sampled = new_policy(), []
    sample = policy.sample
    monkeypatch.setattr(
        policy, "sample", lambda prompts, *a, **k: sampled.extend(prompts.rows) or sample(prompts, *a, **k)
    )
    items = every_view([example(i) for i in range(2)], by_example(view(i, v) for i in range(2) for v in range(3)))
    answerer = answerers.TextAnswerer(policy, policy.params(temperature, 1.0, 6), 0)
    found = [answer for half in (items[:2], items[2:]) for answer in answerer.answer(half)]
    assert len(sampled) == asked
    alone = [answerers.TextAnswerer(policy, answerer.params, 0).answer([item])[0] for item in items]
    assert [answer.ids for answer in found] == [answer.ids for answer in alone]


def finish_earlier_stages(run):
    """As if synth and align had just ended: what the chain asks before it lets anyone evaluate."""
    inputs = {}
    for name in ("synth", "align"):
        outside = align.inputs(run.recipe) if name == "align" else {}
        run.stage(name, settings(run.recipe, name), inputs | outside).finish({"dataset": f"{name} made it"})
        inputs |= {f"{name}.key": run.key(name), f"{name}.dataset": f"{name} made it"}


def journals(run, kind):
    return {path: path.read_bytes() for path in run.path("eval").glob(f"*/*{kind}.jsonl")}


def test_predict_answers_and_score_scores_what_eval_would(run, recipe, tmp_path):
    finish_earlier_stages(run)
    with pytest.raises(RunError, match=r"answers of run tiny are not written yet → first `rba predict \S+recipe.toml"):
        chain(recipe, run, "score")
    assert not run.path("eval").exists()
    chain(recipe, run, "predict")
    assert run.outputs("eval") is None
    assert not run.path("results.json").exists()
    assert journals(run, "")
    assert not journals(run, ".scores")
    answers = journals(run, "")
    (planned,) = chain(recipe, run, "score", dry_run=True)
    assert sum(row.count for row in planned.plan.rows) == sum(block.count(b"\n") for block in answers.values())
    chain(recipe, run, "score")
    assert run.outputs("eval")
    assert {path: journals(run, "")[path] for path in answers} == answers
    halves = json.loads(run.path("results.json").read_text())
    said = []
    for only in ("predict", "score", "eval"):
        chain(recipe, run, only, say=said.append)
    assert said == ["eval: finished before, skipped"] * 3
    run.path("results.json").unlink()
    run.reopen("eval")
    shutil.rmtree(run.path("eval"))
    chain(recipe, run, "eval")
    assert_close(json.loads(run.path("results.json").read_text()), halves)


def test_scored_again_from_the_same_answers(run, recipe, monkeypatch):
    finish_earlier_stages(run)
    chain(recipe, run, "eval")
    answers, whole = journals(run, ""), json.loads(run.path("results.json").read_text())
    score_stage.forget(run)
    assert run.outputs("eval") is None
    assert not journals(run, ".scores")
    with monkeypatch.context() as patch:
        patch.setattr(stage.Evaluation, "answer", missing)
        chain(recipe, run, "score")
    assert {path: journals(run, "")[path] for path in answers} == answers
    assert_close(json.loads(run.path("results.json").read_text()), whole)


def test_predict_counts_no_scores_and_refuses_changed_settings(run, recipe):
    finish_earlier_stages(run)
    (planned,) = chain(recipe, run, "predict", dry_run=True)
    assert "scores" not in {row.what for row in planned.plan.rows}
    chain(recipe, run, "predict")
    changed = Recipe.model_validate({**recipe.model_dump(), "eval": {"limit": 2}})
    for only in ("predict", "score", "eval"):
        with pytest.raises(RunError, match=r"eval\."):
            chain(changed, run, only)
    with pytest.raises(UsageError, match=r"no \[eval\] section"):
        chain(recipe.model_copy(update={"eval": None}), run, "predict")


def test_loss_and_teacher_scores_agree_with_each_other():
    policy = new_policy()
    items = [Item(example(i), view(i, 0)) for i in range(3)]
    loss = answerers.ReferenceLoss(policy, base=True, text=True).answer(items)
    ids = [policy.completion_ids(item.example.answer).tolist() for item in items]
    scored = answerers.teacher_scores(policy)([item.example.instruction for item in items], [*ids[:2], []])
    for answer, logprobs in zip(loss[:2], scored[:2], strict=True):
        assert answer.values["nll"] == pytest.approx(-np.mean(logprobs), abs=1e-4)
    assert scored[2] is None
    speech = answerers.ReferenceLoss(policy, base=True).answer(items)
    assert speech[0].values["nll"] != pytest.approx(loss[0].values["nll"], abs=1e-4)


def test_wrong_audio_is_another_instruction_in_the_same_voice():
    views = [view(i, v) for i in range(4) for v in range(3)]
    items = every_view([example(i) for i in range(4)], by_example(views))
    for item, clip in ((item, wrong_audio(items, views)[item.id]) for item in items):
        assert clip.example_id != item.example.id
        assert clip.spec.voice == item.view.spec.voice
    lonely = [view(0, 0), view(1, 1)]
    borrowed = wrong_audio([Item(example(0), lonely[0])], lonely)
    assert borrowed["e0/0/0"].example_id == "e1"
    with pytest.raises(DataError, match="at least two"):
        wrong_audio([Item(example(0), lonely[0])], lonely[:1])


def test_one_damaged_clip_fails_alone(tmp_path):
    policy = new_policy()
    items = [Item(example(0), view(0, 0)), Item(example(1), view(1, 0, b"not audio")), Item(example(2), view(2, 0))]
    answerer = answerers.SpeechAnswerer(policy, policy.params(0.0, 1.0, 4), 0)
    collect(in_turn(answerer), items, tmp_path / "open.jsonl", {"temperature": 0.0}, batch_size=3, label="test")
    found = {row["id"]: row for row in load_rows([tmp_path / "open.jsonl"])}
    assert [found[item.id]["stop"] == "error" for item in items] == [False, True, False]
    assert found["e1/0/0"]["error"]


def test_only_what_is_missing_is_answered(tmp_path):
    asked = []

    class Counting:
        def answer(self, items):
            asked.extend(item.id for item in items)
            return [Answered("yes", "end") for _ in items]

    items = [Item(example(i), view(i, 0, b"x")) for i in range(5)]
    for upto in (2, 5, 5):
        collect(in_turn(Counting()), items[:upto], tmp_path / "a.jsonl", {}, batch_size=2, label="test")
    assert sorted(asked) == [item.id for item in items]


def test_keys_are_shared_by_arms_and_differ_by_item():
    one = Item(example(0), view(0, 1, b""), 0)
    again = Item(example(0), view(0, 1, b""), 0)
    assert one.key(3).digest() == again.key(3).digest()
    others = [
        Item(example(0), view(0, 2, b"")),
        Item(example(0), view(0, 1, b""), 1),
        Item(example(1), view(1, 1, b"")),
    ]
    assert len({item.key(3).digest() for item in [one, *others]} | {one.key(4).digest()}) == 5


def test_schedule_gives_arms_what_base_got():
    views = by_example(view(i, v, b"") for i in range(4) for v in range(3))
    instructions = Spoken([example(i) for i in range(4)], views)
    nothing = Spoken([], {})
    everyone = ("text", "cascade", "self-cascade", "wrong-audio")
    base = {w.task: w for w in reference_work(everyone, instructions, nothing, 3, 0) if w.folder == "base"}
    arm = {w.task: w for w in arm_work("sft-s0", everyone, instructions, nothing, 3, 0)}
    assert [i.id for i in arm["open"].items] == [i.id for i in base["open"].items]
    assert len(base["open"].items) == 4 * 3 + 4 * 2
    assert {i.sample for i in repeats(instructions.examples, views, 3, 0)} == {1, 2}
    assert len({chosen_view(example(i), [view(i, v, b"") for v in range(3)], 0).index for i in range(30)}) == 3
    assert {w.folder for w in reference_work(("text",), instructions, nothing, 2, 0)} == {"base", "text"}
    assert not any(w.kind == "qa" for w in base.values())
    assert len(base["nll"].items) == len(arm["nll"].items) == 4
    asked = (
        reference_work(everyone, nothing, instructions, 2, 0),
        arm_work("sft-s0", everyone, nothing, instructions, 2, 0),
    )
    wrong = [[w.folder for w in own if w.task == "qa-wrong-audio"] for own in asked]
    assert wrong == [["base"], []]


def test_recipe_without_eval_is_refused(run):
    with pytest.raises(UsageError, match=r"no \[eval\]"):
        stage.run(Recipe.model_validate({"name": "x"}), run)


def test_texts_that_the_connector_has_heard_are_left_out_and_counted(run, recipe, tmp_path, capsys):
    connector = tmp_path / "connector"
    connector.mkdir()
    other = recipe.model_copy(update={"align": recipe.align.model_copy(update={"connector": str(connector)})})
    assert len(stage.Evaluation.open(other, run).instructions.examples) == 4
    assert "has no signatures.bin" in capsys.readouterr().err
    Signatures.build([TEXTS[1].upper()]).save(connector / "signatures.bin")
    evaluation = stage.Evaluation.open(other, run)
    assert [one.id for one in evaluation.instructions.examples] == ["e0", "e2", "e3"]
    assert evaluation.notes == ["1 instructions are too like what the connector was trained on: left out"]
    Signatures.build(TEXTS).save(connector / "signatures.bin")
    with pytest.raises(UsageError, match="trained on texts like each of the 4"):
        stage.Evaluation.open(other, run)
