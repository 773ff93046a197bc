"""`rba eval --model`: who is meant, what is played, resume, failures in the denominator, references, refusals."""

from __future__ import annotations

import base64
import io
import json
import pickle
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from aligning import tiny_policy as policy_with_lora
from benchdata import CLOSED, CREATIVE, ifeval_row, parquet, rba, write_lines
from families import SYSTEM, family_model
from loopback import Loopback, chat, clip, status
from tiny import TEXTS, tiny_clip, tiny_processor, tiny_speech_model

from rbalign.audio.io import to_flac
from rbalign.config.sections import Sampling
from rbalign.data.dataset import DatasetWriter
from rbalign.errors import DataError, RunError, UsageError
from rbalign.eval.endpoint import EndpointAnswerer
from rbalign.eval.tasks.clips import clips
from rbalign.eval.tasks.items import TaskData, TaskItem, load
from rbalign.eval.tasks.measure import Rules, measure
from rbalign.eval.tasks.registry import task_named
from rbalign.eval.tasks.scored import read_scored
from rbalign.eval.tasks.sheet import Sheet
from rbalign.keys import Key
from rbalign.speechlm.policy import SpeechPolicy
from rbalign.speechlm.whole import open_whole, save_whole
from rbalign.stages import evaluation, subjects
from rbalign.stages.evaluation import ModelEvaluation, prepare
from rbalign.stages.exams import REFERENCES, Settings, Wanted, exam_of
from rbalign.stages.subjects import Subject, subject_named
from rbalign.types import Example, View, ViewSpec

QA = "web-questions-twinkstart"
SHORT = Sampling(temperature=0.0, max_new_tokens=4)


pytestmark = pytest.mark.usefixtures("home")


# ---- data and models -----------------------------------------------------------------------------------------------


def questions(folder, count=6, broken=()):
    """Web Questions as the hub has it: `audio: {bytes, path}`; the answer to question i is the length of its clip."""
    audio = [b"no sound" if i in broken else clip(0.2 + 0.1 * i, 16_000) for i in range(count)]
    struct = pa.array([{"bytes": one, "path": f"{i}.wav"} for i, one in enumerate(audio)])
    text = [f"Question {i}?" for i in range(count)]
    parquet(
        folder / "data" / "test-0.parquet", question=text, answers=[[str(2 + i)] for i in range(count)], audio=struct
    )
    return folder


def dataset(folder, count=4, damaged=()):
    """A dataset folder with a fluent and a corrected clip of each question."""
    writer = DatasetWriter(folder, {"teacher": "none", "recipe": "0"})
    writer.add_examples(
        [Example(f"e{i}", "test", TEXTS[i], TEXTS[i], labels={"aliases": ["tea"]}) for i in range(count)]
    )
    views = []
    for i in range(count):
        for v, delivery in enumerate(("fluent", "correction")):
            flac = b"x" if (i, v) in damaged else to_flac(tiny_clip(0.4 + 0.05 * i, seed=i + v))
            said = None if v == 0 else f"well, {TEXTS[i]}"
            views.append(View(f"e{i}", v, "test", ViewSpec("af_sarah", delivery=delivery), 0.5, flac, said))
    writer.commit_views("test", 0, views)
    writer.finish()
    return folder


def tiny_policy():
    return SpeechPolicy(tiny_speech_model(), tiny_processor(), system="Be brief.")


def local(tmp_path, task, place, settings, subject=None):
    subject = subject or Subject("tiny", "a tiny model", "0123", None, tiny_policy)
    wanted = Wanted("tiny", (task,), {task: str(place)}, tmp_path / "out", settings)
    return ModelEvaluation(wanted, subject, [exam_of(task_named(task), str(place), settings)])


def server_file(tmp_path, server, **more):
    lines = {"url": f'"{server.url}"', "model": '"voice/LM"', "retries": "0", **more}
    path = tmp_path / "server.toml"
    path.write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))
    return path


def length_of(asked):
    """What the loopback server says: tenths of a second of the clip that it was sent."""
    part = asked.body["messages"][-1]["content"][0]
    assert part["type"] == "input_audio"
    assert part["input_audio"]["format"] == "wav"
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])))
    assert rate == 16_000
    return chat(f"It is {round(10 * len(samples) / rate)}.")


# ---- a server ------------------------------------------------------------------------------------------------------


def test_a_server_answers_clips_and_a_second_start_asks_nothing(tmp_path, capsys):
    data = questions(tmp_path / "data")
    with Loopback(length_of) as server:
        words = ("eval", "--model", server_file(tmp_path, server, cache="false"), "--tasks", QA, "--data", data)
        words = (*words, "--output", tmp_path / "out")
        assert rba(*words, "--dry-run") == 0
        assert (server.asked, (tmp_path / "out").exists()) == ([], False)
        assert rba(*words, "--limit", 4) == 0
        assert len(server.asked) == 4
        assert rba(*words) == 0
        assert len(server.asked) == 6, "the four answers are kept, whatever the limit was"
        capsys.readouterr()
        assert rba(*words) == 0
        assert len(server.asked) == 6
        assert rba(*words, "--temperature", 0.5) == 0
        assert len(server.asked) == 12, "other settings are other answers"
    assert "100.00 %" in capsys.readouterr().out
    scored = read_scored(tmp_path / "out" / QA / "voice-lm.json")
    assert scored["counts"] | {"passed_over": 0} == scored["counts"]
    assert (scored["counts"]["items"], scored["counts"]["answered"]) == (6, 6)
    assert scored["answered"]["by"] == "voice/LM behind a server"
    asked = server.asked[0].body
    assert (asked["temperature"], asked["max_tokens"], asked["model"]) == (0.0, 128, "voice/LM")
    assert len({one.body["seed"] for one in server.asked[:6]}) == 6
    summary = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert summary["figures"][0]["model"] == "voice-lm"
    assert str(tmp_path) not in json.dumps(summary) + json.dumps(scored)


def test_many_requests_at_once_and_never_too_many(tmp_path):
    import threading

    two = threading.Barrier(2, timeout=20)

    def together(asked):
        two.wait()  # answers only when another request is under way
        return length_of(asked)

    data = questions(tmp_path / "data")
    with Loopback(together) as server:
        file = server_file(tmp_path, server, concurrency="2")
        prepare(Wanted(str(file), (QA,), {QA: str(data)}, tmp_path / "out")).run()
        assert server.most_at_once == 2


def test_what_fails_stays_in_the_denominator(tmp_path, capsys):
    """One request that the server calls bad, one clip that is none."""
    data = questions(tmp_path / "data", broken=(5,))

    def answer(asked):
        made = length_of(asked)
        return status(400, "too odd") if "3" in made["choices"][0]["message"]["content"] else made

    with Loopback(answer) as server:
        file = server_file(tmp_path, server)
        assert rba("eval", "--model", file, "--tasks", QA, "--data", data, "--output", tmp_path / "out") == 0
        assert len(server.asked) == 5
    scored = read_scored(tmp_path / "out" / QA / "voice-lm.json")
    assert scored["counts"]["items"] == 6
    assert scored["counts"]["failed"] == 2
    assert scored["figures"][0]["value"] == pytest.approx(100 * 4 / 6)
    assert "0 missing, 2 failed: both stay in the denominator" in " ".join(scored["notes"])
    lines = (tmp_path / "out" / QA / "voice-lm.jsonl").read_text().splitlines()
    errors = {row["id"]: row.get("error", "") for row in map(json.loads, lines)}
    assert "too odd" in errors["1"]
    assert "cannot be read" in errors["5"]


def test_a_server_that_is_gone_ends_it_and_the_next_start_goes_on(tmp_path):
    data, told = questions(tmp_path / "data"), []

    def answer(asked):
        told.append(length_of(asked)["choices"][0]["message"]["content"])
        return status(401, "no money left") if len(told) > 3 else length_of(asked)

    with Loopback(answer) as server:
        file = server_file(tmp_path, server, concurrency="1", cache="false")
        words = ("eval", "--model", file, "--tasks", QA, "--data", data, "--output", tmp_path / "out")
        assert rba(*words) == 1
        (journal,) = (tmp_path / "out" / QA).glob("*.answers.jsonl")
        kept = journal.read_text().splitlines()
        assert len(kept) == 3
        assert not (tmp_path / "out" / QA / "voice-lm.json").exists(), "no score of half a task"
        server.answer = length_of
        assert rba(*words) == 0
        assert len(server.asked) == 4 + 3
        assert journal.read_text().splitlines()[:3] == kept
    assert read_scored(tmp_path / "out" / QA / "voice-lm.json")["figures"][0]["value"] == 100.0


def test_a_torn_last_line_costs_one_answer(tmp_path):
    data = questions(tmp_path / "data")
    with Loopback(length_of) as server:
        wanted = Wanted(str(server_file(tmp_path, server, cache="false")), (QA,), {QA: str(data)}, tmp_path / "out")
        prepare(wanted).run()
        (journal,) = (tmp_path / "out" / QA).glob("*.answers.jsonl")
        journal.write_bytes(journal.read_bytes()[:-20])
        prepare(wanted).run()
        assert len(server.asked) == 7


def write_ifeval_with_clips(folder):
    rows = {"closed_ended_questions": CLOSED, "creative_writing": CREATIVE}
    for name, given in rows.items():
        lines = [
            ifeval_row(one, arguments) | {"audio_filepath": f"audios/{place}.wav", "instruction": f"Do {one}."}
            for place, (one, arguments, _, _) in enumerate(given)
        ]
        write_lines(folder / "eval_data" / f"{name}.jsonl", lines)
    reasoning = [ifeval_row(metric="cot") | {"audio_filepath": "../../etc/passwd"}]
    write_lines(folder / "eval_data" / "chain-of-thought.jsonl", reasoning)
    for place in range(4):
        (folder / "audios").mkdir(exist_ok=True)
        (folder / "audios" / f"{place}.wav").write_bytes(clip(0.3))
    return folder


def test_written_instructions_go_beside_the_clip_and_the_text_reference_reads(tmp_path):
    data = write_ifeval_with_clips(tmp_path / "data")

    def answer(asked):
        content = asked.body["messages"][-1]["content"]
        return chat("HELLO" if isinstance(content, str) else '{"a": 1}')

    with Loopback(answer) as server:
        file = server_file(tmp_path, server)
        words = ("eval", "--model", file, "--tasks", "speech-ifeval", "--data", data, "--references", "text")
        assert rba(*words, "--system", "Obey.", "--output", tmp_path / "out") == 0
    heard = [one.body["messages"] for one in server.asked if not isinstance(one.body["messages"][-1]["content"], str)]
    read = [one.body["messages"] for one in server.asked if isinstance(one.body["messages"][-1]["content"], str)]
    assert {(turns[0]["content"], turns[-1]["content"][1]["text"]) for turns in heard} == {
        ("Obey.", f"Do {one}.") for one, *_ in [*CLOSED, *CREATIVE]
    }
    assert "hi (Gender: Male)\n\nDo change_case:english_capital." in {turns[-1]["content"] for turns in read}
    ours, theirs = (read_scored(tmp_path / "out" / "speech-ifeval" / f"{name}.json") for name in ("voice-lm", "text"))
    rates = [{f["part"]: f["value"] for f in one["figures"] if f["metric"] == "rate"} for one in (ours, theirs)]
    assert (rates[0]["closed"], rates[1]["closed"]) == (25.0, 25.0)  # JSON here, capitals there
    assert ours["against"]["name"] == "text"
    assert ours["counts"]["failed"] == 1, "a path out of the data's folder is no clip"


# ---- models of this process ------------------------------------------------------------------------------------------


def test_a_model_answers_a_dataset_and_goes_on(tmp_path):
    place = dataset(tmp_path / "set", damaged=((1, 1),))
    first = local(tmp_path, "disfluency", place, Settings(SHORT, limit=2, workers=1, batch_size=2))
    assert first.counted() == [["disfluency", "tiny", "2", "4", "0", "0", "4"]]
    first.run()
    (journal,) = (tmp_path / "out" / "disfluency").glob("*.answers.jsonl")
    kept = journal.read_text().splitlines()
    assert len(kept) == 4
    row = json.loads(kept[0])
    assert row["settings"]["model"] == "0123"
    assert row["settings"]["task"] == "disfluency"
    whole = local(tmp_path, "disfluency", place, Settings(SHORT, workers=1, batch_size=3))
    assert whole.counted() == [["disfluency", "tiny", "4", "8", "4", "0", "4"]]
    whole.run()
    assert journal.read_text().splitlines()[:4] == kept
    alone = local(tmp_path / "alone", "disfluency", place, Settings(SHORT, workers=1, batch_size=1))
    alone.run()
    said = [{r["id"]: r["response"] for r in map(json.loads, (p / "out/disfluency/tiny.jsonl").open())}
            for p in (tmp_path, tmp_path / "alone")]  # fmt: skip
    assert said[0] == said[1], "batches and restarts change nothing"
    assert [name for name, text in said[0].items() if text is None] == ["e1/1"]
    scored = read_scored(tmp_path / "out" / "disfluency" / "tiny.json")
    assert (scored["counts"]["items"], scored["counts"]["failed"]) == (8, 1)
    assert scored["predictions"]


def test_a_limited_score_says_so(tmp_path):
    place = dataset(tmp_path / "set")
    local(tmp_path, "disfluency", place, Settings(SHORT, limit=2, workers=1)).run()
    scored = read_scored(tmp_path / "out" / "disfluency" / "tiny.json")
    assert scored["counts"]["items"] == 4
    assert "only the first 2 of 4 instructions are asked" in scored["notes"]
    file = tmp_path / "out" / "disfluency" / "tiny.jsonl"
    words = ("score", "--task", "disfluency", "--data", place, file, "--out", tmp_path / "again.json", "--limit", 2)
    assert rba(*words) == 0
    assert read_scored(tmp_path / "again.json")["figures"] == scored["figures"]


def test_references_read_what_was_said_or_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "whisper", lambda: lambda views: [f"heard {view.id}" for view in views])
    settings = Settings(SHORT, workers=1, references=tuple(name for name in REFERENCES if name != "teacher"))
    local(tmp_path, "disfluency", dataset(tmp_path / "set", 2), settings).run()
    folder = tmp_path / "out" / "disfluency"
    rows = {p.name.partition(".")[0]: [json.loads(x) for x in p.open()] for p in folder.glob("*.answers.jsonl")}
    assert set(rows) == {"tiny", "text", "own-reading", "cascade", "self-cascade"}
    assert {row["prompt"] for row in rows["text"]} == {row["prompt"] for row in rows["own-reading"]} == set(TEXTS[:2])
    assert {row["heard"] for row in rows["cascade"]} == {f"heard e{i}/{v}" for i in range(2) for v in range(2)}
    assert {row["prompt"] for row in rows["tiny"]} == {f"<e{i}/{v}>" for i in range(2) for v in range(2)}
    assert read_scored(folder / "cascade.json")["answered"]["by"] == "cascade: the same text LLM, untouched"
    assert read_scored(folder / "own-reading.json")["answered"]["by"] == "own-reading: a tiny model"


def test_own_reading_is_by_the_arm_and_text_by_the_untouched_model(tmp_path):
    """What an arm forgot in reading: its LoRA is on in one and off in the other."""

    def policy():
        arm = policy_with_lora()
        torch.manual_seed(0)
        for name, weight in arm.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
        return arm

    for base, same in ((False, False), (True, True)):
        subject = Subject("tiny", "an arm", f"{base}", None, policy, base=base)
        settings = Settings(SHORT, workers=1, references=("text", "own-reading"))
        out = tmp_path / str(base)
        local(out, "disfluency", dataset(out / "set", 2), settings, subject).run()
        found = [
            [json.loads(line)["response"] for line in (out / "out" / "disfluency" / f"{name}.jsonl").open()]
            for name in ("text", "own-reading")
        ]
        assert (found[0] == found[1]) is same


def test_a_comparison_takes_the_text_reference_or_waits(tmp_path, capsys):
    rows = [
        {"instruction": f"Say {i}", "input": "", "output": f"The number is {i}.", "audio": f"{i}.wav"} for i in range(2)
    ]
    write_lines(tmp_path / "data" / "a.jsonl", rows)
    for i in range(2):
        (tmp_path / "data" / f"{i}.wav").write_bytes(clip(0.3))

    def answer(asked):
        content = asked.body["messages"][-1]["content"]
        return chat(content.replace("Say", "The number is") + "." if isinstance(content, str) else "Hm.")

    with Loopback(answer) as server:
        words = ("eval", "--model", server_file(tmp_path, server), "--tasks", "spoken-alpaca")
        words = (*words, "--data", tmp_path / "data", "--output", tmp_path / "out")
        assert rba(*words) == 0
        out = capsys.readouterr().out
        assert "spoken-alpaca: answered, not scored" in out
        assert "index.html" not in out
        asked = len(server.asked)
        assert rba(*words, "--references", "text", "--judge", "chrf", "--answers-only") == 0
        assert "spoken-alpaca: answered, not scored" in capsys.readouterr().out
        folder = tmp_path / "out" / "spoken-alpaca"
        assert not list(folder.glob("*.json"))
        with (folder / "voice-lm.jsonl").open() as file:
            assert all(json.loads(line)["response"] == "Hm." for line in file)
        assert len(server.asked) == asked + 2, "the reference alone was new"
        assert rba(*words, "--references", "text", "--judge", "chrf") == 0
    found = read_scored(tmp_path / "out" / "spoken-alpaca" / "voice-lm.json")
    assert found["figures"][0]["metric"] == "winrate@text"
    assert found["figures"][0]["value"] == 0.0


def test_another_model_does_not_write_into_these_answers(tmp_path):
    place = dataset(tmp_path / "set", 2)
    local(tmp_path, "disfluency", place, Settings(SHORT, workers=1)).run()
    with pytest.raises(RunError, match=r"holds answers of tiny \(0123\), not of tiny \(4567\)"):
        local(tmp_path, "disfluency", place, Settings(), Subject("tiny", "another", "4567", None, tiny_policy))


def test_instructions_of_a_batch_stay_with_their_clips(tmp_path):
    """Each clip with its own instruction, in one batch or alone."""
    from rbalign.eval.answerers import SpeechAnswerer
    from rbalign.eval.items import Item

    policy = tiny_policy()
    views = [View(f"e{i}", 0, "test", ViewSpec("v"), 0.5, to_flac(tiny_clip(0.5, seed=i))) for i in range(3)]
    items = [
        Item(Example(v.example_id, "test", "", ""), v, beside=b)
        for v, b in zip(views, ("Sing.", "", "Go."), strict=True)
    ]
    answerer = SpeechAnswerer(policy, policy.params(0.0, 1.0, 6), 0, base=True)
    together = [one.text for one in answerer.answer(items)]
    assert together == [answerer.answer([item])[0].text for item in items]
    plain = policy.sample(policy.prompts(views[:1], "Sing."), policy.params(0.0, 1.0, 6), [[Key(0, "x")]], base=True)
    assert together[0] == policy.decode(plain[0][0].ids)


# ---- who is meant ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    from test_export import save_arm, tiny, write_data

    from rbalign.config.recipe import Recipe
    from rbalign.rundir.run import RunDir

    monkeypatch.setattr("rbalign.stages.policy.open_policy", lambda recipe, run, **options: tiny())
    monkeypatch.setattr(subjects, "_hears", lambda run: {"connector": "c"})
    recipe = Recipe.model_validate({"name": "small", "synth": {}, "align": {}, "eval": {}})
    with RunDir.open(tmp_path / "runs", recipe) as opened:
        write_data(opened.path("data"))
        save_arm(opened, "sft", 0, tiny(lora={"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}))
        yield opened


def test_a_run_its_arm_and_its_folder_are_one_model(run, tmp_path):
    from test_export import save_arm, tiny

    found = [subject_named(str(tmp_path / "runs" / name)) for name in
             ("small", "small:sft", "small:sft-s0", "small/arms/sft-s0", "small/arms/sft-s0/final")]  # fmt: skip
    assert {(one.name, one.digest) for one in found} == {("small-sft-s0", found[0].digest)}
    assert not found[0].base
    base = subject_named(str(tmp_path / "runs" / "small:base"))
    assert (base.name, base.base) == ("small-base", True)
    assert base.digest != found[0].digest
    policy = found[0].open()
    assert policy.may_differ
    save_arm(run, "sft", 0, tiny(lora={"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}, seed=3))
    assert subject_named(str(tmp_path / "runs" / "small")).digest != found[0].digest, "other weights, another model"
    save_arm(run, "kd", 0, tiny(lora={"r": 2, "lora_alpha": 4, "target_modules": "all-linear"}))
    with pytest.raises(UsageError, match=r"2 arms.*small:kd-s0"):
        subject_named(str(tmp_path / "runs" / "small"))
    with pytest.raises(UsageError, match="--system"):
        subject_named(str(tmp_path / "runs" / "small:sft"), "Sing.")


def test_an_exported_folder_is_opened_with_its_prompt(run, tmp_path):
    from rbalign.stages.export import export

    export(run, "sft", tmp_path / "model-x")
    (tmp_path / "model-x" / "recipe.toml").write_text('name = "small"\n[align]\nanswer_system = "Be kind."\n')
    subject = subject_named(str(tmp_path / "model-x"))
    assert (subject.name, subject.system, subject.base) == ("model-x", "Be kind.", True)
    assert "in the folder" in subject.text_reference
    assert subject_named(str(tmp_path / "model-x"), "Sing.").digest != subject.digest, "the prompt is part of the model"
    policy = subject.open()
    assert policy.system == "Be kind."
    assert not policy.may_differ


def test_what_save_whole_wrote_answers_as_before(tmp_path):
    policy = tiny_policy()
    view = View("e", 0, "test", ViewSpec("v"), 0.7, to_flac(tiny_clip(0.7)))

    def said(one):
        samples = one.sample(one.prompts([view]), one.params(0.0, 1.0, 8), [[Key(0, "x")]])
        return samples[0][0].ids.tolist()

    before = said(policy)
    (tmp_path / "m").mkdir()
    save_whole(policy, tmp_path / "m")
    assert said(open_whole(tmp_path / "m", "Be brief.")) == before
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="cannot be loaded"):
        open_whole(tmp_path / "m", None)


def test_a_speech_llm_of_transformers_is_evaluated(tmp_path):
    folder = tmp_path / "tiny-qwen2-audio"
    for part in family_model("qwen2_audio"):
        part.save_pretrained(folder)
    place = dataset(tmp_path / "set", 2)
    places, settings = {"disfluency": str(place)}, Settings(SHORT, workers=1)
    found = prepare(Wanted(str(folder), ("disfluency",), places, tmp_path / "out", settings, SYSTEM))
    assert (found.subject.name, found.subject.what) == ("tiny-qwen2-audio", "Qwen2-Audio")
    _, works = pickle.loads(pickle.dumps(partial(evaluation._reopen, found.wanted, found.subject)))()
    mine = [[item.id for item in work.items] for _, work in found.works()]
    assert [[item.id for item in work.items] for work in works] == mine, "a worker counts work as its parent does"
    found.run()
    assert read_scored(tmp_path / "out" / "disfluency" / "tiny-qwen2-audio.json")["counts"]["answered"] == 4


# ---- clips -----------------------------------------------------------------------------------------------------------


def test_every_clip_belongs_to_its_item(tmp_path):
    """Several files and row groups, and FLEURS' recordings of one sentence: order is the data's own."""
    import pyarrow.parquet as pq

    for part, ids in (("de_de", [7, 9, 7]), ("en_us", [9, 7])):
        rows = [
            {"id": i, "raw_transcription": f"{part} {i}", "audio": {"bytes": clip(0.1 * (1 + n)), "path": ""}}
            for n, i in enumerate(ids)
        ]
        (tmp_path / part / "test").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / part / "test" / "0.parquet", row_group_size=2)
    task = task_named("fleurs:de_de-en_us")
    data = load(task, tmp_path)
    found = clips(task, tmp_path, data.items, beside="Into English.")
    lengths = {name: round(item.view.seconds, 1) for name, item in found.played.items()}
    assert lengths == {"7/0": 0.1, "9/0": 0.2, "7/1": 0.3}
    assert found.played["9/0"].written() == "de_de 9\n\nInto English."
    assert soundfile.info(io.BytesIO(found.played["7/1"].view.flac)).duration == pytest.approx(0.3)


def test_a_copy_without_clips_is_refused(tmp_path):
    folder = tmp_path / "data"
    parquet(folder / "data" / "t.parquet", question=["Q?"], answers=[["a"]])
    task = task_named(QA)
    with pytest.raises(DataError, match="none of the columns audio"):
        clips(task, folder, load(task, folder).items)


def test_first_keeps_instructions_whole(tmp_path):
    data = load(task_named("disfluency"), dataset(tmp_path / "set", 3))
    kept = data.first(2)
    assert [item.id for item in kept.items] == ["e0/0", "e0/1", "e1/0", "e1/1"]
    assert kept.passed_over == {"e2/0", "e2/1"}
    assert data.first(None) == data


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["eval"], ["no recipe"]),
        (["eval", "smoke", "--limit", "3"], ["--limit without --model", "--eval.limit"]),
        (["eval", "smoke", "--model", "embedded"], ["smoke beside --model"]),
        (["eval", "--model", "embedded", "--taks", "x"], ["did you mean --tasks?"]),
        (["eval", "--model", "embedded", "--runs", "x"], ["--runs beside --model"]),
        (["eval", "--model", "embedded"], ["needs --tasks and --output"]),
        (["eval", "--model", "nowhere", "--tasks", QA, "--output", "o"], ["nowhere is no model", "OWNER/NAME"]),
        (["eval", "--model", "s.toml", "--tasks", "webq", "--output", "o"], ["unknown task 'webq'"]),
        (["eval", "--model", "s.toml", "--tasks", QA, "--output", "o"], ["needs its data", f"--data {QA}=FOLDER"]),
        (["eval", "--model", "s.toml", "--tasks", f"{QA},covost2:a_b", "--data", "x", "--output", "o"], ["which of"]),
        (["eval", "--model", "s.toml", "--tasks", "fleurs:a-b", "--data", "x", "--output", "o"], ["--beside"]),
        (["eval", "--model", "s.toml", "--tasks", QA, "--references", "txt", "--output", "o"], ["unknown reference"]),
        (["eval", "--suite", "rba-papr"], ["unknown suite 'rba-papr'", "did you mean 'rba-paper'?"]),
        (["eval", "--suite", "rba-paper", "--limit", "3"], ["--limit beside --suite rba-paper", "with --model"]),
        (["eval", "smoke", "--suite", "rba-paper"], ["smoke beside --suite", "rba eval RECIPE"]),
        (["eval", "--model", "s.toml", "--tasks", QA, "--output", "o", "--suite", "x"], ["unknown suite 'x'"]),
        (["eval", "--model", "bad.toml", "--tasks", QA, "--output", "o"], ["bad.toml", "did you mean 'sampling'"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(words, parts, tmp_path, capsys):
    (tmp_path / "s.toml").write_text('url = "http://127.0.0.1:9/v1"\nmodel = "m"\n')
    (tmp_path / "bad.toml").write_text('url = "http://127.0.0.1:9/v1"\nmodel = "m"\nsamplin = false\n')
    assert rba(*words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for part in parts:
        assert part in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.toml", "s.toml"]


def test_warmth_may_be_left_out_and_the_cascade_sends_words(tmp_path):
    from rbalign.config.load import load_speech_endpoint
    from rbalign.remote.client import Client

    data = questions(tmp_path / "data", 2)
    task = task_named(QA)
    found = clips(task, data, load(task, data).items)
    with Loopback(lambda asked: chat("Yes.")) as server:
        config = load_speech_endpoint(server_file(tmp_path, server, sampling="false", seed_field='""'))
        client = Client(config)
        listen = lambda views: [f"words of {view.id}" for view in views]  # noqa: E731
        answerer = EndpointAnswerer(config, client, SHORT, 0, transcribe=listen)
        answers = [answers[0] for _, answers, _ in answerer.batches([list(found.played.values())])]
        client.close()
    assert {one.heard for one in answers} == {"words of 0/0", "words of 1/0"}
    assert set(server.asked[0].body) == {"model", "messages", "max_tokens"}
    assert {one.body["messages"][0]["content"] for one in server.asked} == {"words of 0/0", "words of 1/0"}
    assert np.isfinite(answers[0].logprob)


def test_a_suite_beside_a_model_comes_after_its_scores(tmp_path, capsys):
    data = questions(tmp_path / "data")
    with Loopback(length_of) as server:
        words = ("eval", "--model", server_file(tmp_path, server), "--tasks", QA, "--data", data)
        words = (*words, "--output", tmp_path / "out", "--suite", "rba-paper")
        assert rba(*words, "--dry-run") == 0
        assert "Web Questions, accuracy" not in capsys.readouterr().out
        assert rba(*words) == 0
    out = capsys.readouterr().out
    scores, _, table = out.partition("RBA (2509.03526 v1)")
    assert "accuracy" in scores
    (row,) = (line for line in table.splitlines() if line.startswith("Web Questions, accuracy"))
    assert "voice-lm 100.00 %" in row
    assert "1 of 36 rows have a number of ours" in table


def test_win_rates_come_by_part_where_items_have_one():
    """Ours is longer in part a and wins there, two of two; in b it loses and ties."""

    class Longer:
        name, protocol, llm = "longer", "the longer answer", True

        def prefer(self, pairs):
            return [0.5 + 0.5 * ((len(p.first) > len(p.second)) - (len(p.first) < len(p.second))) for p in pairs]

    items = tuple(TaskItem(str(place), str(place), part) for place, part in enumerate("aabb"))
    ours = {"0": "long one", "1": "longer one", "2": "no", "3": "same"}
    sheet = Sheet(task_named("spoken-alpaca"), TaskData(items, "x"), ours, 50)
    measure(sheet, Rules("pairwise", Longer(), dict.fromkeys("0123", "kept"), "base"))
    found = {(one["metric"], one["part"]): (one["value"], one["n"]) for one in sheet.figures}
    assert {part: found["winrate@base", part] for part in ("", "a", "b")} == {
        "": (62.5, 4),
        "a": (100.0, 2),
        "b": (25.0, 2),
    }
    assert found["lc_winrate@base", "a"][0] > found["lc_winrate@base", "b"][0]
