"""The command line: help, one-line errors, plans, listings, and what gets imported."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rbalign.cli.main import run_command
from rbalign.cli.pipeline import split_words
from rbalign.errors import UsageError
from rbalign.stages.base import Plan, PlanRow

Captured = pytest.CaptureFixture[str]
VERBS = ["run", "synth", "connect", "align", "eval", "predict", "score", "report"]
VERBS += ["ask", "export", "export-data", "inspect", "card", "compare", "assets", "list"]


def rba(*words: object) -> int:
    return run_command([str(word) for word in words])


def refusal(capsys: Captured, *words: object, code: int = 2) -> str:
    assert rba(*words) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    return err


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stage modules that plan and leave a results.json; the names of those that ran."""
    ran: list[str] = []

    def module(name: str) -> SimpleNamespace:
        def run(recipe, run):
            ran.append(f"{name} beta={recipe.align.beta}")
            row = {"task": "open", "metric": "chrf", "value": 0.25, "ci_low": 0.2, "ci_high": 0.3, "seed": None}
            rows = [{**row, "arm": arm, "optimised": arm == "sft"} for arm in ("base", "sft")]
            run.path("results.json").write_text(json.dumps({"rows": rows}))
            return {"hash": name}

        plan = Plan((PlanRow(f"[bold]{name} things", 1234, seconds=3900, bytes=5_000_000),))
        return SimpleNamespace(plan=lambda recipe, run: plan, run=run)

    for name in ("synth", "align", "eval", "report"):
        monkeypatch.setitem(sys.modules, f"rbalign.stages.{name}", module(name))
    return ran


def test_help_lists_every_verb(capsys: Captured) -> None:
    assert rba("--help") == 0
    out = capsys.readouterr().out
    for verb in VERBS:
        assert f"│ {verb} " in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str, capsys: Captured) -> None:
    assert rba(verb, "--help") == 0
    assert "Usage: rba" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [["--help"], ["run", "--help"], ["list", "recipes"], ["list", "voices"], ["run", "smoke", "--align.betta=1"]],
)
def test_light_commands_import_no_torch_and_no_numpy(words: list[str]) -> None:
    program = f"""
import sys
from rbalign.cli.main import run_command
run_command({words!r})
heavy = {{"torch", "transformers", "numpy", "scipy", "matplotlib", "pyarrow"}} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["run", "quikstart"], ["did you mean 'quickstart'?"]),
        (["run", "smoke", "--align.betta", "2"], ["'betta'", "did you mean 'beta'?"]),
        (["run", "smoke", "--dry_run"], ["--dry_run", "did you mean --dry-run?"]),
        (["run", "smoke", "laptop"], ["2 recipes: smoke, laptop"]),
        (["run"], ["RECIPE", "rba COMMAND --help"]),
        (["rum"], ["rum"]),
        (["connect", "smoke"], ["no [connect] section"]),
        (["predict", "connect"], ["no [eval] section"]),
        (["score", "nowhere"], ["nowhere is no run"]),
        (["score", "smoke"], ["runs/smoke is no run"]),
        (["export", "smoke", "sft", "out"], ["runs/smoke is no run", "--runs DIR"]),
        (["assets", "fetch", "no-such-asset"], ["no-such-asset"]),
        (["ask"], ["nothing to ask", "--text"]),
        (["ask", "nowhere.wav"], ["no file nowhere.wav"]),
        (["ask", "--text", "hi", "--arm", "sft"], ["add --run RUN"]),
        (["ask", "--text", "hi", "--run", "nowhere"], ["nowhere is no run"]),
        (["compare", "nowhere", "neither"], ["nowhere has no results.json"]),
        (["inspect", "nowhere"], ["nowhere"]),
        (["card", "nowhere"], ["nowhere is no run"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], parts: list[str], capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    err = refusal(capsys, *words)
    for part in parts:
        assert part in err
    assert list(tmp_path.iterdir()) == [], "a refused command leaves nothing behind"


def test_rba_debug_keeps_the_traceback_of_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBA_DEBUG", "1")
    with pytest.raises(UsageError):
        rba("run", "quikstart")


def test_a_fault_of_rba_itself_keeps_its_traceback(
    stages: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(recipe, run):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(sys.modules["rbalign.stages.synth"], "run", broken)
    with pytest.raises(ZeroDivisionError):
        rba("run", "smoke", "--runs", tmp_path)


def test_overrides_may_stand_anywhere() -> None:
    assert split_words(["--align.beta", "-0.5", "smoke", "--seed=3"]) == ("smoke", ["--align.beta", "-0.5", "--seed=3"])
    with pytest.raises(UsageError, match="no recipe"):
        split_words(["--align.beta", "0.5"])


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_run_prints_plan_table_and_where_to_look(
    order: int, stages: list[str], capsys: Captured, tmp_path: Path
) -> None:
    pieces: list[list[object]] = [["smoke"], ["--align.beta", "0.2"], ["--runs", tmp_path]]
    words = [word for piece in pieces[order:] + pieces[:order] for word in piece]
    assert rba("run", *words) == 0
    out = capsys.readouterr().out
    assert stages == [f"{stage} beta=0.2" for stage in ("synth", "align", "eval", "report")]
    assert "[bold]synth things" in out, "text is shown as it is, never read as markup"
    assert "1,234" in out
    assert "4 h 20 min" in out
    assert "20 MB" in out
    assert "0.250* (0.200 to 0.300)" in out
    assert str(tmp_path / "smoke") in out
    assert "No headline comparison could be made" in out
    assert rba("run", *words) == 0
    assert "finished before, skipped" in capsys.readouterr().out


def test_a_changed_run_is_refused_and_a_fork_goes_on(stages: list[str], capsys: Captured, tmp_path: Path) -> None:
    assert rba("run", "smoke", "--runs", tmp_path) == 0
    capsys.readouterr()
    assert "align.beta was 0.1" in refusal(capsys, "run", "smoke", "--align.beta=3", "--runs", tmp_path, code=1)
    stages.clear()
    assert rba("run", "smoke", "--align.beta=3", "--runs", tmp_path, "--fork", "warm") == 0
    assert stages == [f"{stage} beta=3.0" for stage in ("align", "eval", "report")]


def test_a_dry_run_makes_nothing(stages: list[str], capsys: Captured, tmp_path: Path) -> None:
    assert rba("run", "smoke", "--dry-run", "--runs", tmp_path / "runs") == 0
    assert "align things" in capsys.readouterr().out
    assert stages == []
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_says_in_one_line_how_to_go_on(
    stages: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stopped(recipe, run):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["rbalign.stages.align"], "run", stopped)
    runs = tmp_path / "my runs"
    err = refusal(capsys, "run", "smoke", "--runs", runs, code=130)
    assert f"go on with: rba run smoke --runs '{runs}'" in err
    assert stages == ["synth beta=0.1"]


def test_predict_leaves_eval_open_and_score_closes_it(
    stages: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for half in ("predict", "score"):
        module = SimpleNamespace(plan=lambda recipe, run: Plan(), run=lambda recipe, run, half=half: {"made by": half})
        monkeypatch.setattr("rbalign.stages." + half, module, raising=False)
        monkeypatch.setitem(sys.modules, f"rbalign.stages.{half}", module)
    assert "predict needs synth" in refusal(capsys, "predict", "smoke", "--runs", tmp_path, code=1)
    for stage in ("synth", "align"):
        assert rba(stage, "smoke", "--runs", tmp_path) == 0
    assert rba("predict", "smoke", "--runs", tmp_path) == 0
    assert f"rba score {tmp_path / 'smoke'}" in capsys.readouterr().out
    status = tmp_path / "smoke" / "status.json"
    assert json.loads(status.read_text())["stages"]["eval"]["state"] == "started"
    assert "needs eval" in refusal(capsys, "report", "smoke", "--runs", tmp_path, code=1)
    assert rba("score", tmp_path / "smoke") == 0
    assert json.loads(status.read_text())["stages"]["eval"]["outputs"] == {"made by": "score"}
    assert rba("report", "smoke", "--runs", tmp_path) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
def test_ctrl_c_in_a_real_process_ends_with_130_and_frees_the_run(tmp_path: Path) -> None:
    program = """
import sys, time
from types import SimpleNamespace
from rbalign.stages.base import Plan
def run(recipe, run):
    print("working", flush=True)
    time.sleep(60)
for name in ("synth", "align", "eval", "report"):
    sys.modules[f"rbalign.stages.{name}"] = SimpleNamespace(plan=lambda recipe, run: Plan(), run=run)
from rbalign.cli.main import main
main()
"""
    words = [sys.executable, "-c", program, "run", "smoke", "--runs", str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline() != "working\n":
        assert process.poll() is None
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "go on with: rba run smoke" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("recipes", ["smoke", "quickstart", "laptop"]),
        ("voices", ["af_heart", "hibari"]),
        ("objectives", ["sft", "kd", "rba-single", "rba-group"]),
        ("scorers", ["similarity", "qa"]),
        ("tasks", ["open", "qa", "chrf", "speech-ifeval", "covost2"]),
        ("models", ["smollm2-135m-instruct", "whisper-tiny.en", "Qwen2-Audio", "GLM-ASR", "Qwen2.5-Omni", "gemma3n"]),
    ],
)
def test_lists_name_what_there_is(kind: str, names: list[str], capsys: Captured) -> None:
    assert rba("list", kind) == 0
    first_words = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert set(names) <= first_words


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(clip, text, on_token, run, arm, beside):
        for piece in ("Par", "is."):
            if on_token is not None:
                on_token(piece)
        return {"heard": "capital of France", "answer": "Paris.", "text_answer": "Paris é.", "seconds": 1.25}

    monkeypatch.setitem(sys.modules, "rbalign.stages.ask", SimpleNamespace(ask=ask))


def test_ask_streams_the_answer(answering: None, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(b"RIFF")
    assert rba("ask", tmp_path / "clip.wav") == 0
    out = capsys.readouterr().out.splitlines()
    assert out == ["answer: Paris.", "heard: capital of France", "text answer: Paris é.", "seconds: 1.2"]


def test_ask_json_is_one_object(answering: None, capsys: Captured) -> None:
    assert rba("ask", "--text", "What is the capital of France?", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)) == {"heard", "answer", "text_answer", "seconds"}


def test_version(capsys: Captured) -> None:
    from rbalign import __version__

    assert rba("--version") == 0
    assert capsys.readouterr().out == f"rba {__version__}\n"
