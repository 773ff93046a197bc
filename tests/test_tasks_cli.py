"""`rba score --task`, `--suite`, and `rba compare` of two scored files: what is printed, written and refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from benchdata import ifeval_answers, predictions, rba, write_alpaca, write_ifeval, write_lines, write_questions
from loopback import Loopback, chat

from rbalign.eval.paired import compare_scored
from rbalign.eval.tasks.scored import KIND, SCHEMA, read_scored
from rbalign.scorers.similarity import EMBEDDERS
from rbalign.stages.suite import suite_table
from rbalign.stages.tasks import read, score

pytestmark = pytest.mark.usefixtures("home")


def questions(folder, right, name):
    """Thirty questions whose answer is `yesN`; `right` of them are answered so."""
    data = folder / "data"
    if not data.exists():
        write_questions(data, [[f"yes{i}"] for i in range(30)])
    said = {str(i): f"It is yes{i}." if i in right else "No." for i in range(30)}
    return data, predictions(folder / f"{name}.jsonl", said)


def scored(folder, right, name):
    data, file = questions(folder, right, name)
    assert rba("score", "--task", "web-questions-twinkstart", "--data", data, file) == 0
    return folder / f"{name}.web-questions-twinkstart.json"


def test_ifeval_from_the_command_line(tmp_path, capsys):
    folder = write_ifeval(tmp_path / "data")
    file = predictions(tmp_path / "mine.jsonl", ifeval_answers() | {"closed/0": None})
    text = predictions(tmp_path / "text.jsonl", ifeval_answers())
    with Loopback(lambda asked: chat("Result: YES")) as server:
        (tmp_path / "judge.toml").write_text(f'url = "{server.url}"\nmodel = "tiny"\n')
        words = ("score", "--task", "speech-ifeval", "--data", folder, file, "--judge", tmp_path / "judge.toml")
        assert rba(*words, "--against", text, "--dry-run") == 0
        assert server.asked == []
        assert not (tmp_path / "mine.speech-ifeval.json").exists()
        assert rba(*words, "--against", text) == 0
        asked = len(server.asked)
        capsys.readouterr()
        assert rba(*words, "--against", text, "--again") == 0
        assert len(server.asked) == asked, "the cache knows every judgement"
    out = capsys.readouterr().out
    assert "7 of 8 items have a response" in out
    assert "0 missing, 1 failed: both stay in the denominator" in out
    assert "91.67 %" in out  # (75 + 100 + 100) / 3
    assert "-8.33 %" in out
    assert "protocol: speech-ifeval, data " in out
    found = read_scored(tmp_path / "mine.speech-ifeval.json")
    assert found["against"]["name"] == "text"
    assert found["judge"]["requests"]["failures"] == 0
    assert "judge tiny" in found["judge"]["protocol"]
    page = (tmp_path / "mine.speech-ifeval.md").read_text()
    assert "| if_rate |  | 91.67 %" in page
    assert str(tmp_path) not in page + json.dumps(found)


def test_a_win_rate_without_a_key(tmp_path, capsys):
    folder = write_alpaca(tmp_path / "data")
    mine = predictions(tmp_path / "mine.jsonl", {str(i): f"The number is {i}." for i in range(4)})
    base = predictions(tmp_path / "base.jsonl", {str(i): "I do not know." for i in range(3)})
    words = ("score", "--task", "spoken-alpaca", "--data", folder, mine, "--against", base, "--judge", "chrf")
    assert rba(*words, "--out", tmp_path / "out" / "a.json") == 0
    out = capsys.readouterr().out
    assert "winrate@base" in out
    assert "100.00 %" in out
    assert "4 won, 0 tied, 0 lost" in out
    assert "no length control for this judge" in out
    assert "base.jsonl: 1 missing" in out
    assert read_scored(tmp_path / "out" / "a.json")["figures"][1]["value"] is None


class Letters:
    """An embedder by hand: counts of the letters a to z."""

    name = "wordllama"

    def embed(self, texts):
        out = np.array([[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], dtype=np.float32)
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def test_an_embedder_judges_too(tmp_path, monkeypatch):
    monkeypatch.setitem(EMBEDDERS, "wordllama", Letters)
    folder = write_alpaca(tmp_path / "data")
    mine = predictions(tmp_path / "mine.jsonl", {str(i): "zzz" for i in range(4)})
    base = predictions(tmp_path / "base.jsonl", {str(i): "number" for i in range(4)})
    found = score(read("spoken-alpaca", str(folder), mine, against=base, judge="wordllama"), 50)
    assert found["figures"][0]["value"] == 0.0
    assert "wordllama to the reference" in found["figures"][0]["protocol"]


def test_an_llm_judge_and_length(tmp_path):
    """A judge that likes the longer answer, whatever it says: at equal length nothing is left of 100 %."""

    def longer(asked):
        first, second = asked.body["messages"][1]["content"].split("Answer 1:\n")[1].split("\n\nAnswer 2:\n")
        return chat(f"Verdict: {1 if len(first) > len(second) else 2}")

    folder = write_alpaca(tmp_path / "data", 40)
    mine = predictions(tmp_path / "mine.jsonl", {str(i): "word " * (i % 7 + 2) for i in range(40)})
    base = predictions(tmp_path / "base.jsonl", {str(i): "term " * (i % 3 + 2) for i in range(40)})
    with Loopback(longer) as server:
        (tmp_path / "judge.toml").write_text(f'url = "{server.url}"\nmodel = "tiny"\n')
        asked = read(
            "spoken-alpaca",
            str(folder),
            mine,
            against=base,
            judge=str(tmp_path / "judge.toml"),
            out=tmp_path / "o.json",
        )
        found = score(asked, 200)
        assert len(server.asked) == 2 * len({(i % 7, i % 3, i) for i in range(40)})
    raw, controlled = found["figures"]
    assert (raw["metric"], controlled["metric"]) == ("winrate@base", "lc_winrate@base")
    assert controlled["value"] < raw["value"] - 10
    assert controlled["characters"] == raw["characters"] > raw["opponent_characters"]
    assert "prior on length N(-1.5, precision 0.2 n)" in controlled["protocol"]
    assert "pairwise-1" in controlled["protocol"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["nothing to score"]),
        (["--task", "spoken-alpaca"], ["needs its data and one file"]),
        (["--task", "spoken-alpacca", "--data", "data", "mine.jsonl"], ["did you mean 'spoken-alpaca'"]),
        (["--task", "spoken-alpaca", "--data", "data", "mine.jsonl"], ["is a comparison", "--against"]),
        (["--task", "spoken-alpaca", "--data", "data", "mine.jsonl", "--against", "mine.jsonl"], ["needs a judge"]),
        (["--task", "spoken-alpaca", "--data", "data", "mine.jsonl", "--against", "mine.jsonl", "--judge", "chr"],
         ["unknown judge", "did you mean 'chrf'"]),
        (["--task", "spoken-alpaca", "--data", "data", "mine.jsonl", "--against", "mine.jsonl", "--judge", "no.toml"],
         ["cannot read no.toml"]),
        (["--task", "web-questions-twinkstart", "--data", "data", "mine.jsonl", "--against", "mine.jsonl"],
         ["takes no --against", "rba compare"]),
        (["--task", "web-questions-twinkstart", "--data", "data", "mine.jsonl", "--scorer", "ultra"],
         ["unknown scorer of web-questions-twinkstart", "did you mean 'ultraeval'"]),
        (["--task", "web-questions-twinkstart", "--data", "data", "mine.jsonl", "--judge", "x.toml"],
         ["beside --scorer rba, which asks none"]),
        (["--task", "speech-ifeval", "--data", "data", "mine.jsonl", "--judge", "chrf"], ["compares two answers"]),
        (["--task", "spoken-alpaca", "--data", "gone", "mine.jsonl", "--against", "m", "--judge", "chrf"],
         ["gone is no folder", "GSQA/spoken-alpaca-gpt4"]),
        (["--task", "spoken-alpaca", "--data", "data", "bad.jsonl", "--against", "mine.jsonl", "--judge", "chrf"],
         ["bad.jsonl line 1: unknown id '9'", "the first is '0'"]),
        (["--task", "spoken-alpaca", "--data", "data", "mine.jsonl", "--name", "x"], ["--name beside --task"]),
        (["--data", "data", "runs/x"], ["--data without --task"]),
        (["--suite", "rba-papr"], ["did you mean 'rba-paper'"]),
        (["--suite", "rba-paper", "data"], ["holds no scored file"]),
        (["--suite", "rba-paper", "--task", "x"], ["--task beside --suite"]),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_one_line(words, parts, tmp_path, capsys):
    write_alpaca(tmp_path / "data")
    predictions("mine.jsonl", {"0": "x"})
    predictions("bad.jsonl", {"9": "x"})
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert rba("score", *words) in (1, 2)
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1, err
    for part in parts:
        assert part in err
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name != "home") == before


def test_nothing_of_the_users_is_overwritten(tmp_path, capsys):
    data, file = questions(tmp_path, {1}, "mine")
    words = ("score", "--task", "web-questions-twinkstart", "--data", data, file)
    mine = tmp_path / "mine.web-questions-twinkstart.json"
    mine.write_text('{"my": "own"}')
    assert rba(*words) == 2
    assert rba(*words, "--again") == 1
    assert "holds no scores of a task" in capsys.readouterr().err
    assert mine.read_text() == '{"my": "own"}'
    assert rba(*words, "--out", tmp_path / "x.txt") == 2
    mine.unlink()
    assert rba(*words) == rba(*words, "--again") == 0


def test_two_scored_files_by_hand(tmp_path, capsys):
    """A answers 0 to 9 rightly, B 5 to 19: ten gained, five lost, fifteen alike; +16.67 points."""
    a, b = scored(tmp_path, set(range(10)), "a"), scored(tmp_path, set(range(5, 20)), "b")
    rows, flips = compare_scored(read_scored(b), read_scored(a))
    (row,) = rows
    assert (row["wins"], row["losses"], row["ties"], row["n"]) == (10, 5, 15, 30)
    assert row["difference"] == pytest.approx(100 * 5 / 30, abs=1e-4)
    assert row["ci_low"] < 0 < row["ci_high"]
    # Exact binomial: 2 (C(15,0) + ... + C(15,5)) / 2^15.
    assert row["sign_p"] == pytest.approx(2 * (1 + 15 + 105 + 455 + 1365 + 3003) / 2**15, abs=1e-6)
    gaps = np.array([1.0] * 10 + [-1.0] * 5 + [0.0] * 15)
    assert row["effect"] == pytest.approx(gaps.mean() / gaps.std(ddof=1), abs=1e-6)
    assert len(flips) == 15
    assert sum(flip.after > flip.before for flip in flips) == 10
    capsys.readouterr()
    assert rba("compare", a, b) == 0
    out = capsys.readouterr().out
    assert "+16.67" in out
    assert "10 / 5 / 15" in out
    assert "samples that flipped: 10 of 15" in out
    assert "It is yes0." in out
    assert rba("compare", a, b, "--all") == 0
    assert "samples that flipped: 15 of 15" in capsys.readouterr().out
    turned, _ = compare_scored(read_scored(a), read_scored(b))
    assert turned[0]["difference"] == -row["difference"]
    assert turned[0]["sign_p"] == row["sign_p"]


def test_the_difference_of_a_corpus_is_the_difference_of_its_scores(tmp_path):
    references = [f"Das ist Satz Nummer {i} von zwanzig ." for i in range(20)]
    write_lines(tmp_path / "data/en_de/test.jsonl", [{"sentence": "x", "translation": one} for one in references])
    values = {}
    for name, cut in (("a", 4), ("b", 11)):
        said = {str(i): one if i < cut else one.replace("Nummer", "Nr .") for i, one in enumerate(references)}
        file = predictions(tmp_path / f"{name}.jsonl", said)
        assert rba("score", "--task", "covost2:en_de", "--data", tmp_path / "data", file) == 0
        values[name] = read_scored(tmp_path / f"{name}.covost2-en_de.json")
    rows, _ = compare_scored(values["b"], values["a"], resamples=300)
    for row, figure, other in zip(rows, values["b"]["figures"], values["a"]["figures"], strict=True):
        assert row["metric"] == figure["metric"]
        assert row["difference"] == pytest.approx(figure["value"] - other["value"], abs=1e-5)
        assert (row["wins"], row["losses"], row["ties"]) == (7, 0, 13)
        assert row["ci_low"] > 0


def test_parts_are_compared_too(tmp_path):
    folder = write_ifeval(tmp_path / "data")
    made = []
    for name, kept in (("good", True), ("bad", False)):
        file = predictions(tmp_path / f"{name}.jsonl", ifeval_answers(kept))
        assert rba("score", "--task", "speech-ifeval", "--data", folder, file) == 0
        made.append(read_scored(tmp_path / f"{name}.speech-ifeval.json"))
    rows, flips = compare_scored(*made, resamples=100)
    assert {row["part"]: (row["difference"], row["n"]) for row in rows} == {
        "": (100.0, 6), "closed": (100.0, 4), "creative": (100.0, 2),
    }  # fmt: skip
    assert len(flips) == 6, "reasoning was not judged: it is left out, not lost"


def test_files_of_other_items_are_not_compared(tmp_path, capsys):
    a = scored(tmp_path, {1}, "a")
    other = json.loads(a.read_text())
    other["data"]["content"] = "0"
    write = tmp_path / "other.json"
    write.write_text(json.dumps(other))
    assert rba("compare", a, write) == 2
    assert "two contents" in capsys.readouterr().err
    write.write_text("{}")
    assert rba("compare", a, write) == 1
    assert "holds no scores" in capsys.readouterr().err
    folder = write_alpaca(tmp_path / "alpaca")
    win = []
    for opponent in ("x", "y"):
        mine = predictions(tmp_path / "mine.jsonl", {str(i): "The number" for i in range(4)})
        them = predictions(tmp_path / f"{opponent}.jsonl", {"0": opponent})
        asked = read("spoken-alpaca", str(folder), mine, against=them, judge="chrf", out=tmp_path / f"{opponent}.json")
        score(asked, 50)
        win.append(tmp_path / f"{opponent}.json")
    assert rba("compare", *win) == 2
    assert "of wins over other answers" in capsys.readouterr().err


def test_the_papers_rows_have_empty_and_measured_cells(tmp_path, capsys):
    empty = suite_table("rba-paper", None)
    assert all(row[-2] == "" for row in empty.rows)
    assert all(row[-1] for row in empty.rows), "every row says what differs"
    scored(tmp_path, set(range(12)), "mine")
    folder = write_alpaca(tmp_path / "alpaca")
    mine = predictions(tmp_path / "mine.jsonl", {str(i): "The number" for i in range(4)})
    sft = predictions(tmp_path / "sft.jsonl", {str(i): "no" for i in range(4)})
    words = ("--against", sft, "--judge", "chrf")
    assert rba("score", "--task", "spoken-alpaca", "--data", folder, mine, *words) == 0
    table = suite_table("rba-paper", tmp_path)
    measured = {row[0]: row[-2] for row in table.rows if row[-2]}
    assert set(measured) == {"Web Questions, accuracy, %", "Spoken-Alpaca, win rate against SFT, %"}
    assert measured["Web Questions, accuracy, %"].startswith("mine 40.00 % (")
    assert measured["Web Questions, accuracy, %"].endswith("n 30")
    assert "mine against sft 100.00 %" in measured["Spoken-Alpaca, win rate against SFT, %"]
    assert any("containment+number-folding" in note for note in table.notes)
    capsys.readouterr()
    assert rba("score", "--suite", "rba-paper", tmp_path) == 0
    out = capsys.readouterr().out
    assert "40.7" in out
    assert "mine 40.00 %" in out


def test_the_paper_has_its_own_numbers():
    """Two cells of every table of section 3, copied by hand from the paper."""
    rows = {row[0]: row[1:-2] for row in suite_table("rba-paper", None).rows}
    assert rows["information seeking, in domain, win rate/at equal length against base, %"][2:4] == [
        "95.0/76.5",
        "79.5/55.0",
    ]
    assert rows["Spoken-Alpaca, length-controlled, against base, %"][2:4] == ["63.0", "60.5"]
    assert rows["TriviaQA, accuracy, %"][:3] == ["19.7", "", "55.1"]
    assert rows["CoVoST2 en-zh, BLEU"] == ["45.2", "45.0", "46.0", "47.3", "49.7", "49.1"]
    assert rows["consistency over 4 voices, mean cosine"][:4] == ["0.826", "0.893", "", "0.945"]


def write_scored(path, task, model, figures):
    """What `rba score` writes, as far as the suite reads it; figures: (metric, part, value)."""
    rows = [
        {"metric": metric, "part": part, "value": value, "ci_low": None, "ci_high": None, "n": 9, "unit": ""}
        | {"protocol": f"{metric} by hand"}
        for metric, part, value in figures
    ]
    found = {"kind": KIND, "schema": SCHEMA, "task": task, "model": model, "data": {}, "samples": [], "counts": {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found | {"figures": rows}))
    return path


def row_of(what, place):
    (row,) = (row for row in suite_table("rba-paper", place).rows if row[0] == what)
    return row[-2]


def test_the_papers_rows_read_what_an_evaluation_wrote(tmp_path, capsys):
    """Scores lie in DIR/TASK/NAME.json, among files that are none; `rba eval --suite` needs no model for them."""
    for place, value in (("a", 31.25), ("b", 62.5)):
        for who, more in (("text", 0), (f"model-{place}", 1)):
            path = tmp_path / "results" / place / "web-questions-twinkstart" / f"{who}.json"
            write_scored(path, "web-questions-twinkstart", who, [("accuracy", "", value + more)])
        (tmp_path / "results" / place / "evaluation.json").write_text('{"figures": []}')
    old = json.loads((tmp_path / "results/a/web-questions-twinkstart/text.json").read_text()) | {"schema": 0}
    (tmp_path / "results" / "old.json").write_text(json.dumps(old))
    (tmp_path / "results" / "torn.json").write_text('{"kind": "rba ta')
    (tmp_path / "results" / "folder.json").mkdir()
    assert rba("eval", "--suite", "rba-paper", "--output", tmp_path / "results") == 0
    out = capsys.readouterr().out
    found = row_of("Web Questions, accuracy, %", tmp_path / "results").split("; ")
    assert found == [
        "model-a 32.25, n 9",
        "a/web-questions-twinkstart/text.json 31.25, n 9",
        "model-b 63.50, n 9",
        "b/web-questions-twinkstart/text.json 62.50, n 9",
    ]
    assert "; ".join(found) in out
    assert "40.7" in out
    assert "1 of 36 rows have a number of ours" in out
    line = "passed over, as no scores of this version of rba: a/evaluation.json, b/evaluation.json, old.json and 1 more"
    assert line in out.splitlines()
    assert rba("score", "--suite", "rba-paper", tmp_path / "results") == 0
    assert capsys.readouterr().out == out, "one table, whichever verb prints it"


def test_the_row_of_consistency_says_whose_cosine_it_is(tmp_path):
    figures = [("cross_view", "minilm", 0.75), ("cross_view", "wordllama", 0.5), ("consistency", "minilm", 0.25)]
    write_scored(tmp_path / "x.json", "smoke-consistency", "mine", figures)
    write_scored(tmp_path / "y.json", "consistency", "mine", figures[:1])
    assert row_of("consistency over 4 voices, mean cosine", tmp_path).split("; ") == [
        "mine on smoke-consistency by minilm 0.750, n 9",
        "mine on smoke-consistency by wordllama 0.500, n 9",
        "mine on consistency by minilm 0.750, n 9",
    ]


def test_a_suite_before_any_score_is_empty_and_says_so(tmp_path, capsys):
    assert rba("eval", "--suite", "rba-paper") == 0
    assert "0 of 36 rows have a number of ours" in capsys.readouterr().out
    (tmp_path / "there").mkdir()
    for place in ("there", "gone"):
        assert rba("eval", "--suite", "rba-paper", "--output", tmp_path / place) == 0
        assert f"{place} holds no scored file: rba score --task" in capsys.readouterr().out


def test_scoring_imports_no_torch(tmp_path):
    data, file = questions(tmp_path, {1}, "mine")
    code = f"""
import sys
from rbalign.cli.main import run_command
assert run_command(["score", "--task", "web-questions-twinkstart", "--data", {str(data)!r}, {str(file)!r}]) == 0
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
