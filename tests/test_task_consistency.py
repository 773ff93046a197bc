"""Speech-view consistency, accents and the smoke sets of voices and translations: figures worked out by hand."""

from __future__ import annotations

import pytest
from benchdata import FirstLetter, predictions, write_lines
from loopback import clip
from test_smoke_sets import values
from tiny import TEXTS, tiny_clip

from rbalign.audio.io import to_flac
from rbalign.data.dataset import DatasetWriter
from rbalign.errors import DataError, UsageError
from rbalign.eval.tasks import measure
from rbalign.eval.tasks.clips import clips
from rbalign.eval.tasks.items import load
from rbalign.eval.tasks.registry import task_named
from rbalign.eval.tasks.smoke import ACROSS_VOICES, LANGUAGES, smoke_set
from rbalign.stages.exams import Settings, exam_of
from rbalign.stages.tasks import read, score
from rbalign.types import Example, View, ViewSpec

VOICES = ("af_sarah", "bm_lewis", "bf_alice")
RIGHT, WRONG = "tea", "no idea"


@pytest.fixture(autouse=True)
def embedder(tmp_path, monkeypatch):
    monkeypatch.setenv("RBA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(measure, "EMBEDDERS", {"letters": None})
    monkeypatch.setattr(measure, "build_embedder", lambda name: FirstLetter())


def dataset(folder, count=3, voices=VOICES, labels=None):
    writer = DatasetWriter(folder, {"teacher": "none", "recipe": "0"})
    labels = {"aliases": [RIGHT]} if labels is None else labels
    examples = [
        Example(f"e{i}", "test", TEXTS[i], TEXTS[i], reference="tea is good", labels=labels) for i in range(count)
    ]
    writer.add_examples(examples)
    views = [
        View(f"e{i}", v, "test", ViewSpec(voice), 0.5, to_flac(tiny_clip(0.4, seed=i + v)))
        for i in range(count)
        for v, voice in enumerate(voices)
    ]
    writer.commit_views("test", 0, views)
    writer.finish()
    return folder


def again(folder):
    """Instruction -> the id of its second answer."""
    return {item.unit: item for item in load(task_named("consistency"), folder).repeats}


def scored(tmp_path, responses, task="consistency", place=None, **options):
    file = predictions(tmp_path / "m.jsonl", responses)
    return score(read(task, str(place or tmp_path / "data"), file, again=True, **options), 200)


ANSWERS = {
    **{"e0/0": RIGHT, "e0/1": RIGHT, "e0/2": RIGHT},
    **{"e1/0": RIGHT, "e1/1": WRONG, "e1/2": RIGHT},
    **{"e2/0": None, "e2/1": WRONG},  # of e2/2 the file says nothing
}


def test_quality_by_hand(tmp_path):
    dataset(tmp_path / "data")
    found = scored(tmp_path, ANSWERS)
    assert values(found, "accuracy")[""] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3, abs=1e-3)
    assert values(found, "pass^K")["K=3"] == pytest.approx(100 / 3, abs=1e-3)
    assert values(found, "flip_rate")["K=3"] == pytest.approx(100 * (0 + 2 / 3 + 0) / 3, abs=1e-3)
    assert values(found, "worst_voice") == {"bm_lewis": pytest.approx(100 / 3, abs=1e-3)}
    assert values(found, "words")[""] == pytest.approx((1 + 4 / 3 + 2 / 3) / 3, abs=1e-3)
    assert (found["counts"]["items"], found["counts"]["failed"], found["counts"]["missing"]) == (9, 1, 1)


def test_closeness_by_hand(tmp_path):
    """Between 4/9 across clips, 7/27 between instructions and 1 on one clip lies a quarter of the way."""
    folder = dataset(tmp_path / "data")
    second = {item.id: ANSWERS[item.clip] for name, item in again(folder).items() if name != "e2"}
    found = scored(tmp_path, ANSWERS | second)
    assert values(found, "cross_view")["letters"] == pytest.approx(4 / 9, abs=1e-3)
    assert values(found, "floor")["letters"] == pytest.approx(7 / 27, abs=1e-3)
    assert values(found, "ceiling")["letters"] == 1.0
    assert values(found, "consistency")["letters"] == pytest.approx(0.25, abs=1e-3)
    assert found["counts"]["items"] == 9, "second answers are not in the denominator"
    assert found["counts"]["passed_over"] == 0


def test_the_ceiling_holds_the_first_answer_against_the_second(tmp_path):
    """One repeats itself, one does not; of the third there is no second answer."""
    folder = dataset(tmp_path / "data")
    first, other = (again(folder)[name] for name in ("e0", "e1"))
    flipped = WRONG if ANSWERS[other.clip] == RIGHT else RIGHT
    found = scored(tmp_path, ANSWERS | {first.id: RIGHT, other.id: flipped})
    assert values(found, "ceiling")["letters"] == 0.5


def test_without_second_answers_the_headline_is_left_open(tmp_path):
    dataset(tmp_path / "data")
    open_ones = {one["metric"]: one for one in scored(tmp_path, ANSWERS)["figures"] if one["value"] is None}
    assert set(open_ones) == {"consistency", "ceiling"}
    assert "second answer" in open_ones["ceiling"]["note"]


def test_a_constant_answer_is_consistent_and_nothing_else(tmp_path):
    folder = dataset(tmp_path / "data")
    names = [
        *(item.id for item in load(task_named("consistency"), folder).items),
        *(i.id for i in again(folder).values()),
    ]
    found = scored(tmp_path, dict.fromkeys(names, WRONG))
    assert values(found, "cross_view")["letters"] == 1.0
    assert values(found, "consistency")["letters"] is None
    assert values(found, "pass^K")["K=3"] == 0.0


def test_chrf_grades_where_no_answer_is_accepted(tmp_path):
    dataset(tmp_path / "data", count=2, labels={})
    good, half = "tea is good", "tea"
    responses = {"e0/0": good, "e0/1": good, "e0/2": good, "e1/0": good, "e1/1": half, "e1/2": good}
    found = scored(tmp_path, responses, scorer="chrf")
    graded = {one["id"]: one["scores"]["chrf"] for one in found["samples"]}
    assert 0 < graded["e1/1"] < graded["e1/0"] == 1.0
    assert values(found, "worst_view")["K=3"] == pytest.approx((1 + graded["e1/1"]) / 2, abs=1e-3)
    assert values(found, "worst_voice") == {"bm_lewis": pytest.approx((1 + graded["e1/1"]) / 2, abs=1e-3)}
    with pytest.raises(UsageError, match="no example of this dataset has accepted answers"):
        scored(tmp_path, responses)


def test_a_model_answers_one_clip_of_each_twice_under_another_key(tmp_path):
    folder = dataset(tmp_path / "data")
    exam = exam_of(task_named("consistency"), str(folder), Settings(limit=2))
    assert (exam.units, len(exam.data.items), len(exam.data.repeats)) == (2, 6, 2)
    assert len(exam.clips.played) == 8
    for item in exam.data.repeats:
        first, second = exam.clips.played[item.clip], exam.clips.played[item.id]
        assert first.view.id == second.view.id == item.clip
        assert first.key(0).digest() != second.key(0).digest()
    rows = [{"id": item.id, "answer": item.id, "error": None} for item in exam.clips.played.values()]
    told = {row["id"]: row["response"] for row in exam.responses(rows)}
    assert len(told) == 8
    assert all(told[item.id] == f"{item.clip}/1" for item in exam.data.repeats)
    assert len(load(task_named("consistency"), folder).first(2).passed_over) == 4


def test_one_clip_of_each_is_no_consistency(tmp_path):
    dataset(tmp_path / "data", voices=VOICES[:1])
    with pytest.raises(DataError, match="no instruction of the test split has two clips"):
        load(task_named("consistency"), tmp_path / "data")


# ---- accents -------------------------------------------------------------------------------------------------------


def test_accents_are_held_against_the_same_questions_in_another(tmp_path):
    task = task_named("voicebench-sd-qa")
    accents = [source.part for source in task.files]
    assert len(accents) == 11
    for accent in accents:
        rows = [{"prompt": f"Which {i}?", "reference": RIGHT, "audio": f"{accent}{i}.wav"} for i in range(2)]
        write_lines(tmp_path / "data" / "sd-qa" / f"{accent}.jsonl", rows)
        for i in range(2):
            (tmp_path / "data" / f"{accent}{i}.wav").write_bytes(clip(0.3 + 0.1 * accents.index(accent), 16_000))
    data = load(task, tmp_path / "data")
    assert len(data.items) == 22
    heard = clips(task, tmp_path / "data", data.items)
    lengths = {name.partition("/")[0]: item.view.seconds for name, item in heard.played.items()}
    assert len(set(lengths.values())) == 11, "every accent plays its own file"
    responses = {item.id: RIGHT for item in data.items} | {"nga/1": None, "usa/0": WRONG, "phl/0": WRONG}
    found = scored(tmp_path, responses, "voicebench-sd-qa")
    assert values(found, "score")["usa"] == 50.0
    assert values(found, "preserve_rate")["nga"] == 1.0, "half as well as half is as well"
    assert values(found, "preserve_rate")["aus"] == 1.0, "capped"
    assert found["counts"]["failed"] == 1
    (tmp_path / "data" / "sd-qa" / "zaf.jsonl").unlink()
    with pytest.raises(DataError, match="zaf"):
        load(task, tmp_path / "data")


# ---- what ships ----------------------------------------------------------------------------------------------------


def test_the_set_of_voices_asks_each_question_by_all(tmp_path):
    given, whole = smoke_set("voices"), smoke_set("qa")
    assert [one.id for one in given.examples] == [one.id for one in whole.examples][:ACROSS_VOICES]
    for example in given.examples:
        own = [view for view in given.views if view.example_id == example.id]
        assert len({view.spec.voice for view in own}) == len(own) == 4
        assert {(view.spec.channel, view.spec.speed) for view in own} == {("clean", 1.0)}
    data = load(task_named("smoke-consistency"), tmp_path)
    assert (len(data.items), len(data.repeats)) == (400, 100)


@pytest.mark.parametrize(("code", "language"), zip(("de", "es"), LANGUAGES, strict=True))
def test_translations_that_ship(tmp_path, code, language):
    task = task_named(f"smoke-translation-{code}")
    data = load(task, tmp_path)
    assert len(data.items) == 200
    perfect = {item.id: item.reference for item in data.items}
    found = scored(tmp_path, perfect, task.name, "shipped")
    assert values(found, "bleu")[""] == pytest.approx(100.0)
    assert values(scored(tmp_path, perfect | {data.items[0].id: None}, task.name, "shipped"), "bleu")[""] < 100.0
    exam = exam_of(task, None, Settings(limit=3))
    for item in exam.clips.played.values():
        assert item.beside == f"Translate this into {language}. Say only the translation."
        assert item.written() == f"{item.example.instruction}\n\n{item.beside}"
