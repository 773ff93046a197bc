"""The whole `rba synth` with a teacher and voices behind HTTP: killed anywhere and resumed, nothing lost or double."""

from __future__ import annotations

import json
import multiprocessing
import threading

import openai  # noqa: F401 - before the fork below, so that each child need not
import pytest
from loopback import Loopback, bodies, chat, clip, completion, content, start, status

from rbalign.config.endpoints import TeacherEndpoint, VoiceEndpoint
from rbalign.config.load import dump_recipe, load_recipe
from rbalign.config.recipe import Recipe
from rbalign.config.sections import AlignConfig, TeacherConfig
from rbalign.config.synth import SynthConfig, ViewPlan
from rbalign.errors import RunError, UsageError
from rbalign.rundir.journal import read_rows
from rbalign.rundir.run import RunDir
from rbalign.stages import align, synth
from rbalign.stages.chain import settings
from rbalign.stages.voices import bank_of_dataset

KEY = "sk-very-secret-0123456789"
THINGS = ["violin", "garden", "bicycle", "kitchen", "camera", "river", "library", "market", "island", "teacher"]
DOINGS = ["paint", "repair", "clean", "describe", "choose", "visit", "grow", "find", "explain", "compare"]


class World:
    """A server for texts and clips that answers by seed alone, and can hold its breath at the n-th request."""

    def __init__(self) -> None:
        self.hold_at = 0
        self.held, self.released = threading.Event(), threading.Event()
        self.fails = lambda asked: False

    def __call__(self, asked):
        if len(self.server.asked) == self.hold_at:
            self.held.set()
            self.released.wait(100)
        if self.fails(asked):
            return status(400)
        if asked.path.endswith("/audio/speech"):
            return clip(0.1 + len(asked.body["input"]) / 1000, pitch=100.0 + 10 * len(asked.body["voice"]))
        seed = asked.body["seed"]
        if "chat" in asked.path:
            return chat(f"Slowly, in {seed % 89} steps, and with a lot of care.")
        verb, thing, other = DOINGS[seed % 10], THINGS[seed // 10 % 10], THINGS[seed // 100 % 10]
        return completion(f"How do I {verb} the {thing} that my {other} has left on floor {seed % 83}?")


@pytest.fixture
def world(monkeypatch, tmp_path):
    monkeypatch.setenv("RBA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TEST_KEY", KEY)
    world = World()
    with Loopback(world) as world.server:
        yield world


def recipe_for(world, **more):
    url = world.server.url
    one = {"url": url, "key_env": "TEST_KEY", "concurrency": 1, "timeout": 100.0, "retries": 0}
    endpoint = TeacherEndpoint(
        model="writer", can=("chat", "continue"), pre_query="<user>", price_in=1.0, price_out=2.0, **one
    )
    voices = (
        VoiceEndpoint(model="speaker", split="train", voices=("ann", "robert"), price_characters=15.0, **one),
        VoiceEndpoint(model="speaker", split="test", voices=("margaret",), **one),
    )
    config = SynthConfig(
        train=2, validation=0, test=1, batch_size=4, views=(ViewPlan(voices="endpoint", per_example=2),), **more
    )
    return Recipe(
        name="remote",
        teacher=TeacherConfig(endpoint=endpoint),
        synth=config.model_copy(update={"endpoint_voices": voices}),
    )


def test_three_instructions_from_servers_alone(world, tmp_path, capfd):
    recipe = recipe_for(world)
    data = start(recipe, tmp_path / "runs")
    assert [len(data.examples(split)) for split in ("train", "test")] == [2, 1]
    assert len(data.views()) == 2 * 2 + 1
    assert {v.spec.voice for v in data.views("train")} == {"ann", "robert"}
    assert {v.spec.voice for v in data.views("test")} == {"margaret"}
    assert all(e.answer.startswith("Slowly, in ") for e in data.examples())
    (held_out,) = data.examples("test")
    assert held_out.reference not in (None, held_out.answer)
    assert data.manifest["teacher"] == "writer"
    ledger = json.loads((tmp_path / "runs/remote/data/remote.json").read_text())
    assert sum(table["requests"] for table in ledger.values()) == len(world.server.asked)
    (teacher,) = (table for name, table in ledger.items() if name.startswith("teacher writer at"))
    assert teacher["cost"] == pytest.approx((teacher["prompt_tokens"] + 2 * teacher["completion_tokens"]) / 1e6)
    spoken = "".join(e.spoken for e in data.examples("train"))
    (train,) = (table for name, table in ledger.items() if name.startswith("train voices"))
    assert train["characters"] == 2 * len(spoken) + len("Hello there.")
    said = capfd.readouterr().err
    assert "teacher writer at 127.0.0.1" in said
    assert content(start(recipe, tmp_path / "again")) == content(data)
    asked = bodies(world.server.asked)
    assert len(asked) == len(set(asked))  # another run: the cache has what the first one asked
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"recipe.toml", "environment.json", "replies.sqlite", "drafts.jsonl"} <= {path.name for path in files}
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in said + capfd.readouterr().err
    assert "TEST_KEY" in (tmp_path / "runs/remote/recipe.toml").read_text()


@pytest.mark.parametrize("hold_at", [2, 6, 10, 13, 17])
def test_killed_anywhere_and_resumed_is_the_same_and_repeats_nothing_acknowledged(
    world, tmp_path, monkeypatch, hold_at
):
    recipe = recipe_for(world)
    world.hold_at = hold_at
    process = multiprocessing.get_context("fork").Process(target=start, args=(recipe, tmp_path / "runs"))
    process.start()
    assert world.held.wait(200)
    acknowledged = list(world.server.answered)
    process.kill()
    process.join()
    world.released.set()
    before = len(world.server.asked)
    data = start(recipe, tmp_path / "runs")
    again = bodies(world.server.asked[before:])
    assert len(acknowledged) == hold_at - 1
    assert not set(bodies(acknowledged)) & set(again)
    assert len(again) == len(set(again))
    assert data.manifest["splits"]["train"]["voices"] == ["ann", "robert"]
    ids = [row["id"] for row in read_rows(tmp_path / "runs/remote/data/drafts.jsonl")]
    assert len(ids) == len(set(ids))
    monkeypatch.setenv("RBA_HOME", str(tmp_path / "another home"))
    whole = start(recipe, tmp_path / "whole")
    assert content(data) == content(whole)
    assert data.content_hash == whole.content_hash


def test_what_servers_fail_is_counted_and_the_rest_is_whole(world, tmp_path):
    world.fails = lambda asked: (
        asked.body.get("seed", 1) % 3 == 0
        or (asked.body.get("voice") == "ann" and asked.body["input"] != "Hello there.")
    )
    data = start(recipe_for(world), tmp_path)
    assert data.manifest["dropped"]["teacher-failed"] > 0
    assert len(data.examples()) == 3
    assert {v.spec.voice for v in data.views()} == {"robert", "margaret"}
    unspoken = list(read_rows(tmp_path / "remote/data/unspoken.jsonl"))
    assert [row["voice"] for row in unspoken] == ["ann", "ann"]
    assert all("failed: 400" in row["reason"] for row in unspoken)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/audio/speech"])
def test_a_server_that_lacks_something_is_refused_before_any_work(world, tmp_path, path):
    world.fails = lambda asked: asked.path == path
    with pytest.raises(UsageError, match=r"cannot chat|cannot continue|gives no clip"):
        start(recipe_for(world), tmp_path)
    assert not (tmp_path / "remote/data/drafts.jsonl").exists() or not list(
        read_rows(tmp_path / "remote/data/drafts.jsonl")
    )
    assert len(world.server.asked) <= 4


def test_settings_that_change_no_result_may_change_in_a_run(world, tmp_path):
    recipe = recipe_for(world)
    start(recipe, tmp_path)
    asked = len(world.server.asked)

    def changed(**fields):
        endpoint = recipe.teacher.endpoint.model_copy(update=fields)
        return recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"endpoint": endpoint})})

    start(changed(concurrency=5, rpm=100, price_in=9.0, key_env=None), tmp_path)
    assert len(world.server.asked) == asked
    with pytest.raises(RunError, match=r"teacher.endpoint.model was \"writer\""):
        start(changed(model="other"), tmp_path)
    plain = Recipe(name="plain", synth=SynthConfig())
    assert "endpoint" not in settings(plain, "synth")["teacher"]
    assert "endpoint_voices" not in settings(plain, "synth")["synth"]


def test_the_recipe_goes_through_toml_and_plans(world, tmp_path):
    recipe = recipe_for(world)
    path = tmp_path / "r.toml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe
    plan = synth.plan(recipe, RunDir.look(tmp_path, recipe))
    assert [row.what for row in plan.rows] == ["write and answer instructions", "speak views with endpoint"]
    assert plan.rows[1].count == 5
    assert plan.seconds > 0
    assert not world.server.asked


def test_align_knows_the_voices_of_the_dataset_and_refuses_kd(world, tmp_path):
    recipe = recipe_for(world).model_copy(update={"align": AlignConfig(arms=("sft", "kd"))})
    data = start(recipe, tmp_path)
    bank = bank_of_dataset(recipe, data)
    assert bank.voice("ann").split == "train"
    with pytest.raises(UsageError, match="align may not use voice 'margaret'"):
        bank.require(["margaret"], {"train"}, "align")
    with pytest.raises(UsageError, match=r"kd reads the teacher's distribution .* 'writer'"):
        align.check(recipe)
