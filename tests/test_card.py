"""`rba card`: what a stranger must know about a dataset, and nothing about the machine that made it."""

import re
import tomllib

import pytest
import yaml

from rbalign.cli.main import run_command
from rbalign.config.load import load_recipe
from rbalign.config.recipe import Recipe
from rbalign.data.dataset import Dataset, DatasetWriter
from rbalign.rundir.files import stable_hash
from rbalign.rundir.journal import Journal
from rbalign.rundir.run import RunDir
from rbalign.stages.card import dataset_card
from rbalign.stages.licences import UNKNOWN, Part, cell, hub_licences, last_name
from rbalign.stages.named import dataset_named
from rbalign.synth.heldout import SHIPPED_FOLDER
from rbalign.types import Example, View, ViewSpec

META = {"seed": 7, "candidates": 200, "dropped": {"too long": 90, "near-duplicate": 10}}


def write(folder, teacher="smollm2-135m-instruct", voices=("af_heart", "hibari"), labels=None, **meta):
    writer = DatasetWriter(folder, {"teacher": teacher, "recipe": "0", **META, **meta})
    topics = ("travel", "travel", "a|b <i>")
    writer.add_examples(
        Example(f"e{n}", "train", "Hm?", "hm", "Yes.", labels={"topic": topic, "aliases": ["x"]} if labels else {})
        for n, topic in enumerate(topics)
    )
    specs = [ViewSpec(voice, speed) for voice in voices for speed in (1.0, 1.1)]
    writer.commit_views("train", 0, [View("e0", i, "train", spec, 1800.0, b"flac") for i, spec in enumerate(specs)])
    writer.finish()
    return folder


def card(*words, capsys):
    assert run_command(["card", *map(str, words)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    leakage = tmp_path / "my texts" / "secret.txt"
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "seed": 7,
            "description": f"from {tmp_path}",
            "teacher": {"model": str(tmp_path / "models" / "own-llm")},
            "synth": {"filters": {"max_words": 19, "leakage_files": [str(leakage)]}, "test_views": "sets/mine"},
            "align": {"connector": str(tmp_path / "connectors" / "third")},
        }
    )
    with RunDir.open(tmp_path / "runs", recipe) as opened:
        opened.stage("synth", {}, {})
        told = stable_hash(recipe.synth.model_dump(mode="json"))[:16]
        write(opened.path("data"), teacher=recipe.teacher.model, labels=True, recipe=told)
        with Journal(opened.path("data", "unspoken.jsonl")) as journal:
            journal.append([{"id": "e1/0", "voice": "hibari", "reason": "no phonemes"}])
        yield opened


def test_a_runs_card_says_all_and_names_no_place_of_this_machine(run, tmp_path, capsys):
    text = card("runs/small", capsys=capsys)
    assert text == card("runs/small/data", capsys=capsys), "named by the run or by its data"
    manifest = Dataset.open(run.path("data")).manifest
    for part in [
        "# small",
        manifest["content_hash"],
        "| train | 3 | 4 | 2.00 | 2 | af_heart, hibari |",
        "3 instructions in 4 clips (2.00 h, 2 distinct voices)",
        f"| text teacher | own-llm | {UNKNOWN} |",
        "| Kokoro-82M v1.0 int8 with 28 English voices | Apache-2.0 (ONNX export MIT) |",
        "| hibari 0.2.1 | Apache-2.0 |",
        "The parts differ",
        "Seed 7. Made with rba ",
        "rba synth recipe.toml",
        "The manifest names this recipe by its hash.",
        "| `max_words` | 19 |",
        "| `leakage_files` | secret.txt |",
        "| candidates | 200 | 100.0 % |",
        "| **accepted** | 100 | 50.0 % |",
        "| too long | 90 | 45.0 % |",
        "Clips that no voice could make: 1 no phonemes.",
        "| topic | travel | 2 | 66.7 % |",
        "| topic | a&#124;b &#60;i&#62; | 1 | 33.3 % |",
        "| aliases | (several values) | 3 | 100.0 % |",
        "speech is synthetic",
        "One teacher wrote everything",
        "English only.",
    ]:
        assert part in text, part
    for place in (str(tmp_path), tmp_path.name, "my texts", "models/", "connectors/", "sets/"):
        assert place not in text, place
    assert "no human wrote" not in text, "an unknown part may hold anything"


def test_the_recipe_in_a_card_makes_the_same_dataset(run, tmp_path, capsys):
    (block,) = re.findall(r"```toml\n(.*?)```", card("runs/small", capsys=capsys), re.DOTALL)
    (tmp_path / "again.toml").write_text(block)
    again = load_recipe(tmp_path / "again.toml")
    assert (again.name, again.seed, again.align.connector) == ("small", 7, "third")
    assert again.synth.filters.leakage_files == ("secret.txt",)
    changed = again.synth.model_dump() | {"filters": None, "test_views": None}
    assert changed == run.recipe.synth.model_dump() | {"filters": None, "test_views": None}
    assert "description" not in tomllib.loads(block)


def test_the_front_matter_is_what_hubs_read_and_opens_the_shards(tmp_path, monkeypatch, capsys):
    import datasets

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = write(tmp_path / "data")
    assert run_command(["card", str(folder), "--out", str(folder / "README.md")]) == 0
    front = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["language"] == ["en"]
    assert front["size_categories"] == ["n<1K"]
    assert "audio-text-to-text" in front["task_categories"]
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 4}
    assert run_command(["card", str(folder), "--out", str(folder / "README.md")]) == 2
    assert "already there" in capsys.readouterr().err


def test_a_bare_dataset_says_that_its_recipe_is_unknown(tmp_path, capsys):
    text = card(write(tmp_path / "data"), capsys=capsys)
    assert "There is no recipe beside this dataset" in text
    assert "hash of the recipe's [synth] section `0`" in text
    assert "no human wrote, spoke or labelled" in text
    assert "## Labels" not in text
    assert "```toml" not in text
    assert "| too long | 90 | 45.0 % |" in text


def test_people_and_strange_voices_are_not_passed_off_as_synthetic(tmp_path, capsys):
    for name, voice in (("one", "human-asterisk"), ("two", "someone/else")):
        text = card(write(tmp_path / name, voices=[voice]), capsys=capsys)
        assert "no human wrote" not in text
        assert yaml.safe_load(text.split("---\n")[1])["license"] == "other"
        assert "someone" not in text


def test_a_dataset_of_questions_without_teacher_or_drops_has_a_card(tmp_path, capsys):
    writer = DatasetWriter(tmp_path / "questions", {"kind": "questions", "seed": 1})
    writer.add_examples([Example("q", "test", "Why?", "why")])
    writer.commit_views("test", 0, [View("q", 0, "test", ViewSpec("af_sarah"), 1.0, b"flac")])
    writer.finish()
    text = card(tmp_path / "questions", capsys=capsys)
    assert "the manifest names no teacher" in text
    assert "does not say what was dropped" in text


def test_the_shipped_set_has_a_card_with_its_own_recipe():
    text = dataset_card(dataset_named(str(SHIPPED_FOLDER)))
    for part in (
        "280ad8cd0883aa97112c0aadae246097",
        "SmolLM2-135M-Instruct | Apache-2.0",
        "max_words = 20",
        "encoded again",
    ):
        assert part in text
    assert str(SHIPPED_FOLDER.parent) not in text


def test_a_changed_recipe_is_told(tmp_path, capsys):
    folder = write(tmp_path / "data")
    (folder / "recipe.toml").write_text('name = "other"\n[synth]\n')
    assert "keys were added since, or it was changed" in card(folder, capsys=capsys)
    (folder / "recipe.toml").write_text('name = "other"\n[from-the-future]\n')
    assert "There is no recipe" in card(folder, capsys=capsys)


def test_licences_paths_and_cells():
    parts = [
        Part("a", "b", "Apache-2.0 (ONNX export MIT)"),
        Part("a", "c", "MIT; and more"),
        Part("a", "d", "Apache-2.0"),
    ]
    assert hub_licences(parts) == ["apache-2.0", "mit"]
    assert hub_licences([Part("a", "b", UNKNOWN)]) == ["other"]
    assert [last_name(path) for path in ("/home/me/llm", r"C:\models\llm", "models/llm/", "llm")] == ["llm"] * 4
    assert cell("a\n`b` [c](d) | <e>") == r"a \`b\` \[c\](d) &#124; &#60;e&#62;"
