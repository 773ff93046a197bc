"""Run directories: skip, refuse, fork, one writer; whole files and progress."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rbalign.config.load import load_recipe
from rbalign.config.recipe import Recipe
from rbalign.errors import DataError, RunError, UsageError
from rbalign.rundir import progress as progress_module
from rbalign.rundir.files import atomic_write, sha256_file, stable_hash
from rbalign.rundir.run import RunDir

RECIPE = Recipe.model_validate({"name": "base", "synth": {"train": 8}, "align": {"beta": 0.1}})
SYNTH = {"train": 8, "filters": {"min_words": 4}}


def finish_synth(run: RunDir) -> None:
    handle = run.stage("synth", SYNTH, {})
    atomic_write(run.path("data", "examples-00000.jsonl"), "{}\n")
    handle.finish({"dataset": "abc"})


def test_a_finished_stage_is_done_and_gives_its_outputs(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, RECIPE) as run:
        assert not run.stage("synth", SYNTH, {}).done
        assert run.outputs("synth") is None
        finish_synth(run)
    with RunDir.open(tmp_path, RECIPE) as run:
        handle = run.stage("synth", SYNTH, {})
        assert handle.done
        assert handle.outputs == run.outputs("synth") == {"dataset": "abc"}


def test_a_stage_that_began_but_did_not_finish_goes_on(tmp_path: Path) -> None:
    for _ in range(2):
        with RunDir.open(tmp_path, RECIPE) as run:
            assert not run.stage("synth", SYNTH, {}).done


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("section", "inputs", "parts"),
    [
        ({"train": 9, "filters": {"min_words": 5}}, {}, ["train was 8 when synth", "is now 9"]),
        ({"train": 8, "filters": {"min_words": 5}}, {}, ["filters.min_words was 4", "is now 5"]),
        ({"train": 8}, {}, ["filters was", "absent"]),
        (SYNTH, {"connector": "ff"}, ["an input of synth: connector was absent", '"ff"']),
    ],
)
def test_a_changed_stage_is_refused_with_the_first_difference_and_the_cure(
    tmp_path: Path, finished: bool, section: dict, inputs: dict, parts: list[str]
) -> None:
    with RunDir.open(tmp_path, RECIPE) as run:
        finish_synth(run) if finished else run.stage("synth", SYNTH, {})
    with RunDir.open(tmp_path, RECIPE) as run:
        before = run.path("status.json").read_bytes()
        with pytest.raises(RunError) as caught:
            run.stage("synth", section, inputs)
        assert run.path("status.json").read_bytes() == before
    for part in [*parts, "run base", "--fork NAME", "finished" if finished else "began"]:
        assert part in str(caught.value)


def test_a_fork_takes_over_matching_finished_stages_and_leaves_the_source_alone(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, RECIPE) as run:
        finish_synth(run)
        run.stage("align/sft-s0", {"beta": 0.1}, {"dataset": "abc"}).finish({"adapter": "s"})
        atomic_write(run.path("arms", "sft-s0", "metrics.jsonl"), "{}\n")
        atomic_write(run.path("arms", "kd-s0", "metrics.jsonl"), "{}\n")
        run.stage("align", {"beta": 0.1}, {"dataset": "abc"})
        run.stage("eval", {}, {})
    before = (tmp_path / "base" / "status.json").read_bytes()

    changed = load_recipe_from(tmp_path, 0.2)
    with RunDir.open(tmp_path, changed, fork="warmer") as fork:
        assert fork.folder == tmp_path / "warmer"
        assert fork.stage("synth", SYNTH, {}).outputs == {"dataset": "abc"}
        assert fork.path("data", "examples-00000.jsonl").read_text() == "{}\n"
        assert fork.stage("align/sft-s0", {"beta": 0.1}, {"dataset": "abc"}).done
        assert fork.path("arms", "sft-s0", "metrics.jsonl").exists()
        assert not fork.path("arms", "kd-s0").exists(), "only the files of the part that matched"
        assert not fork.stage("align", {"beta": 0.2}, {"dataset": "abc"}).done
        assert not fork.stage("eval", {}, {}).done, "began there, but never finished"
    with RunDir.open(tmp_path, changed, fork="warmer") as fork:
        assert fork.stage("synth", SYNTH, {}).done, "the same command goes on with the fork"
        assert load_recipe(fork.path("recipe.toml")).name == "warmer"
        assert load_recipe(fork.path("recipe.toml")).align.beta == 0.2  # type: ignore[union-attr]
    assert (tmp_path / "base" / "status.json").read_bytes() == before


def load_recipe_from(root: Path, beta: float) -> Recipe:
    return load_recipe(root / "base" / "recipe.toml", ["--align.beta", str(beta)])


def test_a_fork_does_not_take_a_stage_whose_settings_or_inputs_differ(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, RECIPE) as run:
        finish_synth(run)
    with RunDir.open(tmp_path, RECIPE, fork="other") as fork:
        assert not fork.stage("synth", {**SYNTH, "train": 9}, {}).done
        assert not fork.path("data").exists()


def test_writing_a_taken_over_file_anew_leaves_the_source_as_it_was(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, RECIPE) as run:
        finish_synth(run)
    with RunDir.open(tmp_path, RECIPE, fork="other") as fork:
        fork.stage("synth", SYNTH, {})
        atomic_write(fork.path("data", "examples-00000.jsonl"), "new")
    assert (tmp_path / "base" / "data" / "examples-00000.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize("name", ["../x", "A b", "", ".hidden", "base"])
def test_a_bad_fork_name_is_refused(tmp_path: Path, name: str) -> None:
    if name != "base":
        RunDir.open(tmp_path, RECIPE).close()
    with pytest.raises(UsageError, match="fork"):
        RunDir.open(tmp_path, RECIPE, fork=name)


def test_forking_needs_a_source_and_a_free_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run"):
        RunDir.open(tmp_path, RECIPE, fork="other")
    RunDir.open(tmp_path, RECIPE).close()
    RunDir.open(tmp_path, RECIPE.model_copy(update={"name": "third"})).close()
    with pytest.raises(RunError, match="third is no fork of base"):
        RunDir.open(tmp_path, RECIPE, fork="third")


def test_recipe_toml_is_the_recipe_that_the_stages_ran_with(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, RECIPE) as run:
        finish_synth(run)
        assert load_recipe(run.path("recipe.toml")) == RECIPE
    with RunDir.open(tmp_path, load_recipe_from(tmp_path, 0.3)) as run:
        with pytest.raises(RunError):
            run.stage("synth", {**SYNTH, "train": 9}, {})
        assert load_recipe(run.path("recipe.toml")) == RECIPE, "a refusal leaves no trace"
        run.stage("align", {"beta": 0.3}, {})
        assert load_recipe(run.path("recipe.toml")).align.beta == 0.3  # type: ignore[union-attr]


def test_looking_makes_nothing(tmp_path: Path) -> None:
    look = RunDir.look(tmp_path, RECIPE)
    assert not look.stage("synth", SYNTH, {}).done
    assert list(tmp_path.iterdir()) == []


# Holds the run "base" until its stdin ends.
HOLDER = """
import sys
from pathlib import Path
from rbalign.config.recipe import Recipe
from rbalign.rundir.run import RunDir
with RunDir.open(Path(sys.argv[1]), Recipe(name="base")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_with_the_pid_of_the_first_and_a_kill_frees_the_run(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"written by process {holder.pid}"):
            RunDir.open(tmp_path, RECIPE)
        RunDir.look(tmp_path, RECIPE)
    finally:
        holder.kill()
        holder.communicate()
    with RunDir.open(tmp_path, RECIPE), pytest.raises(RunError, match=f"process {os.getpid()}"):
        RunDir.open(tmp_path, RECIPE)
    RunDir.open(tmp_path, RECIPE).close()


def test_environment_json_holds_no_variable_host_user_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBA_TEST_KEY", "sk-very-secret")
    for _ in range(2):
        RunDir.open(tmp_path, RECIPE).close()
    text = (tmp_path / "base" / "environment.json").read_text()
    (entry,) = json.loads(text)
    assert entry["packages"]["pydantic"]
    assert entry["threads"]["usable"] >= 1
    assert entry["python"].startswith(f"{sys.version_info.major}.")
    for secret in ("sk-very-secret", os.uname().nodename, str(Path.home()), str(tmp_path), sys.prefix):
        assert len(secret) < 3 or secret not in text


def test_a_damaged_status_is_named(tmp_path: Path) -> None:
    RunDir.open(tmp_path, RECIPE).close()
    (tmp_path / "base" / "status.json").write_text("[]")
    with pytest.raises(DataError, match=r"status\.json is not the status of a run"):
        RunDir.open(tmp_path, RECIPE)


def test_an_atomic_write_that_fails_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file.txt"
    atomic_write(path, "old")

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 700_000)
    told: list[int] = []
    assert (
        sha256_file(tmp_path / "x", told.append) == "4e98d1c077705da58a1539b85fd0e829e6ccc59fa5fa76ce292fb2fb5f173e51"
    )
    assert sum(told) == 2_100_000
    assert stable_hash({"a": 1, "b": (1, 2)}) == stable_hash({"b": [1, 2], "a": 1})
    assert stable_hash({"a": 1}) != stable_hash({"a": "1"})
    with pytest.raises(DataError):
        stable_hash(float("nan"))


def test_plain_progress_says_a_line_every_ten_seconds_and_one_at_the_end() -> None:
    now = 0.0
    stream = io.StringIO()
    with progress_module._lines(100, "speaking", 20, "clips", stream, lambda: now) as advance:
        for _ in range(8):
            now += 4.0
            advance(10)
    lines = stream.getvalue().splitlines()
    # 10 clips every 4 s; the 20 that were there already must not make it look faster: 50 left = 20 s.
    assert lines == [
        "speaking: 50/100 clips, 20 s left",
        "speaking: 80/100 clips, 8 s left",
        "speaking: 100/100 clips in 32 s",
    ]


def test_progress_goes_to_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_module.progress(2, "work") as advance:
        advance()
        advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "work: 2/2 in 0 s\n"


def test_durations_read_well() -> None:
    assert [progress_module.duration(s) for s in (-1, 8.4, 89, 200, 3900, 9000)] == [
        "0 s", "8 s", "89 s", "3 min", "1 h 05 min", "2 h 30 min",
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_there_is_one_bar_that_ends_full() -> None:
    import pty

    program = """
from rbalign.rundir.progress import progress
with progress(40, "speak", done=10, unit="clips") as advance:
    for _ in range(3):
        advance(10)
"""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", program], stderr=theirs, stdout=subprocess.PIPE, env=environment)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert done.returncode == 0
    assert done.stdout == b""
    last = next(line for line in reversed(shown.splitlines()) if "speak" in line)
    assert "40/40" in last
    assert "clips" in last
