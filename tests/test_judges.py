"""Judges: prompts that no answer can break, verdicts that are read or counted, a real server that misbehaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import Loopback, chat, status, wrong_json

from rbalign import scorers
from rbalign.config.endpoints import JudgeEndpoint
from rbalign.config.load import load_judge
from rbalign.errors import DataError, UsageError
from rbalign.eval.judges import _RESULT, _VERDICT, LlmJudge, Pair, ReferenceJudge, last, prompt, yes
from rbalign.remote.client import Client, EndpointError


def judge_at(server, tmp_path=None, **more):
    config = JudgeEndpoint(**{"url": server.url, "model": "tiny-judge", "retries": 0, **more})
    return LlmJudge(config, Client(config, tmp_path))


def longer_first(asked):
    """Prefers the longer answer, wherever it is shown."""
    text = asked.body["messages"][1]["content"]
    first, second = text.split("Answer 1:\n")[1].split("\n\nAnswer 2:\n")
    return chat(
        f"I like length.\nVerdict: {'tie' if len(first) == len(second) else 1 if len(first) > len(second) else 2}"
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Verdict: 1", "1"),
        ("I write 'Verdict: 1' or 'Verdict: 2'.\n**Verdict: 2**", "2"),
        ("verdict:  Tie.", "tie"),
        ("Verdict: **1**", "1"),
        ("Verdict: 12", None),
        ("the first", None),
        ("", None),
        (None, None),
    ],
)
def test_the_last_verdict_counts(text, found):
    assert last(_VERDICT, text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [("Result: YES", True), ("Result: no", False), ("Result: <YES>", True), ("Result: NO ... Result: YES", True),
     ("YES", None), ("Result: yesterday", None)],
)  # fmt: skip
def test_results_are_read(text, found):
    assert yes(text) is found


@given(st.text())
def test_reading_a_judgement_never_raises(text):
    assert last(_VERDICT, text) in (None, "1", "2", "tie")
    assert last(_RESULT, text) in (None, "yes", "no")


def test_prompts_put_all_parts_in_at_once():
    """An answer that looks like a place is not filled in, and what is filled in is not read again."""
    filled = prompt("pairwise").filled(request="{first}", first="{second}", second="B")
    assert "Request:\n{first}" in filled
    assert "Answer 1:\n{second}" in filled
    assert "Answer 2:\nB" in filled
    for kind, places in (("pairwise", "request first second"), ("answer", "request accepted answer"),
                         ("reasoning", "request answer")):  # fmt: skip
        assert all(f"{{{place}}}" in prompt(kind).user for place in places.split())
        version, digest = prompt(kind).name.split()
        assert version.startswith(kind)
        assert len(digest) == 10


def test_a_server_judges_and_the_cache_remembers(tmp_path):
    pairs = [Pair("Hi", "long answer", "short"), Pair("Hi", "a", "bb"), Pair("Hi", "aa", "bb")]
    with Loopback(longer_first) as server:
        judge = judge_at(server, tmp_path)
        assert judge.prefer(pairs) == [1.0, 0.0, 0.5]
        assert len(server.asked) == 3
        body = server.asked[0].body
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny-judge", 0.0, 512)
        assert judge.prefer(pairs) == [1.0, 0.0, 0.5]
        assert len(server.asked) == 3, "a prompt that was answered is not sent again"
        assert judge.counts["cache_hits"] == 3
        judge.close()
        other = judge_at(server, tmp_path, model="other-judge")
        other.prefer(pairs[:1])
        assert len(server.asked) == 4, "another model is another judge"
        other.close()
        assert "tiny-judge" in judge.protocol
        assert prompt("pairwise").name in judge.protocol


def test_rubbish_and_refused_requests_are_none(tmp_path):
    def answer(asked):
        text = asked.body["messages"][1]["content"]
        if "rubbish" in text:
            return chat("I cannot decide.")
        if "refuse" in text:
            return status(400, "too long")
        if "broken" in text:
            return wrong_json
        return chat("Result: YES")

    with Loopback(answer) as server:
        judge = judge_at(server, concurrency=1)
        assert judge.reasons(["?"] * 4, ["fine", "rubbish", "refuse", "broken"]) == [True, None, None, None]
        assert judge.right(["?"], ["fine"], [["Paris", "Lutetia"]]) == [True]
        assert "- Paris\n- Lutetia" in server.asked[-1].body["messages"][1]["content"]
        judge.close()


def test_a_judge_that_is_gone_stops_everything():
    with Loopback(lambda asked: status(401, "who are you")) as server:
        judge = judge_at(server)
        with pytest.raises(EndpointError, match="refuses"):
            judge.prefer([Pair("Hi", "a", "b")] * 20)
        judge.close()


def test_some_models_refuse_a_temperature():
    with Loopback(lambda asked: chat("Verdict: 1")) as server:
        judge = judge_at(server, temperature="none", length_field="max_completion_tokens", max_tokens=9)
        judge.prefer([Pair("Hi", "a", "b")])
        assert "temperature" not in server.asked[0].body
        assert server.asked[0].body["max_completion_tokens"] == 9
        assert "temperature" not in judge.protocol
        judge.close()


def test_the_offline_judge_prefers_what_is_nearer():
    judge = ReferenceJudge("chrf", scorers.build("chrf", against="reference"))
    pairs = [
        Pair("?", "The capital is Paris.", "No idea", "The capital is Paris."),
        Pair("?", "No idea", "The capital is Paris.", "The capital is Paris."),
        Pair("?", "same", "same", "The capital is Paris."),
    ]
    assert judge.prefer(pairs) == [1.0, 0.0, 0.5]
    assert not judge.llm
    with pytest.raises(DataError, match="needs a reference"):
        judge.prefer([Pair("?", "a", "b")])


@given(st.text(min_size=1).filter(str.strip), st.text(), st.text())
def test_the_offline_judge_is_symmetric_and_total(reference, a, b):
    judge = ReferenceJudge("chrf", scorers.build("chrf", against="reference"))
    there, back = judge.prefer([Pair("?", a, b, reference), Pair("?", b, a, reference)])
    assert there + back == 1.0


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('url = "http://x/v1"', ["model is missing"]),
        ('url = "http://x/v1"\nmodel = "m"\nkey_enf = "K"', ["unknown key", "key_enf", "did you mean 'key_env'"]),
        ('url = "x"\nmodel = "m"', ["url", "allowed"]),
        ('url = "http://x/v1"\nmodel = "m"\nmax_tokens = "9"', ["max_tokens", "allowed", "integer"]),
        ('url = "http://x/v1"\nmodel = "m"\nkey_env = "sk-secret"', ["key_env", "not shown"]),
        ("url =", ["not valid TOML"]),
    ],
)
def test_a_judges_file_is_checked_in_one_line(text, parts, tmp_path):
    path = tmp_path / "judge.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_judge(path)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert "sk-secret" not in str(error.value)


def test_a_judges_file(tmp_path):
    path = tmp_path / "judge.toml"
    path.write_text('url = "http://127.0.0.1:1/v1"\nmodel = "m"\nextra_body = {top_k = 1}\n')
    assert load_judge(path) == JudgeEndpoint(url="http://127.0.0.1:1/v1", model="m", extra_body={"top_k": 1})
