"""The client of every server, against a real one on loopback that misbehaves: nothing lost, nothing double."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest
from loopback import (
    FakeTime,
    Loopback,
    Scripted,
    completion,
    promises_huge,
    redirects,
    stalls,
    status,
    streams_huge,
    trickles,
    truncated,
    wrong_json,
)

from rbalign.config.endpoints import TeacherEndpoint
from rbalign.errors import DataError, UsageError
from rbalign.remote.cache import Cache
from rbalign.remote.client import (
    CACHE_FILE,
    LONGEST_RETRY_AFTER,
    Client,
    EndpointError,
    Read,
    RequestError,
    StoppedError,
)
from rbalign.remote.counts import Counts, Ledger, Usage, in_words
from rbalign.remote.pace import Pace
from rbalign.remote.wire import Reply

KEY = "sk-very-secret-0123456789"
CAP = 1 << 20


@pytest.fixture
def time():
    return FakeTime()


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)


def config(server, **more):
    return TeacherEndpoint(**{"url": server.url, "model": "tiny", "can": ("chat",), "timeout": 60.0, **more})


def text_of(reply):
    table = json.loads(reply.body)
    usage = table.get("usage", {})
    return Read(table["choices"][0]["text"], Usage(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)))


def ask(client, prompt="hello", cap=CAP):
    return client.post("/completions", {"prompt": prompt, "max_tokens": 8}, text_of, cap)


def echo(asked):
    return completion(f"answer to {asked.body['prompt']}")


# ---- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        truncated,
        stalls,
        trickles,
        wrong_json,
        status(500),
        status(503),
        status(429),
        status(408),
        lambda h: h.send(b"[]"),
    ],
    ids=["truncated", "stalls", "trickles", "wrong json", "500", "503", "429", "408", "other json"],
)
def test_a_passing_fault_is_retried_and_the_answer_comes_once(fault, time, tmp_path):
    with Loopback(Scripted(echo, fault)) as server:
        slow = fault in (stalls, trickles)  # two seconds: a busy machine must answer the second attempt within them
        client = Client(config(server, timeout=2.0 if slow else 60.0), tmp_path, time.clock)
        assert ask(client) == "answer to hello"
        assert len(server.asked) == 2
        assert [asked.body for asked in server.asked[:1]] == [asked.body for asked in server.asked[1:]]
        assert ask(client) == "answer to hello"
        assert len(server.asked) == 2
    table = client.counts.table()
    assert (table["requests"], table["retries"], table["failures"], table["cache_hits"]) == (2, 1, 0, 1)
    assert (table["prompt_tokens"], table["completion_tokens"]) == (3, 6)
    assert len(time.waits) == 1
    assert 0.5 <= time.waits[0] <= 1.0


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (truncated, r"failed 3 times: the reply broke off"),
        (stalls, r"failed 3 times: no complete reply within 0.3 s"),
        (trickles, r"failed 3 times: no complete reply within 0.3 s"),
        (wrong_json, r"failed 3 times: the reply has not the expected form \(JSONDecodeError"),
        (status(500, "out of memory"), r"failed 3 times: 500: out of memory"),
        (status(400, "context too long"), r"tiny at 127.0.0.1:\d+ failed: 400: context too long"),
        (lambda h: h.send(b"plain\n\x1b[31mwords", 422), r"failed: 422: plain \[31mwords"),
        (promises_huge, r"failed: the reply is larger than 1,048,576 bytes"),
        (streams_huge, r"failed: the reply is larger than 1,048,576 bytes"),
        (lambda h: h.send(b"{}", Content_Encoding="gzip"), r"failed: the reply is compressed"),
    ],
    ids=[
        "truncated",
        "stalls",
        "trickles",
        "wrong json",
        "500",
        "400",
        "422",
        "promises huge",
        "streams huge",
        "compressed",
    ],
)
def test_a_lasting_fault_fails_its_own_request_in_one_line(fault, says, time, tmp_path):
    with Loopback(lambda asked: fault if asked.body["prompt"] == "bad" else echo(asked)) as server:
        slow = fault in (stalls, trickles)
        client = Client(config(server, timeout=0.3 if slow else 60.0, retries=2), tmp_path, time.clock)
        with pytest.raises(RequestError, match=says) as failure:
            ask(client, "bad")
        assert "\n" not in str(failure.value)
        assert not isinstance(failure.value, EndpointError)
        assert client.counts.table()["failures"] == 1
        assert ask(Client(config(server), tmp_path, time.clock), "good") == "answer to good"
        assert len(Cache(tmp_path / CACHE_FILE)) == 1


def test_backoff_doubles_with_jitter_that_a_key_draws():
    waits = []
    with Loopback(lambda asked: status(500)) as server:
        for _ in range(2):
            time = FakeTime()
            with pytest.raises(RequestError):
                ask(Client(config(server, retries=8), None, time.clock))
            waits.append(time.waits)
    assert waits[0] == waits[1]
    bounds = [(0.5 * 2**n, 2**n) for n in range(6)] + [(30.0, 60.0)] * 2
    assert all(low <= wait <= high for wait, (low, high) in zip(waits[0], bounds, strict=True))


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("0", 0.0), ("999999", LONGEST_RETRY_AFTER), ("soon", None)])
def test_retry_after_is_obeyed_within_bounds(asked, waited, time):
    with Loopback(Scripted(echo, status(429, Retry_After=asked))) as server:
        assert ask(Client(config(server), None, time.clock)) == "answer to hello"
    if waited is None:
        assert 0.5 <= sum(time.waits) <= 1.0
    else:
        assert sum(time.waits) == waited


def test_retry_after_may_be_a_date(time):
    date = formatdate(time.clock.wall() + 30, usegmt=True)
    with Loopback(Scripted(echo, status(503, Retry_After=date))) as server:
        ask(Client(config(server), None, time.clock))
    assert 29 <= sum(time.waits) <= 30


def test_retry_after_holds_the_other_requests_too(time):
    with Loopback(Scripted(echo, status(429, Retry_After="40"))) as server:
        client = Client(config(server, retries=0), None, time.clock)
        with pytest.raises(RequestError):
            ask(client)
        assert not time.waits
        assert ask(client, "another") == "answer to another"
    assert time.waits == [40.0]


@pytest.mark.parametrize("where", ["elsewhere", "same host"])
def test_redirects_are_not_followed(where, time, key):
    with Loopback(echo) as other, Loopback(lambda asked: redirects(target)) as server:
        target = (other if where == "elsewhere" else server).url + "/moved"
        with pytest.raises(EndpointError, match=r"307: it redirects to http://127.0.0.1:\d+/v1/moved, which rba does"):
            ask(Client(config(server, key_env="TEST_KEY"), None, time.clock))
        assert not other.asked
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (401, "refuses .*put a valid key into TEST_KEY"),
        (403, "refuses"),
        (402, "refuses"),
        (404, "does not serve this .*check its url"),
    ],
)
def test_what_no_request_can_pass_stops_at_once(code, says, time, key):
    with Loopback(lambda asked: status(code)) as server:
        client = Client(config(server, key_env="TEST_KEY"), None, time.clock)
        for _ in range(3):
            with pytest.raises(EndpointError, match=says):
                ask(client)
        assert len(server.asked) == 1
    assert not time.waits


def test_a_server_that_fails_everything_is_given_up(time):
    with Loopback(lambda asked: status(500)) as server:
        client = Client(config(server, retries=1), None, time.clock)
        for number in range(9):
            with pytest.raises(RequestError) as failure:
                ask(client, str(number))
            assert not isinstance(failure.value, EndpointError)
        with pytest.raises(EndpointError, match=r"failed 10 requests in a row.*mend the server and start again"):
            ask(client, "last")
        asked = len(server.asked)
        with pytest.raises(EndpointError):
            ask(client, "one more")
        assert len(server.asked) == asked == 20


def test_one_success_shows_that_the_server_lives(time):
    with Loopback(lambda asked: echo(asked) if asked.body["prompt"] == "good" else status(400)) as server:
        client = Client(config(server), None, time.clock)
        for number in range(30):
            if number % 9 == 8:
                ask(client, "good")
            else:
                with pytest.raises(RequestError, match="400"):
                    ask(client, str(number))


def test_a_server_that_is_not_there_is_named(time):
    with Loopback(echo) as server:
        gone = config(server, retries=1)
    with pytest.raises(RequestError, match=r"tiny at 127.0.0.1:\d+ failed 2 times: no connection"):
        ask(Client(gone, None, time.clock))


def test_nobody_waits_inside_stopping(time):
    with Loopback(lambda asked: status(500)) as server:
        client = Client(config(server), None, time.clock)
        with client.stopping(), pytest.raises(StoppedError):
            ask(client)
        assert not server.asked


# ---- bounds --------------------------------------------------------------------------------------------------------


def test_concurrency_stays_within_its_bound():
    gate, full = threading.Event(), threading.Event()

    def slow(asked):
        if server.at_once == 3:
            full.set()
        gate.wait(60)
        return echo(asked)

    with Loopback(slow) as server:
        client = Client(config(server, concurrency=3))
        with ThreadPoolExecutor(12) as pool:
            futures = [pool.submit(ask, client, str(n)) for n in range(12)]
            assert full.wait(60)
            gate.set()
            assert sorted(f.result() for f in futures) == sorted(f"answer to {n}" for n in range(12))
        assert server.most_at_once == 3


def test_requests_a_minute_are_spread(time):
    with Loopback(echo) as server:
        client = Client(config(server, rpm=6), None, time.clock)
        for number in range(4):
            ask(client, str(number))
    assert time.waits == pytest.approx([10.0] * 3)


def test_tokens_a_minute_are_reserved_and_corrected_by_what_was_used(time):
    pace = Pace(None, 600, time.clock)
    assert pace.reserve(100) == 0.0
    assert pace.reserve(100) == pytest.approx(10.0)
    pace.settle(100, 40)  # one took 60 tokens less: 6 s earlier
    assert pace.reserve(100) == pytest.approx(14.0)


# ---- the cache -----------------------------------------------------------------------------------------------------


def test_a_restart_asks_nothing_again(tmp_path, time):
    with Loopback(echo) as server:
        for start in range(2):
            client = Client(config(server), tmp_path, time.clock)
            assert [ask(client, str(n)) for n in range(5)] == [f"answer to {n}" for n in range(5)]
            assert client.counts.table()["cache_hits"] == 5 * start
            client.close()
        assert len(server.asked) == 5
        other = Client(config(server, model="other"), tmp_path, time.clock)
        ask(other)
        assert len(server.asked) == 6
        without = Client(config(server, cache=False), tmp_path, time.clock)
        ask(without, "1")
        assert len(server.asked) == 7


SHARES = """
import json, sys
from rbalign.config.endpoints import TeacherEndpoint
from rbalign.remote.client import Client, Read
from rbalign.remote.counts import Usage
client = Client(TeacherEndpoint(url=sys.argv[1], model="tiny", can=("chat",)), __import__("pathlib").Path(sys.argv[2]))
read = lambda reply: Read(json.loads(reply.body)["choices"][0]["text"], Usage())
said = [client.post("/completions", {"prompt": str(n), "max_tokens": 8}, read, 1 << 20) for n in range(40)]
print(json.dumps([said, client.counts.table()]))
"""


def test_two_processes_share_a_cache(tmp_path):
    with Loopback(echo) as server:
        command = [sys.executable, "-c", SHARES, server.url, str(tmp_path)]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        told = [json.loads(process.communicate(timeout=120)[0]) for process in both]
        assert [process.returncode for process in both] == [0, 0]
        client = Client(config(server), tmp_path)
        asked = len(server.asked)
        assert [ask(client, str(n)) for n in range(40)] == told[0][0] == told[1][0]
        assert len(server.asked) == asked
    assert len(Cache(tmp_path / CACHE_FILE)) == 40
    assert sum(table["requests"] for _, table in told) == asked
    assert sum(table["requests"] + table["cache_hits"] for _, table in told) == 80


def test_many_threads_share_a_cache(tmp_path):
    cache = Cache(tmp_path / "c.sqlite")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: cache.put(str(n % 50), Reply(b"x%d" % (n % 50), "t")), range(400)))
    assert len(cache) == 50
    assert cache.get("7") == Reply(b"x7", "t")
    assert cache.get("no") is None


KILLED = """
import os, signal, sys
from pathlib import Path
from rbalign.remote.cache import Cache
from rbalign.remote.wire import Reply
cache = Cache(Path(sys.argv[1]))
for n in range(1000):
    cache.put(str(n), Reply(b"x" * 1000))
    os.write(1, b"%d\\n" % n)
"""


def test_a_killed_process_leaves_what_it_had_put(tmp_path):
    path = tmp_path / "c.sqlite"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
    for _ in range(20):
        process.stdout.readline()
    process.kill()
    rest = process.stdout.read().split()
    process.wait()
    cache = Cache(path)
    last = int(rest[-1]) if rest else 19
    assert all(cache.get(str(n)) == Reply(b"x" * 1000) for n in range(last + 1))


def test_the_oldest_replies_leave_a_full_cache(tmp_path):
    cache = Cache(tmp_path / "c.sqlite", most_bytes=200_000)
    for number in range(100):
        cache.put(str(number), Reply(os.urandom(10_000)))
    assert cache.get("0") is None
    assert cache.get("99") is not None
    assert 10 <= len(cache) <= 20


def test_a_damaged_cache_says_so(tmp_path):
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"this is no database, and it is long enough to be looked at" * 50)
    with pytest.raises(DataError, match=r"is damaged.*delete it"):
        Cache(path)
    path.unlink()
    with sqlite3.connect(path) as base:
        base.execute("PRAGMA user_version = 99")
    with pytest.raises(DataError, match="another version"):
        Cache(path)


def test_a_cached_reply_that_is_no_longer_understood_is_asked_again(tmp_path, time):
    with Loopback(echo) as server:
        ask(Client(config(server), tmp_path, time.clock))
        with sqlite3.connect(tmp_path / CACHE_FILE) as base:
            base.execute("UPDATE replies SET body = 'nothing'")
        assert ask(Client(config(server), tmp_path, time.clock)) == "answer to hello"
        assert len(server.asked) == 2


# ---- keys ----------------------------------------------------------------------------------------------------------


def test_the_key_reaches_the_server_and_nothing_else(tmp_path, key, time, caplog, capfd, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-somebody")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-key-entirely")
    caplog.set_level(logging.DEBUG)
    said = []

    def tells(asked):
        if asked.body["prompt"] == "bad":
            return status(400, f"your key {KEY} is fine but not this")
        return completion(f"the key is {asked.headers['authorization']}")

    with Loopback(tells) as server:
        client = Client(config(server, key_env="TEST_KEY"), tmp_path, time.clock)
        assert ask(client) == "the key is Bearer [key]"
        with pytest.raises(RequestError, match=r"your key \[key\] is fine") as failure:
            ask(client, "bad")
        said += [str(failure.value), repr(failure.value.__cause__), repr(client.__dict__)]
        assert [asked.headers["authorization"] for asked in server.asked] == [f"Bearer {KEY}"] * 2
        sent = {name.lower() for name in server.asked[0].headers}
    kept = {"host", "content-type", "content-length", "accept", "accept-encoding", "user-agent", "authorization"}
    assert sent - {"x-stainless-raw-response"} == kept
    client.close()
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*"))
    assert files
    captured = capfd.readouterr()
    everything = "".join([*said, caplog.text, captured.out, captured.err]).encode() + files
    assert KEY.encode() not in everything


def test_without_a_variable_no_key_is_sent(time, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Loopback(echo) as server:
        ask(Client(config(server), None, time.clock))
        assert "authorization" not in {name.lower() for name in server.asked[0].headers}
        assert KEY not in str(server.asked[0].headers)


def test_a_short_key_does_not_eat_the_words_of_answers(time, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "EMPTY")
    with Loopback(lambda asked: completion("EMPTY words")) as server:
        assert ask(Client(config(server, key_env="TEST_KEY"), None, time.clock)) == "EMPTY words"


def test_a_variable_that_is_not_set_or_no_key_is_refused(monkeypatch):
    with Loopback(echo) as server:
        monkeypatch.delenv("TEST_KEY", raising=False)
        with pytest.raises(UsageError, match="TEST_KEY is not set"):
            Client(config(server, key_env="TEST_KEY"))
        monkeypatch.setenv("TEST_KEY", "two words and é")
        with pytest.raises(UsageError, match="value of TEST_KEY is no key") as error:
            Client(config(server, key_env="TEST_KEY"))
        assert "two words" not in str(error.value)


# ---- counting ------------------------------------------------------------------------------------------------------


def test_costs_add_up_over_starts(tmp_path, time):
    with Loopback(echo) as server:
        for _ in range(2):
            client = Client(config(server, price_in=2.0, price_out=10.0, cache=False), None, time.clock)
            ledger = Ledger(tmp_path / "remote.json", {"teacher": client.counts})
            for number in range(5):
                ask(client, str(number))
                ledger.save()
    totals = json.loads((tmp_path / "remote.json").read_text())["teacher"]
    assert (totals["requests"], totals["prompt_tokens"], totals["completion_tokens"]) == (10, 30, 60)
    assert totals["cost"] == pytest.approx((30 * 2.0 + 60 * 10.0) / 1e6)
    assert in_words(totals | {"cost": 1.5}).endswith("30 + 60 tokens, cost 1.50")


def test_counters_start_at_nothing(tmp_path):
    with Loopback(echo) as server:
        counts = Counts(config(server))
    assert set(counts.table().values()) == {0}
    Ledger(tmp_path / "none.json", {}).save()
    assert not (tmp_path / "none.json").exists()
