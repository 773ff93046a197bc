"""Speech while the teacher still writes: the same shards, earlier; errors on either side end both."""

from __future__ import annotations

import multiprocessing
import threading
import time
from itertools import chain

import pytest
from loopback import bodies, clip, content, start, status
from test_remote_synth import recipe_for
from test_remote_synth import world as world

from rbalign.config.synth import SynthConfig, ViewPlan
from rbalign.remote.client import EndpointError
from rbalign.rundir import progress
from rbalign.stages import synth
from rbalign.stages.synth_ahead import Ahead, StoppedError, until
from rbalign.synth.speak import Speech, in_shards, plan_views, planned
from rbalign.types import Example
from rbalign.voices.bank import load_bank

RULES = (
    ViewPlan(splits=("train", "validation"), voices="kokoro", per_example=3),
    ViewPlan(splits=("train",), voices="hibari", per_example=1, fraction=0.5),
)
EXAMPLES = [
    Example(f"e{i}", ("train", "train", "validation", "test")[i % 4], f"Question {i}?", f"Question {i}?")
    for i in range(24)
]


def plan(example):
    return plan_views(example, RULES, load_bank(), 0)


def spoken_ahead(rules, size, chunk=3):
    bank, jobs = load_bank(), []
    plan = lambda example: plan_views(example, rules, bank, 0)  # noqa: E731
    done = threading.Event()

    def speak(speech: Speech, stop):
        jobs.append(speech)
        done.set()

    with Ahead(plan, speak, size) as ahead:
        for first in range(0, len(EXAMPLES), chunk):
            ahead.take(EXAMPLES[first : first + chunk])
        deadline = time.monotonic() + 30
        while not ahead._jobs.empty() and time.monotonic() < deadline:
            time.sleep(0.01)
    return jobs


@pytest.mark.parametrize("size", [2, 5, 8, 200])
def test_shards_are_those_of_the_whole_plan(size):
    config, bank = SynthConfig(views=RULES), load_bank()
    views = planned(EXAMPLES, config, bank, 0)
    whole = [job for job in in_shards(chain.from_iterable(views.values()), size) if len(job[2]) == size]
    made = spoken_ahead(RULES, size)
    assert sorted((job for speech in made for job in speech.jobs), key=lambda job: job[:2]) == sorted(
        whole, key=lambda job: job[:2]
    )
    assert bool(made) == (size < 200)
    for speech in made:
        ((_, _, own),) = speech.jobs
        needed = {view.example_id for view in own}
        assert speech.spoken.keys() == needed
        assert sorted(view.id for view in speech.around) == sorted(
            view.id for of in views.values() for view in of if view.example_id in needed
        )


def test_a_shard_that_would_borrow_babble_waits():
    babble = (ViewPlan(splits=("train",), voices="kokoro", per_example=1, channels=("noise:babble@10dB",)),)
    assert spoken_ahead(babble, 5) == []
    assert len(spoken_ahead(babble, 8)) == 1


def test_its_error_is_the_blocks():
    def speak(speech, stop):
        raise ValueError("no voice")

    def write():
        with Ahead(plan, speak, 2) as ahead:
            ahead.take(EXAMPLES)
            ahead._thread.join(10)
            ahead.take([])
            raise AssertionError("the failure is not told")

    with pytest.raises(ValueError, match="no voice"):
        write()


def test_the_blocks_error_stops_it_within_a_shard():
    begun, seen = threading.Event(), []

    def speak(speech, stop):
        begun.set()
        for _ in until(stop, iter(lambda: time.sleep(0.01), 0)):
            seen.append(progress._instead.get() is not None)

    made = Ahead(plan, speak, 2)

    def write():
        with made:
            made.take(EXAMPLES)
            assert begun.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not made._thread.is_alive()
    assert all(seen)
    assert progress._instead.get() is None  # who works beside it is not
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(StoppedError):
        list(until(stopped, [1]))


class Beside:
    """The world's server; after the thirtieth, instructions come only once a clip of a real text was asked for."""

    def __init__(self, world):
        self.world, self.spoken, self.waited = world, threading.Event(), 0
        self.refuses_voices = False

    def __call__(self, asked):
        if asked.path.endswith("/audio/speech") and asked.body["input"] != "Hello there.":
            self.spoken.set()
            if self.refuses_voices:
                return status(401, "closed")
            return clip(0.2)
        if not asked.path.endswith(("/audio/speech", "/chat/completions")):
            seen = sum(one.path.endswith("/completions") and "chat" not in one.path for one in self.world.server.asked)
            if seen > 30:
                self.waited += 1
                assert self.spoken.wait(60), "no clip while the teacher writes"
        return self.world(asked)


def many(world):
    whole = recipe_for(world)
    return whole.model_copy(update={"synth": whole.synth.model_copy(update={"train": 36, "test": 2})})


def test_clips_are_spoken_while_a_server_writes(world, tmp_path, monkeypatch):
    monkeypatch.setattr(synth, "VIEWS_PER_SHARD", 4)
    beside = Beside(world)
    world.server.answer = beside
    early = start(many(world), tmp_path / "early")
    assert beside.waited > 0
    assert len(early.views()) == 36 * 2 + 2
    monkeypatch.setattr(Ahead, "take", lambda self, examples: None)
    late = start(many(world), tmp_path / "late")
    assert content(late) == content(early)
    assert late.content_hash == early.content_hash


def test_a_voice_that_fails_for_good_ends_the_writing_too(world, tmp_path, monkeypatch):
    monkeypatch.setattr(synth, "VIEWS_PER_SHARD", 4)
    beside = Beside(world)
    beside.refuses_voices = True
    world.server.answer = beside
    with pytest.raises(EndpointError, match="refuses"):
        start(many(world), tmp_path / "runs")
    beside.refuses_voices = False
    data = start(many(world), tmp_path / "runs")
    assert len(data.views()) == 36 * 2 + 2


@pytest.mark.parametrize("hold_at", [1, 3, 4, 9])
def test_killed_while_both_work_nothing_is_lost_or_asked_twice(world, tmp_path, monkeypatch, hold_at):
    monkeypatch.setattr(synth, "VIEWS_PER_SHARD", 4)
    held, released, count = threading.Event(), threading.Event(), [0]

    def answer(asked):
        if asked.path.endswith("/audio/speech") and asked.body["input"] != "Hello there.":
            count[0] += 1
            if count[0] == hold_at:
                held.set()
                released.wait(100)
        return world(asked)

    world.server.answer = answer
    process = multiprocessing.get_context("fork").Process(target=start, args=(many(world), tmp_path / "runs"))
    process.start()
    assert held.wait(100)
    process.kill()
    process.join()
    acknowledged, before = list(world.server.answered), len(world.server.asked)
    released.set()
    data = start(many(world), tmp_path / "runs")
    again = bodies(world.server.asked[before:])
    # One reply of the teacher's and one of the voices may have been on its way into the cache when the process died.
    assert len(set(bodies(acknowledged)) & set(again)) <= 2
    assert len(again) == len(set(again))
    monkeypatch.setenv("RBA_HOME", str(tmp_path / "another home"))
    monkeypatch.setattr(Ahead, "take", lambda self, examples: None)
    whole = start(many(world), tmp_path / "whole")
    assert content(data) == content(whole)
    assert data.content_hash == whole.content_hash
