"""docs/endpoints.md tells the truth: its recipes parse, and name servers."""

import re
from pathlib import Path

import pytest

from rbalign.config.load import load_recipe

PAGE = (Path(__file__).parent.parent / "docs" / "endpoints.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


def test_there_is_a_recipe_for_each_kind_of_server():
    assert len(RECIPES) == 5


@pytest.mark.parametrize("text", RECIPES, ids=lambda text: text.split('"')[1])
def test_its_recipes_parse(text, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.stages() == ["synth"]
    assert recipe.teacher.endpoint or recipe.synth.endpoint_voices
    for endpoint in recipe.synth.endpoint_voices:
        assert any(rule.voices == "endpoint" for rule in recipe.synth.views)
        assert endpoint.voices or endpoint.speakers
    assert "sk-" not in text
