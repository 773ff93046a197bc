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


SERVED = r"""
name = "served"
seed = 3

[teacher.endpoint]
url = "http://127.0.0.1:8000/v1"
model = "Qwen/Qwen3-8B"
licence = "Apache-2.0"
can = ["chat", "continue"]
pre_query = "[INST]/no_think{system}[/INST]"
stop = ["</s>", "[/INST]"]
extra_body = {chat_template = "{%if/x%}", lora = "me/lora-7", chat_template_kwargs = {enable_thinking = false}}

[synth]
answer_system = "/no_think Be brief, and/or kind."
filters = {leakage_files = ["LEAKAGE"]}

[synth.labels.tagger.endpoint]
url = "https://judge.example.com/v1"
model = "TAGGER"
can = ["chat"]

[[synth.domains]]
name = "cooking"
system = "/no_think"

[[synth.views]]
voices = ["speaker/one", "speaker/two"]
splits = ["train"]
per_example = 2

[[synth.endpoint_voices]]
url = "https://speech.example.com/v1"
model = "maker/tts-1"
licence = "LicenseRef-maker: https://me:hunter2@maker.example.com/terms?token=hunter3 and more"
split = "train"
voices = ["speaker/one", "speaker/two"]

[[synth.endpoint_voices]]
url = "https://speech.example.com/v1"
model = "./maker/tts-1"
split = "test"
speakers = "SPEAKERS"
"""
"""LEAKAGE, TAGGER and SPEAKERS are places of the machine."""


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Folder and recipe of a dataset that servers made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "bank").mkdir(parents=True)
    written = SERVED.replace("LEAKAGE", "my/bank").replace("TAGGER", "/models/own-llm")
    voices = ("speaker/one", "speaker/two", "p226")
    folder = write(tmp_path / "data", teacher="Qwen/Qwen3-8B", voices=voices)
    (folder / "recipe.toml").write_text(written.replace("SPEAKERS", "gone/bank"))
    return folder


def test_what_servers_made_can_be_made_again_from_the_card(served, tmp_path, capsys):
    text = card(served, capsys=capsys)
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "again.toml").write_text(block)
    shown = SERVED.replace("LEAKAGE", "bank").replace("TAGGER", "own-llm").replace("SPEAKERS", "bank")
    shown = shown.replace("./maker/", "").replace("me:hunter2@", "").replace("?token=hunter3", "")
    (tmp_path / "shown.toml").write_text(shown)
    assert load_recipe(tmp_path / "again.toml") == load_recipe(tmp_path / "shown.toml")
    for place in (str(tmp_path), "my/", "/models", "gone", "hunter"):
        assert place not in block, place


def test_a_server_is_called_as_it_calls_itself_under_the_licence_that_the_recipe_states(served, capsys):
    text = card(served, capsys=capsys)
    assert "| text teacher | Qwen/Qwen3-8B | Apache-2.0 |" in text
    assert "Qwen/Qwen3-8B wrote the instructions" in text
    assert "| voices | one, two | LicenseRef-maker: " in text
    told = (served / "recipe.toml").read_text()
    for split, test_licence in (("train", "MIT"), ("test", UNKNOWN)):  # p226 stands in train: only its voices count
        (served / "recipe.toml").write_text(
            told.replace('split = "test"', f'split = "{split}"\nlicence = "MIT"').replace("LicenseRef-maker: ", "MIT ")
        )
        assert f"| voices | p226 | {test_licence} |" in card(served, capsys=capsys)
    (served / "recipe.toml").write_text("\n".join(line for line in told.split("\n") if "licence" not in line))
    without = card(served, capsys=capsys)
    assert f"| text teacher | Qwen/Qwen3-8B | {UNKNOWN} |" in without
    assert f"| voices | one, p226, two | {UNKNOWN} |" in without


def test_a_licence_may_be_added_to_a_run_and_changes_no_key():
    from rbalign.stages.chain import settings

    server = {"url": "http://127.0.0.1:8000/v1", "model": "m", "can": ["chat"]}
    bare, told = (
        Recipe.model_validate({"name": "r", "teacher": {"endpoint": server | more}, "synth": {}})
        for more in ({}, {"licence": "MIT"})
    )
    assert settings(bare, "synth") == settings(told, "synth")
    assert "licence" not in bare.model_dump()["teacher"]["endpoint"], "runs made before keep their keys"


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
