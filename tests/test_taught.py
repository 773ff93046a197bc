"""The reference `teacher` of `rba eval --model`: who is meant, what it reads, its failures, another one's answers."""

from __future__ import annotations

import json

import pytest
from loopback import Loopback, chat, status
from test_evaluation import SHORT, dataset, local, rba
from tiny import TEXTS, tiny_lm, tiny_tokenizer

from rbalign.config.sections import TeacherConfig
from rbalign.errors import UsageError
from rbalign.eval.tasks.scored import read_scored
from rbalign.stages.evaluation import ModelEvaluation
from rbalign.stages.exams import Settings, Wanted
from rbalign.stages.subjects import Subject
from rbalign.stages.taught import teacher_digest, teacher_named

SETTINGS = Settings(SHORT, workers=1, references=("teacher",))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RBA_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def server_file(path, server, **more):
    lines = {"url": f'"{server.url}"', "model": '"big/Teacher"', "can": '["chat"]', "retries": "0", **more}
    path.write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))
    return path


def with_teacher(tmp_path, teacher, subject_teacher=None, prompt=None):
    made = local(tmp_path, "disfluency", tmp_path / "set", Settings(SHORT, workers=1))
    subject = Subject("tiny", "a tiny model", "0123", prompt, made.subject.open, teacher=subject_teacher)
    wanted = Wanted("tiny", made.wanted.tasks, made.wanted.data, made.output, SETTINGS, teacher=teacher)
    return ModelEvaluation(wanted, subject, made.exams)


def test_a_server_that_teaches_reads_the_written_request(tmp_path):
    dataset(tmp_path / "set", 2)
    with Loopback(lambda asked: chat(f"{asked.body['messages'][-1]['content']} tea")) as server:
        file = server_file(tmp_path / "teacher.toml", server)
        found = with_teacher(tmp_path, str(file), prompt="Be brief.")
        found.run()
        assert len(server.asked) == 4
        assert {one.body["messages"][0]["content"] for one in server.asked} == {"Be brief."}
        assert {one.body["messages"][1]["content"] for one in server.asked} == set(TEXTS[:2])
        assert {one.body["temperature"] for one in server.asked} == {0.0}
        found.run()
        assert len(server.asked) == 4, "answers are kept"
    folder = tmp_path / "out" / "disfluency"
    scored = read_scored(folder / "teacher.json")
    assert scored["answered"]["by"] == "teacher: big/Teacher"
    assert next(one["value"] for one in scored["figures"] if one["part"] == "fluent") == 100.0
    answers = [json.loads(line)["response"] for line in (folder / "teacher.jsonl").open()]
    assert sorted(answers) == sorted(f"{text} tea" for text in TEXTS[:2] for _ in range(2))


def test_another_teacher_has_another_journal_and_its_failures_count(tmp_path):
    dataset(tmp_path / "set", 2)
    with Loopback(lambda _: chat("tea")) as server:
        with_teacher(tmp_path, str(server_file(tmp_path / "a.toml", server))).run()
    with Loopback(lambda asked: chat("tea") if TEXTS[0] in str(asked.body) else status(400)) as server:
        other = server_file(tmp_path / "b.toml", server, model='"other/Teacher"')
        with_teacher(tmp_path, str(other)).run()
        assert len(server.asked) == 4
    folder = tmp_path / "out" / "disfluency"
    assert len(list(folder.glob("teacher.*.answers.jsonl"))) == 2
    assert len(list(folder.glob("tiny.*.answers.jsonl"))) == 1, "the model was asked once"
    counts = read_scored(folder / "teacher.json")["counts"]
    assert (counts["items"], counts["answered"], counts["failed"]) == (4, 2, 2)


def test_a_local_teacher_answers_here(tmp_path):
    dataset(tmp_path / "set", 2)
    folder = tmp_path / "lm"
    tiny_lm().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with_teacher(tmp_path, str(folder)).run()
    rows = [json.loads(line) for line in (tmp_path / "out" / "disfluency" / "teacher.jsonl").open()]
    assert len(rows) == 4
    assert all(isinstance(row["response"], str) for row in rows)
    by_text = {row["id"].partition("/")[0]: row["response"] for row in rows}
    assert all(by_text[row["id"].partition("/")[0]] == row["response"] for row in rows), "greedy, whatever the clip"


def test_the_teacher_is_the_runs_own_or_named(tmp_path):
    own = TeacherConfig(model="qwen")
    assert teacher_named(None, own) is own
    assert teacher_named("llama", own).model == "llama"
    with pytest.raises(UsageError, match="does not say who taught it"):
        teacher_named(None, None)
    with Loopback(lambda _: chat()) as server:
        first = teacher_named(str(server_file(tmp_path / "a.toml", server)), None)
        second = teacher_named(str(server_file(tmp_path / "b.toml", server, model='"x"')), None)
        same = teacher_named(str(server_file(tmp_path / "c.toml", server, concurrency="3")), None)
    assert len({teacher_digest(one) for one in (first, second, same)}) == 2


def test_bad_teachers_are_one_line(tmp_path, capsys):
    (tmp_path / "s.toml").write_text('url = "http://127.0.0.1:9/v1"\nmodel = "m"\n')
    (tmp_path / "t.toml").write_text('url = "http://127.0.0.1:9/v1"\nmodel = "m"\ncann = ["chat"]\n')
    words = ["eval", "--model", "s.toml", "--tasks", "smoke-qa", "--output", "o"]
    for more, parts in (
        (["--teacher", "x"], ["--teacher without its reference"]),
        (["--references", "teacher"], ["does not say who taught it", "--teacher"]),
        (["--references", "teacher", "--teacher", "t.toml"], ["t.toml: can is missing"]),
    ):
        assert rba(*words, *more) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert all(part in err for part in parts), err
    assert not (tmp_path / "o").exists()
