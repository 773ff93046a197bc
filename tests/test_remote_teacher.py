"""A teacher behind HTTP: what it sends, what it makes of replies, what it refuses before any work."""

from __future__ import annotations

import pytest
from loopback import FakeTime, Loopback, chat, completion, redirects, status, wrong_json
from pydantic import ValidationError
from tiny import tiny_tokenizer

from rbalign.config.endpoints import TeacherEndpoint
from rbalign.config.sections import TeacherConfig
from rbalign.config.synth import FilterConfig, SynthConfig
from rbalign.errors import ServiceError, UsageError
from rbalign.keys import Key
from rbalign.lm.templates import around_user
from rbalign.remote.client import Client, EndpointError
from rbalign.synth import write
from rbalign.synth.accept import Acceptance
from rbalign.synth.write import write_drafts, write_references
from rbalign.teacher.base import Written, require
from rbalign.teacher.remote import RemoteTeacher
from rbalign.types import Example, StopReason

KEYS = [Key(1, "t", example=str(n)) for n in range(6)]
PREFIX = "<|im_start|>user\n"


def teacher_of(server, tokenizer=None, cache=None, **more):
    fields = {"url": server.url, "model": "tiny", "can": ("chat",), "timeout": 60.0, "retries": 1, **more}
    config = TeacherEndpoint(**fields)
    return RemoteTeacher(config, Client(config, cache, FakeTime().clock), tokenizer)


def literal(server, **more):
    return teacher_of(server, can=("chat", "continue"), pre_query=PREFIX, **more)


def with_template(server, **more):
    return teacher_of(server, tiny_tokenizer(), can=("chat", "continue", "score"), template="tiny", **more)


def test_chat_carries_the_system_prompt_the_seed_and_the_cap_and_keeps_the_order():
    def answer(asked):
        return chat(f"{asked.body['messages'][-1]['content']}!", tokens=(4, 2))

    with Loopback(answer) as server:
        teacher = teacher_of(server, extra_body={"top_k": 0})
        said = teacher.answer([f"q{n}" for n in range(6)], KEYS, teacher.params(0.7, 0.95, 64), "Be short.")
        assert said == [Written(f"q{n}!", StopReason.END, 2) for n in range(6)]
        first = next(a for a in server.asked if a.body["messages"][-1]["content"] == "q0")
    assert first.path == "/v1/chat/completions"
    assert first.body == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "q0"}],
        "max_tokens": 64,
        "temperature": 0.7,
        "top_p": 0.95,
        "seed": KEYS[0].digest() >> 11,
        "top_k": 0,
    }
    assert 0 <= first.body["seed"] < 2**53
    assert len({asked.body["seed"] for asked in server.asked}) == 6
    assert teacher.counts.table()["completion_tokens"] == 12


def test_a_cloud_that_wants_other_fields_gets_them():
    with Loopback(lambda asked: chat()) as server:
        teacher = teacher_of(server, length_field="max_completion_tokens", seed_field="random_seed")
        teacher.answer(["q"], KEYS[:1], teacher.params(1.0, 1.0, 9))
        assert server.asked[0].body["max_completion_tokens"] == 9
        assert server.asked[0].body["random_seed"] == KEYS[0].digest() >> 11
        assert not {"max_tokens", "seed"} & set(server.asked[0].body)


def test_instructions_continue_the_literal_prefix():
    with Loopback(lambda asked: completion(f"  text {asked.body['seed']} ")) as server:
        teacher = literal(server, stop=("<|im_end|>",))
        said = teacher.write_instructions(KEYS, teacher.params(1.0, 0.99, 48), [None] * len(KEYS))
        assert [w.text for w in said] == [f"text {key.digest() >> 11}" for key in KEYS]
        body = server.asked[0].body
        assert (server.asked[0].path, body["prompt"], body["stop"]) == ("/v1/completions", PREFIX, ["<|im_end|>"])
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (1.0, 0.99, 48)
        with pytest.raises(UsageError, match="system needs a place"):
            teacher.write_instructions(KEYS, teacher.params(1.0, 1.0, 8), ["A cooking domain."] * len(KEYS))
        placed = teacher_of(server, can=("continue",), pre_query="[S]{system}[U]")
        placed.write_instructions(KEYS[:1], placed.params(1.0, 1.0, 8), ["Cook."])
        assert server.asked[-1].body["prompt"] == "[S]Cook.[U]"


def test_instructions_continue_the_templates_ids():
    tokenizer = tiny_tokenizer()
    with Loopback(lambda asked: completion()) as server:
        teacher = with_template(server)
        teacher.write_instructions(KEYS[:1], teacher.params(1.0, 1.0, 8), ["A domain."])
        assert server.asked[0].body["prompt"] == around_user(tokenizer, "A domain.")[0]
        assert server.asked[0].body["stop"] == ["<|im_end|>"]
    assert teacher.tokenizer_hash


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (completion("cut", "length"), Written("cut", StopReason.LENGTH, 6)),
        (completion("bad \ud83d half"), Written("bad ? half", StopReason.END, 6)),
        (completion("", "stop"), Written("", StopReason.END, 6)),
        (completion("x", "content_filter"), Written("", StopReason.FAILED, 0)),
        (completion("x", None), Written("", StopReason.FAILED, 0)),
        (completion(None), Written("", StopReason.FAILED, 0)),
        ({"choices": []}, Written("", StopReason.FAILED, 0)),
        ({"error": "no"}, Written("", StopReason.FAILED, 0)),
        ([1, 2], Written("", StopReason.FAILED, 0)),
        (wrong_json, Written("", StopReason.FAILED, 0)),
        (lambda h: h.send(b"[" * 100_000), Written("", StopReason.FAILED, 0)),
        (status(400), Written("", StopReason.FAILED, 0)),
        (status(500), Written("", StopReason.FAILED, 0)),
        ({"choices": [{"text": "no usage", "finish_reason": "stop"}]}, Written("no usage", StopReason.END, 0)),
    ],
    ids=lambda value: None,
)
def test_what_becomes_of_a_reply(reply, said):
    with Loopback(lambda asked: reply) as server:
        teacher = literal(server)
        assert teacher.write_instructions(KEYS[:1], teacher.params(1.0, 1.0, 8), [None]) == [said]


def test_a_thinking_model_without_content_was_cut_short():
    with Loopback(lambda asked: chat(None, "length")) as server:
        teacher = teacher_of(server)
        assert teacher.answer(["q"], KEYS[:1], teacher.params(1.0, 1.0, 8))[0].stop is StopReason.LENGTH


# ---- scores --------------------------------------------------------------------------------------------------------


def logprob(token):
    return -(token % 7) / 10 - 0.1


def scores_by_echo(asked):
    ids = asked.body["prompt"]
    assert asked.body["echo"]
    return completion("", "length", logprobs={"token_logprobs": [None, *map(logprob, ids[1:]), -5.0]})


def scores_by_prompt(asked):
    ids = asked.body["prompt"]
    assert asked.body["prompt_logprobs"] == 0
    tables = [{str(token): {"logprob": logprob(token), "rank": 1}} for token in ids[1:]]
    return completion("", "length", prompt_logprobs=[None, *tables])


@pytest.mark.parametrize(("by", "answer"), [("echo", scores_by_echo), ("prompt_logprobs", scores_by_prompt)])
def test_scores_are_means_over_the_answer_and_its_end(by, answer):
    tokenizer = tiny_tokenizer()
    with Loopback(answer) as server:
        teacher = with_template(server, score_by=by)
        found = teacher.loglikelihood(["How do birds fly?"] * 3, ["With wings.", "  ", "They flap"], "Be short.")
        assert len(server.asked) == 2
    for text, value in (("With wings.", found[0]), ("They flap", found[2])):
        ids = [*tokenizer.encode(text, add_special_tokens=False), 2]
        assert value == pytest.approx(sum(map(logprob, ids)) / len(ids))
    assert found[1] is None


@pytest.mark.parametrize(
    "reply",
    [
        completion("", "length", logprobs={"token_logprobs": [-0.5]}),  # llama.cpp: the generated token alone
        completion("", "length"),
        completion("", "length", logprobs={"token_logprobs": [None] * 200}),
    ],
)
def test_a_server_that_gives_no_log_probs_of_the_prompt_cannot_score(reply):
    def answer(asked):
        return chat() if "chat" in asked.path else completion() if asked.body["max_tokens"] > 1 else reply

    with Loopback(answer) as server:
        teacher = with_template(server)
        with pytest.raises(UsageError, match=r'cannot score.*take "score" out'):
            teacher.probe()
        assert teacher.loglikelihood(["q"], ["a"]) == [None]


def test_other_ids_than_asked_are_no_score():
    def other(asked):
        tables = [{str(token + 1): {"logprob": -1.0}} for token in asked.body["prompt"][1:]]
        return completion("", "length", prompt_logprobs=[None, *tables])

    with Loopback(other) as server:
        assert with_template(server, score_by="prompt_logprobs").loglikelihood(["q"], ["a"]) == [None]


# ---- what is refused before any work -------------------------------------------------------------------------------


def test_the_probe_tries_what_is_declared_and_no_more():
    with Loopback(lambda asked: chat() if "chat" in asked.path else completion()) as server:
        literal(server).probe()
        assert sorted(asked.path for asked in server.asked) == ["/v1/chat/completions", "/v1/completions"]


@pytest.mark.parametrize("fault", [status(404), status(400), status(501), redirects("http://127.0.0.1:9/x")])
def test_a_missing_capability_is_one_line_before_any_work(fault):
    with Loopback(lambda asked: chat() if "chat" in asked.path else fault) as server:
        with pytest.raises(
            UsageError, match=r'tiny at 127.0.0.1:\d+ cannot continue: .*take "continue" out of'
        ) as error:
            literal(server).probe()
        assert "\n" not in str(error.value)
        assert len(server.asked) == 2


@pytest.mark.parametrize(("fault", "says"), [(status(401), "refuses"), (status(503), "failed 2 times")])
def test_a_probe_that_meets_a_closed_door_says_that_and_not_cannot(fault, says):
    with Loopback(lambda asked: fault) as server, pytest.raises(ServiceError, match=says) as error:
        literal(server).probe()
    assert "cannot" not in str(error.value)


def test_a_probe_is_not_repeated_after_a_restart(tmp_path):
    with Loopback(lambda asked: chat() if "chat" in asked.path else completion()) as server:
        for _ in range(2):
            literal(server, cache=tmp_path).probe()
        assert len(server.asked) == 2


def test_what_the_recipe_does_not_declare_is_not_used():
    with Loopback(lambda asked: chat()) as server:
        with pytest.raises(UsageError, match="continue"):
            require(teacher_of(server), frozenset({"chat", "continue"}), "synth")
        assert not server.asked


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"can": ("continue",)}, "continue needs template"),
        ({"can": ("score",), "pre_query": "x"}, "score needs template"),
        ({"can": ("chat",), "pre_query": "x", "template": "y"}, "exclude each other"),
        ({"can": ("chat", "distribution")}, "distribution"),
        ({"can": ()}, "can"),
        ({"can": ("chat",), "url": "http://user:password@host/v1"}, "url"),
        ({"can": ("chat",), "url": "http://host/v1?key=abc"}, "url"),
        ({"can": ("chat",), "url": "file:///etc/passwd"}, "url"),
        ({"can": ("chat",), "key_env": "sk-12345678"}, "key_env"),
    ],
)
def test_recipes_that_cannot_be_right(fields, says):
    with pytest.raises(ValidationError, match=says):
        TeacherEndpoint(**{"url": "http://127.0.0.1/v1", "model": "m", **fields})


# ---- drafts --------------------------------------------------------------------------------------------------------

CONFIG = SynthConfig(train=50, validation=0, test=0, filters=FilterConfig(min_words=3))


def sometimes(asked):
    """By seed: one instruction in four and one answer in three fail for good."""
    if "chat" in asked.path:
        return status(400) if asked.body["seed"] % 3 == 0 else chat("Slowly and with care.")
    words = " ".join(["How do I", *(f"{w}{asked.body['seed'] % 97}" for w in ("paint", "mend", "sell")), "a door?"])
    return status(400) if asked.body["seed"] % 4 == 0 else completion(words)


def test_failed_requests_are_dropped_and_counted_and_nothing_else_is(monkeypatch):
    with Loopback(sometimes) as server:
        drafts = write_drafts(literal(server), CONFIG, 7, range(40))
    acceptance = Acceptance(CONFIG)
    for draft in drafts:
        acceptance.add(draft)
    failed = [d for d in drafts if d["stop"] == "failed" or d.get("answer_stop") == "failed"]
    assert 10 < len(failed) < 30
    assert acceptance.causes["teacher-failed"] == len(failed)
    assert acceptance.seen == 40 == len(acceptance.examples) + acceptance.causes.total()
    assert all(e.answer for e in acceptance.examples)
    sentences = CONFIG.model_copy(update={"sentences": True})
    acceptance = Acceptance(sentences)
    for draft in drafts:
        acceptance.add(draft)
    assert acceptance.causes["teacher-failed"] == len(failed)


def test_a_failed_reference_is_none():
    examples = [Example(str(n), "test", f"How do I paint door {n}?", "") for n in range(20)]
    with Loopback(sometimes) as server:
        found = dict(write_references(literal(server), CONFIG, 7, examples))
    assert set(found) == {example.id for example in examples}
    assert set(found.values()) == {None, "Slowly and with care."}


@pytest.fixture
def opened(monkeypatch, tmp_path):
    monkeypatch.setenv("RBA_HOME", str(tmp_path / "home"))
    used = []
    yield used
    for config in used:
        write.close_teacher(config)


def test_many_chunks_are_asked_by_threads_and_closing_stops(opened):
    def answer(asked):
        return chat() if "chat" in asked.path else completion(f"How do I paint {asked.body['seed']} doors?")

    with Loopback(answer) as server:
        config = TeacherConfig(
            endpoint=TeacherEndpoint(
                url=server.url, model="tiny", can=("chat", "continue"), pre_query=PREFIX, concurrency=4
            )
        )
        opened.append(config)
        chunks = (range(start, start + 2) for start in range(0, 10_000, 2))
        stream = write.write_many(config, CONFIG.model_copy(update={"batch_size": 2}), 7, chunks, workers=1)
        found = [draft for _ in range(6) for draft in next(stream)]
        stream.close()
        assert server.most_at_once <= 4
        assert len(found) == len({draft["id"] for draft in found}) == 12
        assert len(server.asked) < 60
        (again,) = write.write_many(config, CONFIG, 7, iter([range(12)]), workers=1)
    known = {draft["id"]: draft for draft in found}  # chunks end in any order: later ones may be among them
    both = [draft for draft in again if draft["id"] in known]
    assert both
    assert both == [known[draft["id"]] for draft in both]


def test_a_server_that_dies_ends_the_writing_in_one_line(opened):
    def answer(asked):
        return status(403) if len(server.asked) > 10 else completion("How do I paint my doors?")

    with Loopback(answer) as server:
        config = TeacherConfig(
            endpoint=TeacherEndpoint(url=server.url, model="tiny", can=("continue",), pre_query=PREFIX)
        )
        opened.append(config)
        quiet = CONFIG.model_copy(update={"answers": False, "batch_size": 4})
        chunks = (range(start, start + 4) for start in range(0, 400, 4))
        with pytest.raises(EndpointError, match="refuses"):
            list(write.write_many(config, quiet, 7, chunks, workers=1))
        assert len(server.asked) < 40
