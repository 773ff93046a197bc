"""README tells the truth: its tables come from results/, its recipes parse, its commands exist."""

import re
import runpy
import shlex
import sys
from pathlib import Path

from typer.main import get_command

from rbalign.cli.main import app
from rbalign.config.load import load_recipe
from rbalign.voices.bank import load_bank

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_result_tables_are_those_of_the_committed_files(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["readme_table.py", "--check"])
    runpy.run_path(str(ROOT / "dev" / "readme_table.py"), run_name="__main__")  # SystemExit names a page


def test_recipes_parse(tmp_path):
    assert blocks("toml")
    for number, text in enumerate(blocks("toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        assert load_recipe(path, ()).stages()


def test_the_own_speech_llm_is_ten_lines_and_hears_with_its_own_connector(tmp_path):
    (text,) = [text for text in blocks("toml") if "connect =" in text]
    assert len(text.splitlines()) == 10
    (tmp_path / "mine.toml").write_text(text)
    recipe = load_recipe(tmp_path / "mine.toml")
    assert recipe.stages() == ["synth", "connect", "align", "eval"]
    assert recipe.connect.language_model == recipe.teacher.model  # one copy of the weights; test_export.py runs it
    assert recipe.align.connector == "connect"
    for split in ("train", "validation", "test"):
        for rule in (rule for rule in recipe.synth.views if split in rule.splits):
            assert len(load_bank().names(split, rule.voices)) >= rule.per_example


def test_commands_exist_and_their_recipes_load():
    verbs = get_command(app).commands
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("rba ")]
    assert len(lines) >= 4
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        assert words[0] in verbs, line
        if words[0] == "run":
            kept = [word for word in words[1:] if word != "--dry-run"]
            if "--fork" in kept:
                del kept[kept.index("--fork") :]
            load_recipe(kept[0], tuple(kept[1:]))


def test_make_targets_exist():
    made = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.MULTILINE)) <= made


def test_python_blocks_name_what_exists():
    for text in blocks("python"):
        assert "stages.run_recipe" in text
        compile(text, "README.md", "exec")
