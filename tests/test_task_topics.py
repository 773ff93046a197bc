"""The paper's in-domain sets: a dataset's test split by topic as a task, and the paper's rows beside its figures."""

from __future__ import annotations

import pytest
from benchdata import predictions, rba
from loopback import Loopback, chat
from tiny import tiny_clip

from rbalign.audio.io import to_flac
from rbalign.config.kinds import TOPICS
from rbalign.data.dataset import DatasetWriter
from rbalign.errors import DataError
from rbalign.eval.tasks.items import load
from rbalign.eval.tasks.registry import task_named
from rbalign.eval.tasks.scored import read_scored
from rbalign.stages.exams import Settings, exam_of
from rbalign.stages.suite import suite_table
from rbalign.types import Example, View, ViewSpec

TOPIC_OF = ["advice"] * 3 + ["role play"] * 2 + [None]
"""Of the test split; the last instruction has no topic."""


pytestmark = pytest.mark.usefixtures("home")


def write_split(folder, topics=TOPIC_OF):
    """Six test instructions in two voices each, and one to train on."""
    writer = DatasetWriter(folder, {"teacher": "none", "recipe": "0"})
    held = [
        Example(f"t{i}", "test", f"Request {i}.", "said", "y", f"Answer {i}.", {"topic": topic} if topic else {})
        for i, topic in enumerate(topics)
    ]
    writer.add_examples([*held, Example("x0", "train", "Train.", "Train.", "y", None, {"topic": "advice"})])
    for split, names in (("test", [one.id for one in held]), ("train", ["x0"])):
        views = [
            View(name, v, split, ViewSpec(f"voice-{v}"), 0.3 + 0.1 * v, to_flac(tiny_clip(0.3 + 0.1 * v, seed=v)))
            for name in names
            for v in range(2)
        ]
        writer.commit_views(split, 0, views)
    writer.finish()
    return folder


def test_topics_by_hand(tmp_path):
    """Advice: won, lost, tied; role play: won, and lost without an answer; without a topic: won. 3.5 of 6 in all."""
    data = write_split(tmp_path / "data")
    ours = {"t0": "good", "t1": "poor", "t2": "same", "t3": "good", "t4": None, "t5": "good"}
    mine = predictions(tmp_path / "mine.jsonl", ours)
    base = predictions(tmp_path / "Base.jsonl", {f"t{i}": "same" if i == 2 else f"fair {i}" for i in range(6)})

    def prefers(asked):
        first, second = asked.body["messages"][1]["content"].split("Answer 1:\n")[1].split("\n\nAnswer 2:\n")
        worth = [("poor", "fair", "good").index(one.split()[0]) if "same" not in one else 1 for one in (first, second)]
        return chat(f"Verdict: {'tie' if worth[0] == worth[1] else 1 if worth[0] > worth[1] else 2}")

    with Loopback(prefers) as server:
        (tmp_path / "judge.toml").write_text(f'url = "{server.url}"\nmodel = "tiny"\n')
        words = ("score", "--task", "topics", "--data", data, mine, "--against", base, "--judge", "judge.toml")
        assert rba(*words, "--out", tmp_path / "scores" / "mine.json") == 0
    found = {(one["metric"], one["part"]): one for one in read_scored(tmp_path / "scores" / "mine.json")["figures"]}
    raw = {part: one["value"] for (metric, part), one in found.items() if metric == "winrate@Base"}
    assert raw == pytest.approx({"": 100 * 3.5 / 6, "advice": 50.0, "role play": 50.0}, abs=1e-4)
    assert [(part, one["n"]) for (metric, part), one in found.items() if metric == "lc_winrate@Base"] == [
        ("", 6), ("advice", 3), ("role play", 2),
    ]  # fmt: skip
    assert (found["winrate@Base", "role play"]["wins"], found["winrate@Base", "role play"]["losses"]) == (1, 1)
    assert found["lc_winrate@Base", "advice"]["phi"] != found["lc_winrate@Base", ""]["phi"]
    rows = {row[0]: row[-2] for row in suite_table("rba-paper", tmp_path / "scores").rows}
    cell = rows["advice, in domain, win rate/at equal length against base, %"]
    assert cell.startswith("mine winrate against Base 50.00 % (")
    assert "; mine lc_winrate against Base " in cell
    assert rows["advice, in domain, win rate/at equal length against the teacher, %"] == ""
    assert rows["planning, in domain, win rate/at equal length against base, %"] == ""


def test_each_instruction_is_played_once(tmp_path):
    data = write_split(tmp_path / "data")
    exam = exam_of(task_named("topics"), str(data), Settings(limit=5))
    assert [(item.id, item.part) for item in exam.data.items] == [(f"t{i}", TOPIC_OF[i]) for i in range(5)]
    assert {item.view.spec.voice for item in exam.clips.played.values()} == {"voice-0"}
    assert exam.clips.silent == {}


def test_a_split_without_topics_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no instruction of the test split.*has a topic → .*test_per_topic"):
        load(task_named("topics"), write_split(tmp_path / "data", [None, None]))


def test_the_papers_rows_name_every_topic():
    told = [row[0] for row in suite_table("rba-paper", None).rows]
    for topic in TOPICS:
        assert sum(what.startswith(f"{topic}, in domain") for what in told) == 2
