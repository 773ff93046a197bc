"""`--engine ray` on a real cluster of two workers: the dataset of the local engine, whoever is killed."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from shard_actors import SMALL, dies_in_the_middle, faked, meet, refuses
from test_synth import RECIPE, fakes, put_fakes  # noqa: F401
from test_synth_shards import changed, files_of, plain, posix, small_shards  # noqa: F401

from rbalign.config.load import dump_recipe
from rbalign.errors import RunError, ServiceError, UsageError
from rbalign.rundir import progress as progress_module
from rbalign.rundir.journal import read_rows
from rbalign.rundir.run import RunDir
from rbalign.stages import synth_ray, synth_shards
from rbalign.stages.synth_merge import merge
from rbalign.stages.synth_ray import Crew, ShardMaker, Task, cluster, parts_of, synth_on_ray
from rbalign.stages.synth_shards import run_shard
from rbalign.synth.parts import Part


@pytest.fixture(scope="module")
def two_workers():
    """A cluster of this machine that ends with the module; its processes find the tests' modules."""
    import ray
    import ray.data

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(os, "cpu_count", lambda: 2)
        stop = signal.getsignal(signal.SIGTERM)
        with cluster() as cores:
            assert cores == [2]
            assert signal.getsignal(signal.SIGTERM) is stop, "rba stops by its own handler"
            yield ray
        assert not ray.is_initialized()


# ---- the same dataset ------------------------------------------------------------------------------------------------


def test_two_workers_make_the_dataset_of_the_local_engine(tmp_path, fakes, two_workers):  # noqa: F811
    one = plain(SMALL, tmp_path)
    fakes.clear()
    log, said = tmp_path / "made", []
    synth_on_ray(SMALL, tmp_path / "ray", say=said.append, work=partial(faked, log=log, watch=partial(meet, tmp_path)))
    assert files_of(tmp_path / "ray/tiny/data") == one
    assert RunDir.look(tmp_path / "ray", SMALL).outputs("synth") == RunDir.look(tmp_path / "plain", SMALL).outputs(
        "synth"
    )
    assert said == ["on Ray: 2 shards, 2 at once", "synth: done"]
    made = [line.split() for line in log.read_text().splitlines()]
    assert len(made) == len({view for _, view in made}) == 17 * 4
    assert not fakes, "the actors speak, not the driver"
    assert {path.read_text() for path in tmp_path.glob("met *")} == {".."}, "two at once, in both rounds"
    synth_on_ray(SMALL, tmp_path / "ray", say=said.append, work=refuses)
    assert said[-1] == "synth: finished before, skipped"


@posix
def test_a_worker_killed_in_the_middle_costs_no_example_and_doubles_none(tmp_path, fakes, two_workers):  # noqa: F811
    one = plain(SMALL, tmp_path)
    log = tmp_path / "made"
    watch = partial(dies_in_the_middle, tmp_path)
    synth_on_ray(SMALL, tmp_path / "ray", shards=3, work=partial(faked, log=log, watch=watch))
    assert {path.name for path in tmp_path.glob("killed*")} == {"killed writing", "killed speaking"}
    assert files_of(tmp_path / "ray/tiny/data") == one
    for path in (tmp_path / "ray").glob("tiny/shards/*/texts/drafts.jsonl"):
        ids = [row["id"] for row in read_rows(path)]
        assert len(ids) == len(set(ids)) > 0
    made = Counter(line.split()[1] for line in log.read_text().splitlines())
    assert len(made) == 17 * 4
    assert sum(made.values()) == 17 * 4 + 1, "of the file that was not whole one clip is made again, nothing else"


@posix
def test_a_driver_that_was_killed_is_started_again(tmp_path, fakes, two_workers):  # noqa: F811
    one = plain(SMALL, tmp_path)
    for number in (1, 2):  # the texts by `--shard` and `--merge`: the engines go on where the other has stopped
        run_shard(SMALL, tmp_path / "ray", Part(number, 2))
    merge(SMALL, tmp_path / "ray")
    fakes.clear()
    code = f"""
from functools import partial
from pathlib import Path
from rbalign.stages.synth_ray import synth_on_ray
from shard_actors import SMALL, faked, slow
synth_on_ray(SMALL, Path({str(tmp_path / "ray")!r}), work=partial(faked, watch=slow))
"""
    address = two_workers.get_runtime_context().gcs_address
    changes = {"RAY_ADDRESS": address, "PYTHONPATH": str(Path(__file__).parent)}
    driver = subprocess.Popen([sys.executable, "-c", code], env=os.environ | changes)
    deadline = time.monotonic() + 200
    while not list((tmp_path / "ray").glob("tiny/shards/*/clips/views/*.parquet")):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert not (tmp_path / "ray/tiny/data/manifest.json").exists()
    synth_on_ray(SMALL, tmp_path / "ray", work=faked)
    assert files_of(tmp_path / "ray/tiny/data") == one
    assert not fakes


def test_too_few_texts_are_written_on(tmp_path, fakes, monkeypatch):  # noqa: F811
    """What the driver does between rounds, whose parts are made here one after the other."""
    recipe = changed(RECIPE, batch_size=1)
    one = plain(recipe, tmp_path)

    def make(crew, round_, surplus=None):
        for part in crew.parts:
            run_shard(crew.recipe, crew.runs, part, surplus)

    scarce = lambda wanted, of, surplus: math.ceil(0.5 * (1 + surplus) * wanted / of)  # noqa: E731
    monkeypatch.setattr(synth_shards, "part_size", scarce)
    monkeypatch.setattr(synth_ray, "cluster", lambda: nullcontext([2]))
    monkeypatch.setattr(Crew, "make", make)
    said = []
    synth_on_ray(recipe, tmp_path / "ray", say=said.append)
    assert "2 shards brought" in said[1]
    assert "all write on, with a surplus of" in said[1]
    assert files_of(tmp_path / "ray/tiny/data") == one


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_an_error_of_a_shard_is_one_line_with_its_cure(tmp_path, two_workers):
    with pytest.raises(UsageError, match=r"^shard 1/1 cannot → mend it$"):
        synth_on_ray(SMALL, tmp_path, shards=1, work=refuses)


def test_more_cores_for_a_shard_than_a_machine_has_are_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"workers is 3, and the machines .* have 2 cores → give --synth.workers 1 to 2"
    ):
        Crew.of(changed(SMALL, workers=3), tmp_path, None, [2, 2], refuses)
    crew = Crew.of(changed(SMALL, workers=3), tmp_path, None, [2, 8, 3], refuses)
    assert (crew.at_once, len(crew.parts), crew.cores) == (3, 3, 3)
    assert Crew.of(SMALL, tmp_path, 2, [2, 8, 3], refuses).recipe.synth.workers == 1


def test_an_actor_works_where_the_driver_does(shared, tmp_path, monkeypatch):
    """A recipe may name its files relative to there."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    seen = []
    assert ShardMaker(replace(shared, work=lambda *given: seen.append(Path.cwd())))({"number": 1}) == {"error": b""}
    assert seen == [tmp_path]


def test_a_shard_whose_actors_all_die_ends_the_run(shared):
    """Ray would start them for ever."""
    place = shared.runs / "tiny/shards/1-of-2" / synth_ray.STATE
    for tries in range(1, synth_ray.TRIES + 1):
        assert b"cannot" in ShardMaker(shared)({"number": 1})["error"], "it is tried"
        assert json.loads(place.read_text())["tries"] == tries
    error = pickle.loads(ShardMaker(shared)({"number": 1})["error"])
    assert re.search("shard 1/2 lost 4 actors.*memory.*start again.*--synth.workers", str(error))
    assert b"cannot" in ShardMaker(shared)({"number": 2})["error"], "each shard has its tries"


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """What an actor is told, in this process, where the driver's mark is seen."""
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "tiny/shards" / synth_ray.MARK
    mark.parent.mkdir(parents=True)
    mark.write_text("this round")
    return Task(SMALL, tmp_path, 2, None, tmp_path, "this round", refuses)


def test_a_machine_that_sees_other_files_makes_nothing(shared, tmp_path):
    mark = tmp_path / "tiny/shards" / synth_ray.MARK
    for there in (True, False):
        mark.write_text("of another start") if there else mark.unlink()
        error = pickle.loads(ShardMaker(shared)({"number": 1})["error"])
        assert isinstance(error, RunError)
        assert "does not see" in str(error)
        assert "--runs DIR" in str(error)
    assert [path.name for path in tmp_path.rglob("*")] == ["tiny", "shards"]


def test_a_part_that_is_still_held_is_waited_for(shared, tmp_path, monkeypatch):
    """What was killed may hold its lock a little longer than Ray thinks."""
    put_fakes(monkeypatch)
    held = RunDir.open(tmp_path / "tiny/shards", SMALL.model_copy(update={"name": "1-of-2"}))
    with monkeypatch.context() as patch:
        patch.setattr(synth_ray, "LOCKED_SECONDS", 0.0)
        error = pickle.loads(ShardMaker(replace(shared, work=run_shard))({"number": 1})["error"])
        assert "1-of-2 is being written by process" in str(error)
    monkeypatch.setattr(time, "sleep", lambda seconds: held.close())
    assert ShardMaker(replace(shared, work=run_shard))({"number": 1}) == {"error": b""}
    assert list(read_rows(tmp_path / "tiny/shards/1-of-2/texts/drafts.jsonl"))


def test_the_number_of_shards_is_that_of_the_begun(tmp_path, fakes):  # noqa: F811
    folder = tmp_path / "tiny/shards"
    assert len(parts_of(SMALL, folder, None, 5)) == 5
    assert len(parts_of(SMALL, folder, 7, 5)) == 7
    run_shard(SMALL, tmp_path, Part(2, 3))
    assert parts_of(SMALL, folder, None, 5) == [Part(1, 3), Part(2, 3), Part(3, 3)]
    with pytest.raises(UsageError, match=r"--shards 5: .* was begun with 3 → leave the option out or give 3"):
        parts_of(SMALL, folder, 5, 5)


def test_a_cluster_that_does_not_answer_is_named(monkeypatch):
    def init(**settings):
        assert settings["address"] == "10.0.0.1:6379"
        assert not {"include_dashboard", "object_store_memory"} & set(settings), (
            "Ray refuses them of a cluster that runs"
        )
        raise ConnectionError("nobody answers\nthere")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(synth_ray, "_ray", lambda: SimpleNamespace(is_initialized=lambda: False, init=init))
    refused = r"no Ray cluster at RAY_ADDRESS=10\.0\.0\.1:6379: nobody answers there → look with"
    with pytest.raises(ServiceError, match=refused), cluster():
        pass


def test_the_command_line_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    from rbalign.cli.main import run_command

    path = tmp_path / "tiny.toml"
    path.write_text(dump_recipe(SMALL))

    def refused(verb, *words):
        assert run_command([verb, str(path), *words]) == 2
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1
        return said

    monkeypatch.chdir(tmp_path)
    for more in (["--shard", "1/2"], ["--merge"], ["--surplus", "0.1"]):
        assert "leave --shard, --surplus and --merge out" in refused("synth", "--engine", "ray", *more)
    assert "--fork has no shards" in refused("synth", "--engine", "ray", "--fork", "x")
    assert "unknown engine 'rey'; allowed: local, ray → did you mean 'ray'?" in refused("synth", "--engine", "rey")
    assert "--shards 2 is for --engine ray" in refused("synth", "--shards", "2")
    assert "--shards" in refused("synth", "--engine", "ray", "--shards", "901")
    assert "--engine is an option of `rba synth`" in refused("run", "--engine", "ray")
    assert run_command(["synth", str(path), "--engine", "ray", "--dry-run"]) == 0
    assert "write and answer instructions" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists(), "a dry run leaves nothing behind"
    monkeypatch.setitem(sys.modules, "ray", None)
    assert 'ray is not installed → pip install "rbalign[ray]"' in refused("synth", "--engine", "ray")


# ---- progress --------------------------------------------------------------------------------------------------------


def test_progress_of_all_parts_is_one_line_with_the_time_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(synth_ray, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(progress_module, "SECONDS_BETWEEN_LINES", 0.0)
    parts = [Part(1, 2), Part(2, 2)]

    def put(part, share, mark="now"):
        place = tmp_path / part.name / synth_ray.STATE
        place.parent.mkdir(exist_ok=True)
        place.with_suffix(".new").write_text(json.dumps({"mark": mark, "tries": 1, "counts": {"clips": share}}))
        place.with_suffix(".new").replace(place)

    put(parts[1], 1.0, "an earlier round")
    with synth_ray.watched(tmp_path, parts, "clips", "now"):
        put(parts[0], 0.5)
        while "25/100" not in (said := capsys.readouterr().err):
            time.sleep(0.01)
        assert "2 shards make clips: 25/100 %, " in said
        assert " left" in said
        put(parts[0], 1.0)
        put(parts[1], 1.0)
    assert capsys.readouterr().err.splitlines()[-1].startswith("2 shards make clips: 100/100 % in ")


def test_what_is_counted_is_told_every_few_seconds_and_not_shown(capsys):
    now, told = [0.0], []
    with progress_module.counted(lambda *state: told.append(state), lambda: now[0]):
        with progress_module.progress(100, "speak", done=10, unit="clips") as advance:
            for _ in range(10):
                now[0] += 0.5
                advance()
        progress_module.note("of a server")
    assert told == [("clips", 10, 100), ("clips", 14, 100), ("clips", 18, 100), ("clips", 20, 100)]
    assert capsys.readouterr().err == ""
    progress_module.note("afterwards")
    assert capsys.readouterr().err == "afterwards\n"
