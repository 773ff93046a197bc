"""Recipes: sources, overrides, round trip, and one-line errors."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbalign.config.load import dump_recipe, load_recipe, packaged_recipes
from rbalign.config.recipe import Recipe
from rbalign.errors import UsageError


@pytest.fixture
def recipe_file(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "given.toml"
        path.write_text(text)
        return path

    return write


def refusal(path_or_name: object, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_recipe(path_or_name, overrides)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 2
    assert caught.value.cure
    return message


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_every_packaged_recipe_parses_and_round_trips(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.toml") == recipe


def test_the_three_first_recipes_are_packaged() -> None:
    assert {"smoke", "quickstart", "laptop"} <= set(packaged_recipes())


def test_overrides_take_toml_values_bare_words_and_lists() -> None:
    words = [
        "--align.beta",
        "0.2",
        "--align.arms=kd,sft",
        "--align.seeds",
        "3",
        "--eval.limit",
        "8",
        "--align.train_adapter",
        "true",
    ]
    recipe = load_recipe("quickstart", [*words, "--synth.system", "12 o'clock", "--synth.filters.min_words", "2"])
    assert recipe.align is not None
    assert recipe.synth is not None
    assert recipe.eval is not None
    assert (recipe.align.beta, recipe.align.arms, recipe.align.seeds) == (0.2, ("kd", "sft"), (3,))
    assert recipe.align.train_adapter is True
    assert recipe.eval.limit == 8
    assert recipe.synth.system == "12 o'clock"
    assert recipe.synth.filters.min_words == 2
    assert recipe.synth.filters.max_words == 20, "the file's other keys of that table stay"
    assert load_recipe("quickstart", ["--eval.limit", "none"]).eval.limit is None  # type: ignore[union-attr]


def test_an_override_in_a_free_table_is_typed_and_keeps_the_defaults_beside_it() -> None:
    align = load_recipe("quickstart", ["--align.lora.r", "8", "--align.args.learning_rate", "3e-4"]).align
    assert align is not None
    assert align.lora == {"r": 8, "lora_alpha": 32, "target_modules": "all-linear"}
    assert align.args == {"learning_rate": 3e-4}


def test_a_table_keeps_the_defaults_of_the_keys_that_it_leaves_out(recipe_file) -> None:
    """[eval]'s temperature is 0.7 and [synth]'s filters have their own: neither falls back to the class's default."""
    path = recipe_file("name = 'x'\n[synth]\ninstruction = {max_new_tokens = 9}\n[align]\nlora = {r = 4}\n[eval]\n")
    recipe = load_recipe(path, ["--eval.sampling.max_new_tokens", "16", "--align.args.warmup_steps", "3"])
    assert recipe.synth is not None
    assert recipe.align is not None
    assert recipe.eval is not None
    assert recipe.synth.instruction.top_p == 0.99
    assert (recipe.eval.sampling.temperature, recipe.eval.sampling.max_new_tokens) == (0.7, 16)
    assert recipe.align.lora == {"r": 4, "lora_alpha": 32, "target_modules": "all-linear"}
    assert recipe.align.args == {"learning_rate": 2e-4, "warmup_steps": 3}


def test_an_arm_may_have_arguments_of_its_own_and_its_match_takes_them() -> None:
    own = ["--align.args_of.kd.learning_rate", "5e-4", "--align.args_of.rba-single.warmup_steps", "3"]
    align = load_recipe("laptop", own).align
    assert align is not None
    assert align.of_arm("kd-matched", 9).args == {"learning_rate": 5e-4}
    assert align.of_arm("rba-single", 9).args == {**align.args, "warmup_steps": 3}
    assert (align.of_arm("sft", 9).args, align.of_arm("sft", 9).updates) == (align.args, 9)
    assert "a matched arm takes" in refusal("laptop", "--align.args_of.kd-matched.learning_rate", "5e-4")


def test_a_range_of_temperatures_can_be_given_and_must_rise() -> None:
    recipe = load_recipe("smoke", ["--synth.instruction.temperature", "[1.0, 1.2]", "--synth.instruction.top_p", "1.0"])
    assert recipe.synth is not None
    assert (recipe.synth.instruction.temperature, recipe.synth.instruction.top_p) == ((1.0, 1.2), 1.0)
    assert "write [1, 1.2]" in refusal("smoke", "--synth.instruction.temperature", "[1.2, 1.0]")
    assert "[0.0, 1.0]" in refusal("smoke", "--synth.instruction.temperature", "[0.0, 1.0]")


def test_domains_have_names_of_their_own_and_the_only_system_prompts(recipe_file) -> None:
    two = "name = 'x'\n[synth]\n{}domains = [{{name = 'a', system = 'A.'}}, {{name = '{}', weight = 2}}]\n"
    recipe = load_recipe(recipe_file(two.format("", "b")), [])
    assert recipe.synth is not None
    assert [domain.weight for domain in recipe.synth.domains] == [1.0, 2.0]
    assert "name each domain once" in refusal(recipe_file(two.format("", "a")))
    assert "its own system prompt" in refusal(recipe_file(two.format("system = 'S.'\n", "b")))


def test_the_reference_page_is_current() -> None:
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, root / "dev" / "recipe_reference.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_last_of_equal_overrides_wins() -> None:
    assert load_recipe("smoke", ["--seed", "1", "--seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--align.betta", "2"], ["[align]", "'betta'", "did you mean 'beta'?", "docs/recipe.md"]),
        (["--aling.beta", "2"], ["'aling'", "did you mean 'align'?"]),
        (["--align.beta", "x"], ['--align.beta = "x"', "allowed: a valid number"]),
        (["--align.beta", "-1"], ["--align.beta = -1", "allowed: greater than 0"]),
        (["--align.beta", "nan"], ["--align.beta", "allowed: greater than 0"]),
        (["--seed", "1.5"], ["--seed = 1.5", "allowed: a valid integer"]),
        (["--seed", "true"], ["--seed = true", "allowed: a valid integer"]),
        (["--align.arms", "kdd"], ["'kdd'", "rba-group", "did you mean 'kd'?"]),
        (["--align.beta.x", "2"], ["align.beta is a value", "write --align.beta VALUE"]),
        (["--align", "2"], ["align is a table", "--align.KEY VALUE"]),
        (["--align.beta"], ["--align.beta has no value"]),
        (["--connect.width", "3"], ["has no [connect] section", "add the line [connect]"]),
        (["foo"], ["'foo'", "--section.key value"]),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(words: list[str], parts: list[str]) -> None:
    message = refusal("quickstart", *words)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name = 'x'\n[synth\n", ["line 2, column 7"]),
        ("name =", ["at line 1"]),
        ("name = 'x'\nname = 'y'", ["line 2", "overwrite"]),
        ("seed = 1", ["name is missing", "add the line name ="]),
        ("name = 'x'\nsede = 1", ["'sede'", "did you mean 'seed'?"]),
        ("name = 'x'\n[align]\nbeta = '0.2'", ['align.beta = "0.2"', "a valid number"]),
        ("name = 'x'\n[synth]\ntrain = -1", ["synth.train = -1", "greater than or equal to 0"]),
        ("name = 'x'\nalign = 3", ["align = 3", "a table"]),
        ("name = 'x'\nsynth.views = [{speeds = [3.0]}]", ["synth.views[0].speeds[0] = 3.0", "less than or equal to 2"]),
        ("name = 'x'\nsynth.views = [{voices = 3}]", ["synth.views[0].voices = 3", "a valid string or a valid array"]),
        ("name = 'x'\nsynth.views = [{voice = 'a'}]", ["[synth.views]", "did you mean 'voices'?"]),
        (
            "name = 'x'\nsynth.views = [{channels = ['nois']}]",
            ["synth.views[0].channels", "'nois'", "did you mean 'noise'?"],
        ),
        ("name = 'x'\nsynth.views = [{channels = ['noise:pnk']}]", ["unknown noise 'pnk'", "babble", "'pink'?"]),
        ("name = 'x'\nsynth.views = [{channels = ['gain:6']}]", ["'gain:6' is not written like 'gain:-6dB'"]),
        ("name = 'x'\nsynth.views = [{channels = ['clipping:90%']}]", ["out of bounds", "0.1 to 50"]),
        ("name = 'x'\nsynth.views = [{channels = ['clean+room']}]", ["clean stands alone"]),
        ("name = 'x'\nsynth.views = [{channels = []}]", ["channels is empty"]),
        ("name = 'x'\nsynth.views = [{speeds = []}]", ["speeds is empty"]),
        ("name = 'x'\nsynth.views = [{channels = ['noise:folder']}]", ["synth.views", "set [synth] noise_folder"]),
        ("name = 'x'\nsynth.views = [{deliveries = ['stuter']}]", ["deliveries", "did you mean 'stutter'?"]),
        ("name = 'x'\nsynth.views = [{deliveries = ['restart+correction']}]", ["one of restart, correction"]),
        ("name = 'x'\nsynth.views = [{deliveries = ['pause+pause']}]", ["a kind twice"]),
        ("name = 'x'\nsynth = {filters = {language = 'de'}, views = [{deliveries = ['filler']}]}", ["English", "'de'"]),
        ("name = 'x y'", ['name = "x y"', "text that matches"]),
        ("name = 'x'\ndescription = 1979-05-27", ["date"]),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(recipe_file, text: str, parts: list[str]) -> None:
    message = refusal(recipe_file(text))
    assert "given.toml" in message
    for part in parts:
        assert part in message


def test_channels_and_deliveries_are_kept_in_one_spelling(recipe_file) -> None:
    path = recipe_file(
        """
        name = "x"
        [synth]
        noise_folder = "streets"
        views = [{ channels = [" noise:white@10.0 db + room", "noise:folder"], deliveries = ["filler + pause"] }]
        """
    )
    recipe = load_recipe(path)
    assert recipe.synth is not None
    (rule,) = recipe.synth.views
    assert rule.channels == ("noise:white@10dB+room", "noise:folder")
    assert rule.deliveries == ("filler+pause",)
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


def test_a_recipe_without_channels_has_the_stage_key_that_it_had_before_there_were_any() -> None:
    """Runs that began with an earlier version go on: what they do not use is not in their settings."""
    synth = load_recipe("connect").synth
    assert synth is not None
    table = synth.model_dump(mode="json")
    assert "noise_folder" not in table
    assert set(table["views"][0]) == {"voices", "splits", "per_example", "fraction", "speeds", "of"}


def test_a_recipe_that_is_not_there_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    assert "did you mean 'quickstart'?" in refusal("quikstart")
    assert "called `smoke`" in refusal(tmp_path / "smoke.toml")
    assert "is a directory" in refusal(tmp_path)
    (tmp_path / "clip.wav").write_bytes(b"RIFF\xff\xfe\x00")
    assert "not UTF-8 text (byte 4)" in refusal(tmp_path / "clip.wav")


def test_the_environment_is_not_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEED", "7")
    monkeypatch.setenv("ALIGN__BETA", "9")
    recipe = load_recipe("smoke")
    assert recipe.seed == 1
    assert recipe.align is not None
    assert recipe.align.beta == 0.1


@given(
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=40),
    st.floats(min_value=1e-6, max_value=1e6),
    st.dictionaries(st.text("abcdefg_", min_size=1, max_size=8), st.integers() | st.booleans() | st.text(max_size=9)),
)
def test_any_recipe_round_trips(tmp_path_factory, text: str, beta: float, free: dict[str, object]) -> None:
    recipe = Recipe.model_validate({"name": "x", "description": text, "align": {"beta": beta, "args": free}})
    path = tmp_path_factory.mktemp("round") / "recipe.toml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
