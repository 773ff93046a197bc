"""RBA-S2TT: transcripts of recordings, or what our voices say, translated by a server; killed anywhere and resumed."""

import json
import multiprocessing
import threading

import numpy as np
import openai  # noqa: F401 - before the fork below, so that each child need not
import pytest
from aligning import tiny_policy
from loopback import Loopback, bodies, chat, clip, completion, content, start, status
from recorded import SENTENCES, audiofolder, tone

from rbalign.audio.io import read_audio
from rbalign.config.endpoints import TeacherEndpoint, VoiceEndpoint
from rbalign.config.kinds import S2ttConfig
from rbalign.config.languages import LANGUAGES
from rbalign.config.load import load_recipe
from rbalign.config.recipe import Recipe
from rbalign.config.sections import TeacherConfig
from rbalign.config.synth import FilterConfig, SynthConfig, ViewPlan
from rbalign.data.dataset import DatasetWriter
from rbalign.data.signatures import jaccard
from rbalign.errors import DataError, UsageError
from rbalign.lm.sampler import SamplingParams
from rbalign.rundir.journal import read_rows
from rbalign.rundir.run import RunDir
from rbalign.stages import export
from rbalign.stages import synth as stage
from rbalign.stages.arms import load_items
from rbalign.stages.card import dataset_card
from rbalign.stages.named import dataset_named
from rbalign.stages.voices import bank_of_dataset
from rbalign.synth import recordings
from rbalign.synth.filters import draft_cause, text_cause
from rbalign.synth.recordings import Recordings
from rbalign.synth.transcripts import read_transcripts
from rbalign.synth.translate import transcript_cause, translation_cause
from rbalign.synth.write import _TEACHERS, answer_texts, open_teacher
from rbalign.teacher.base import Written
from rbalign.text.language import _identifier
from rbalign.types import Split, StopReason

GERMAN = S2ttConfig(target="de")


@pytest.mark.parametrize(
    ("text", "translation", "cause"),
    [
        ("Where is the next railway station, please?", "Wo ist bitte der nächste Bahnhof hier?", None),
        ("Where is the next railway station, please?", "Where is the next railway station please", "untranslated"),
        ("Where is the next railway station?", "where is the nearest railway station?", None),
        ("Angela Merkel", "Angela Merkel", None),
        ("Where is the next railway station, please?", "Bahnhof?", "length ratio"),
        ("Where is it?", "Wo ist es? " * 6, "length ratio"),
        (
            "Where is the next railway station, please?",
            "Où se trouve la prochaine gare, s'il vous plaît ?",
            "translation in another language",
        ),
    ],
)
def test_what_is_no_translation_is_named(text, translation, cause):
    found = translation_cause(text, translation, GERMAN)
    if text == "Where is the next railway station?":  # one word changed: too like the text, or at least not German
        assert found in ("untranslated", "translation in another language")
    else:
        assert found == cause


def test_letters_of_three_bytes_are_no_matter_of_length():
    chinese = S2ttConfig(target="zh")
    text, translation = "Where is the next railway station, please?", "请问最近的火车站在哪里？"
    assert translation_cause(text, translation, chinese) is None
    assert translation_cause(translation, text, S2ttConfig(target="en")) is None
    copied = translation_cause(translation, translation, S2ttConfig(target="en"), "zh")
    assert copied == "untranslated", "though no space stands in it"
    strict = S2ttConfig(target="zh", length_ratio=(0.1, 0.2))
    assert translation_cause(text, translation, strict) == "length ratio"


def test_transcripts_are_said_already_so_only_words_and_language_count():
    german = "Wo ist bitte der nächste Bahnhof in dieser Stadt?"
    assert transcript_cause("12 + 4 = 16", FilterConfig()) == "transcript empty"
    assert transcript_cause(german, FilterConfig()) == "other language"
    assert transcript_cause(german, FilterConfig(min_language_certainty=1.0)) is None
    assert transcript_cause("Hello.", FilterConfig()) is None


def test_how_sure_of_another_language_a_translation_falls_is_the_recipes():
    text, french = "Where is the next railway station?", "Où se trouve la prochaine gare, s'il vous plaît ?"
    assert translation_cause(text, french, GERMAN) == "translation in another language"
    assert translation_cause(text, french, S2ttConfig(target="de", min_language_certainty=1.0)) is None


@pytest.mark.parametrize(
    ("language", "text", "cause"),
    [
        ("zh", "请告诉我，明天上海的天气怎么样？", None),
        ("zh", "你好。", "too short"),
        ("zh", "请告诉我明天上海的天气怎么样，" * 6, "too long"),
        ("ja", "明日の東京の天気はどうですか、教えてください。", None),
        ("th", "ช่วยบอกหน่อยว่าพรุ่งนี้อากาศที่กรุงเทพเป็นอย่างไร", None),
        ("hi", "कृपया बताइए कि कल दिल्ली में मौसम कैसा रहेगा।", None),
        ("ta", "நாளை சென்னையில் வானிலை எப்படி இருக்கும் என்று சொல்லுங்கள்.", None),
        ("ar", "من فضلك، كيف سيكون الطقس غدا في القاهرة؟", None),
        ("fa", "لطفا بگویید فردا هوای تهران چطور می‌شود؟", None),
        ("ko", "내일 서울 날씨가 어떤지 알려 주세요.", None),
        ("hy", "Խնդրում եմ ասեք, ինչպիսի՞ եղանակ կլինի վաղը Երևանում։", None),
        ("am", "እባክህ ነገ አዲስ አበባ የአየር ሁኔታ እንዴት ይሆናል?", None),
        ("ru", "Расскажи мне, какая завтра будет погода в Москве.", None),
        ("en", "Расскажи мне, какая завтра будет погода в Москве.", "not speakable: script"),
        ("el", "Τι καιρό θα κάνει αύριο στην Αθήνα;", None),
        ("el", "Πες μου πόσο είναι το π, σε παρακαλώ.", "not speakable: mathematics"),
    ],
)
def test_languages_of_other_scripts_can_be_written_and_their_words_are_counted(language, text, cause):
    assert text_cause(text, FilterConfig(language=language)) == cause


def test_a_draft_whose_text_was_worth_no_answer_once_is_counted():
    draft = {"id": "0", "text": "Расскажи мне, какая завтра будет погода в Москве.", "stop": "end"}
    assert draft_cause(draft, SynthConfig(filters=FilterConfig(language="ru"))) == "answer missing"


def test_near_duplicates_are_found_where_no_spaces_stand_between_words():
    text = "请告诉我明天上海的天气怎么样"
    assert jaccard(text, "请告诉我明天上海的天气怎样") > 0.8
    assert jaccard(text, "哪本书最适合学习做面包") < 0.2


def test_every_language_of_a_recipe_is_one_that_texts_are_told_by():
    assert set(LANGUAGES) <= {str(name) for name in _identifier().nb_classes}


# ---- recordings ------------------------------------------------------------------------------------------------------


def test_recordings_of_one_transcript_are_views_of_one_example_and_folders_are_splits(tmp_path):
    mixed = Recordings(audiofolder(tmp_path / "mixed"), "transcription", 1, 30.0)
    ((splits, said),) = mixed.pools()
    assert splits == (Split.TEST, Split.VALIDATION, Split.TRAIN)
    assert sorted(len(one.files) for one in said) == [1] * 19 + [2]
    again = Recordings(tmp_path / "mixed", "transcription", 2, 30.0).pools()[0][1]
    assert {one.id for one in again} == {one.id for one in said}
    assert again != said, "another seed takes them in another order"
    for split in ("train", "dev", "test"):
        audiofolder(tmp_path / "parted", split=split)
    pools = Recordings(tmp_path / "parted", "transcription", 1, 30.0).pools()
    assert [splits for splits, _ in pools] == [(Split.TEST,), (Split.VALIDATION,), (Split.TRAIN,)]
    assert all(len(said) == 20 and {one.split for one in said} == {split} for (split,), said in pools)


# ---- the stage, with a server ----------------------------------------------------------------------------------------


class World:
    """A translator and a voice that answer by their request alone, and can hold their breath at the n-th."""

    def __init__(self):
        self.hold_at = 0
        self.held, self.released = threading.Event(), threading.Event()
        self.fails = lambda text: False

    def __call__(self, asked):
        if len(self.server.asked) == self.hold_at:
            self.held.set()
            self.released.wait(100)
        if asked.path.endswith("/audio/speech"):
            return clip(0.2, pitch=100.0 + len(asked.body["input"]))
        if "chat" not in asked.path:
            seed = asked.body["seed"]
            return completion(SENTENCES[seed % 20])
        text = asked.body["messages"][-1]["content"]
        if self.fails(text):
            return status(400)
        if text == "Say hello.":
            return chat("Hallo.")
        if "museum" in text:
            return chat(text)
        if "harbor" in text and "valley" in text:
            return chat("Le port de notre vallée était fermé pendant tout l'hiver dernier.")
        return chat(f"Das war im letzten Winter leider geschlossen, Herr {len(text)}.")


@pytest.fixture
def world(monkeypatch, tmp_path):
    monkeypatch.setenv("RBA_HOME", str(tmp_path / "home"))
    world = World()
    with Loopback(world) as world.server:
        yield world


def recipe_for(world, source, can=("chat",), **more):
    endpoint = TeacherEndpoint(
        url=world.server.url, model="translator", can=can, concurrency=1, retries=0, timeout=100.0,
        pre_query="<user>" if "continue" in can else None,
    )  # fmt: skip
    table = {"train": 6, "validation": 2, "test": 3, "batch_size": 4, **more}
    own = table.pop("s2tt", {})
    s2tt = S2ttConfig(target="de", source=None if source is None else str(source), max_seconds=5.0, **own)
    synth = SynthConfig(kind="s2tt", s2tt=s2tt, **table)
    return Recipe(name="talk", teacher=TeacherConfig(endpoint=endpoint), synth=synth)


def test_recordings_are_translated_and_kept_as_views(world, tmp_path, capsys):
    folder = audiofolder(tmp_path / "source")
    recipe = recipe_for(world, folder, train=12)
    data = start(recipe, tmp_path / "runs")
    assert [len(data.examples(split)) for split in ("test", "validation", "train")] == [3, 2, 10]
    assert data.manifest["dropped"] == {"untranslated": 4, "translation in another language": 1}
    assert data.manifest["candidates"] == 20
    assert (data.manifest["kind"], data.manifest["languages"]) == ("s2tt", ["en", "de"])
    assert "train 10 of 12" in capsys.readouterr().err
    texts = read_transcripts(folder, "transcription")
    for example in data.examples():
        assert example.answer.startswith("Das war im letzten Winter")
        assert example.spoken == example.instruction in texts.values()
        assert (example.reference is not None) == (example.split != "train")
    for view in data.views():
        example = data.by_id()[view.example_id]
        files = sorted(name for name, text in texts.items() if text == example.instruction)
        assert view.spec.voice == f"recorded-{example.split}"
        np.testing.assert_allclose(read_audio(view.flac), read_audio(folder / files[view.index]), atol=2**-15)
    twice = [view.example_id for view in data.views() if view.index == 1]
    assert [data.by_id()[identity].instruction for identity in twice] == [SENTENCES[0]]
    system = world.server.asked[-1].body["messages"][0]["content"]
    assert "into German" in system
    assert system == recipe.synth.answer_system

    text = dataset_card(dataset_named(str(tmp_path / "runs/talk")))
    for part in ("15 sentences in 16 clips", "translated the transcripts", "recordings of people", "en is said, de is"):
        assert part in text, part
    assert str(tmp_path) not in text
    assert "language:\n- en\n- de\n" in text


def test_align_takes_recordings_for_training_and_keeps_test_ones_out(world, tmp_path):
    recipe = recipe_for(world, audiofolder(tmp_path / "source"))
    data = start(recipe, tmp_path / "runs")
    bank = bank_of_dataset(recipe, data)
    items, left_out = load_items(tiny_policy(), data, bank, Split.TRAIN, 200)
    assert (len(items), left_out) == (6, {})
    assert {item.example.answer for item in items} == {example.answer for example in data.examples("train")}
    with pytest.raises(UsageError, match="align may not use voice 'recorded-test'"):
        bank.require(["recorded-test"], {Split.TRAIN}, "align")


@pytest.mark.parametrize("hold_at", [2, 5, 9, 12])
def test_killed_anywhere_and_resumed_asks_and_writes_nothing_twice(world, tmp_path, monkeypatch, hold_at):
    recipe = recipe_for(world, audiofolder(tmp_path / "source"))
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
    assert not set(bodies(acknowledged)) & set(again)
    assert len(again) == len(set(again))
    ids = [row["id"] for row in read_rows(tmp_path / "runs/talk/data/drafts.jsonl")]
    assert len(ids) == len(set(ids))
    monkeypatch.setenv("RBA_HOME", str(tmp_path / "another home"))
    whole = start(recipe, tmp_path / "whole")
    assert content(data) == content(whole)
    assert data.content_hash == whole.content_hash


def test_a_clip_that_was_written_is_not_read_again(world, tmp_path, monkeypatch):
    recipe = recipe_for(world, audiofolder(tmp_path / "source"))
    monkeypatch.setattr(stage, "VIEWS_PER_SHARD", 2)
    read, commit, commits = [], DatasetWriter.commit_views, []
    real = read_audio

    def reads(path, **more):
        read.append(str(path))
        return real(path, **more)

    def dies(writer, split, index, clips):
        commits.append(index)
        if len(commits) == 3:
            raise KeyboardInterrupt
        commit(writer, split, index, clips)

    monkeypatch.setattr(recordings, "read_audio", reads)
    monkeypatch.setattr(DatasetWriter, "commit_views", dies)
    with pytest.raises(KeyboardInterrupt):
        start(recipe, tmp_path / "runs")
    monkeypatch.setattr(DatasetWriter, "commit_views", commit)
    written, lost = set(read[:3]), set(read[3:])  # the test split: a shard of two views and one of one
    read.clear()
    data = start(recipe, tmp_path / "runs")
    assert not written & set(read)
    assert lost <= set(read)
    assert len(read) == len(set(read)) == len(data.views()) - 3


def test_recordings_that_cannot_be_used_are_counted(world, tmp_path):
    folder = audiofolder(tmp_path / "source")
    tone(folder / "clips/005.wav", seconds=7.0)
    (folder / "clips/006.wav").write_bytes(b"RIFF nonsense")
    (folder / "clips/000.wav").unlink()  # the other recording of its sentence stays
    rows = (folder / "metadata.jsonl").read_text() + json.dumps(
        {"file_name": "clips/007.wav", "transcription": " 1 2 "}
    )
    (folder / "metadata.jsonl").write_text(rows)
    data = start(recipe_for(world, folder, train=30), tmp_path / "runs")
    dropped = data.manifest["dropped"]
    assert dropped["recording longer than 5 s"] == 1
    assert sum(count for cause, count in dropped.items() if cause.startswith("recording unreadable")) == 1
    assert dropped["transcript empty"] == 1
    assert not [cause for cause in dropped if str(tmp_path) in cause]
    (lost,) = read_rows(tmp_path / "runs/talk/data/unspoken.jsonl")
    assert lost["reason"] == "recording unreadable: it is no file"
    first = next(example for example in data.examples() if example.instruction == SENTENCES[0])
    assert [view.index for view in data.views() if view.example_id == first.id] == [1]
    assert len(data.examples()) + sum(dropped.values()) == data.manifest["candidates"]


def test_a_transcript_of_another_split_is_leakage(world, tmp_path):
    for split, part in (("train", SENTENCES), ("test", SENTENCES[:8])):
        audiofolder(tmp_path / "source", part, split=split)
    data = start(recipe_for(world, tmp_path / "source", train=99, validation=0, test=99), tmp_path / "runs")
    held_out = {example.instruction for example in data.examples("test")}
    assert len(held_out) == 6, "two are untranslated"
    assert not held_out & {example.instruction for example in data.examples("train")}
    assert data.manifest["dropped"]["leakage"] == 6


def test_nothing_translated_is_an_error_and_a_server_without_chat_is_refused(world, tmp_path, monkeypatch):
    folder = audiofolder(tmp_path / "source", ["The museum is here.", "A museum was there."])
    with pytest.raises(DataError, match=r"no recording became an example; dropped: \{'untranslated'"):
        start(recipe_for(world, folder), tmp_path / "none")
    world.fails = lambda text: True
    monkeypatch.setenv("RBA_HOME", str(tmp_path / "another home"))
    with pytest.raises(UsageError, match="cannot chat"):
        start(recipe_for(world, folder), tmp_path / "mute")


def test_a_changed_source_is_noticed(world, tmp_path):
    folder = audiofolder(tmp_path / "source")
    recipe = recipe_for(world, folder)
    before = stage.inputs(recipe)["recordings"]
    tone(folder / "clips/000.wav", seconds=0.4)
    assert stage.inputs(recipe)["recordings"] != before
    plan = stage.plan(recipe, RunDir.look(tmp_path, recipe))
    assert [(row.what, row.count) for row in plan.rows] == [("translate transcripts", 11), ("take over recordings", 11)]
    assert not world.server.asked


def test_our_voices_say_what_the_teacher_wrote_and_it_translates_that(world, tmp_path):
    url = world.server.url
    voices = [
        VoiceEndpoint(url=url, model="v", split=split, voices=(name,), retries=0)
        for split, name in (("train", "ann"), ("validation", "eve"), ("test", "joe"))
    ]
    recipe = recipe_for(
        world, None, ("chat", "continue"), views=(ViewPlan(voices="endpoint", per_example=1),), endpoint_voices=voices
    )
    data = start(recipe, tmp_path / "runs")
    assert [len(data.examples(split)) for split in ("test", "validation", "train")] == [3, 2, 6]
    assert {view.spec.voice for view in data.views("train")} == {"ann"}
    assert data.manifest["dropped"].get("untranslated", 0) > 0
    for example in data.examples():
        assert example.answer.startswith("Das war im letzten Winter")
        assert translation_cause(example.instruction, example.answer, recipe.synth.s2tt) is None
    text = dataset_card(dataset_named(str(tmp_path / "runs/talk")))
    assert "wrote the sentences and translated them" in text
    assert "speech is synthetic" in text


class Kept:
    """A translator of this machine, that hears the system prompt and says what it was asked."""

    end_ids = (0,)

    def __init__(self):
        self.systems = set()

    def params(self, temperature, top_p, max_new_tokens):
        return SamplingParams(max_new_tokens, temperature, top_p, self.end_ids)

    def answer(self, instructions, keys, params, system=None):
        self.systems.add(system)
        return [Written(f"Das war auch für uns eine Frage: {len(text)}.", StopReason.END, 9) for text in instructions]


@pytest.mark.parametrize("recorded", [False, True])
def test_a_translator_of_this_machine_translates_what_a_server_wrote_or_people_said(
    world, tmp_path, monkeypatch, recorded
):
    kept = Kept()
    monkeypatch.setitem(_TEACHERS, "gemma-3-270m", kept)
    voices = [
        VoiceEndpoint(url=world.server.url, model="v", split=split, voices=(name,), retries=0, licence="MIT")
        for split, name in (("train", "ann"), ("validation", "eve"), ("test", "joe"))
    ]
    s2tt = {"translator": "gemma-3-270m", "examples": (("Good night.", "Gute Nacht."),)}
    spoken = {"views": (ViewPlan(voices="endpoint", per_example=1),), "endpoint_voices": voices}
    source = audiofolder(tmp_path / "source") if recorded else None
    recipe = recipe_for(world, source, ("continue",), s2tt=s2tt, **({} if recorded else spoken))
    data = start(recipe, tmp_path / "runs")
    assert [len(data.examples(split)) for split in ("test", "validation", "train")] == [3, 2, 6]
    assert {example.answer[:20] for example in data.examples()} == {"Das war auch für uns"}
    assert not [asked for asked in world.server.asked if "chat" in asked.path], "the server translates nothing"
    (system,) = kept.systems
    assert "into German" in system
    assert system.endswith("\n\nGood night.\n= Gute Nacht.")
    text = dataset_card(dataset_named(str(tmp_path / "runs/talk")))
    assert ("Gemma 3 270M base translated the" if recorded else "wrote the sentences, Gemma 3 270M base") in text
    assert "Gemma Terms of Use" in text
    assert ("translated them. Their mistakes" in text) != recorded
    parts = [(one.role, one.name) for one in export._parts(RunDir.look(tmp_path / "runs", recipe))]
    gemma = ("text teacher" if recorded else "translator", "Gemma 3 270M base")
    assert gemma in parts, "a model of this run says it, too"
    assert (("text teacher", "translator") in parts) != recorded


@pytest.mark.assets
@pytest.mark.slow
def test_gemma_translates_by_the_examples_of_its_recipe(assets_folder):
    assets_folder("gemma-3-270m")
    config = load_recipe("s2tt-gemma").synth
    texts = ("My brother bought a new car yesterday.", "Can you help me find my keys?")
    drafts = [{"id": str(place), "text": text, "stop": "end"} for place, text in enumerate(texts)]
    answer_texts(open_teacher(config.translator), config, 1, drafts)
    assert drafts[0]["answer"] == "Mein Bruder hat gestern ein neues Auto gekauft."
    assert {draft_cause(draft, config) for draft in drafts} == {None}


def test_other_pairs_of_languages_and_what_is_refused(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("name = 'x'\n[synth]\nkind = 's2tt'\nfilters = {language = 'fr'}\ns2tt = {target = 'en'}\n")
    synth = load_recipe(path).synth
    assert "into English" in synth.answer_system
    assert synth.views[0].per_example == 1
    for more, match in (
        ({"s2tt": S2ttConfig(target="en")}, "is no translation"),
        ({"s2tt": S2ttConfig(source="x"), "vocabulary": 3}, "makes no vocabulary"),
        ({"filters": FilterConfig(language="de")}, "is no translation"),
        ({"test_views": "shipped"}, "answers, no translations"),
    ):
        with pytest.raises((UsageError, ValueError), match=match):
            SynthConfig(kind="s2tt", **more)
    with pytest.raises((UsageError, ValueError), match="unknown language 'xx'"):
        S2ttConfig(target="xx")
    with pytest.raises((UsageError, ValueError), match="falls"):
        S2ttConfig(length_ratio=(3.0, 1.0))
