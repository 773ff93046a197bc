"""docs/endpoints.md tells the truth: its recipes parse, and name servers; keys have no place in a recipe."""

import re
from pathlib import Path

import pytest

from rbalign.config.load import load_recipe
from rbalign.errors import UsageError

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


@pytest.mark.parametrize(
    ("line", "secret"),
    [('key_env = "sk-0123456789"', "sk-0123456789"), ('url = "https://me:hunter2@host/v1"', "hunter2")],
)
def test_a_secret_in_the_wrong_place_is_refused_and_not_shown(line, secret, tmp_path):
    path = tmp_path / "recipe.toml"
    name = line.split()[0]
    rest = {"url": 'url = "http://127.0.0.1/v1"', "model": 'model = "m"', "can": 'can = ["chat"]', name: line}
    path.write_text('name = "x"\n[teacher.endpoint]\n' + "\n".join(rest.values()), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"teacher\.endpoint\.{name} = \(not shown\)") as error:
        load_recipe(path)
    assert secret not in str(error.value)
