"""Two runs side by side."""

import json
from pathlib import Path

import pytest

from rbalign.config.load import dump_recipe
from rbalign.config.recipe import Recipe
from rbalign.errors import DataError, UsageError
from rbalign.stages.compare import compare


def write_run(folder: Path, beta: float, value: float | None, dataset: str = "d1") -> Path:
    folder.mkdir()
    recipe = Recipe.model_validate({"name": folder.name, "align": {"beta": beta}})
    (folder / "recipe.toml").write_text(dump_recipe(recipe))
    status = {"forked_from": None, "stages": {"synth": {"outputs": {"dataset": dataset}}}}
    (folder / "status.json").write_text(json.dumps(status))
    row = {"arm": "sft", "task": "open", "metric": "chrf", "value": value, "ci_low": 0.1, "ci_high": 0.4, "seed": 0}
    only_here = {**row, "arm": f"only-{folder.name}"}
    (folder / "results.json").write_text(json.dumps({"rows": [row, only_here]}))
    return folder


def test_shared_rows_are_paired_and_differing_settings_named(tmp_path: Path) -> None:
    found = compare(write_run(tmp_path / "a", 0.1, 0.2), write_run(tmp_path / "b", 0.3, 0.25))
    assert found.settings == [("align.beta", 0.1, 0.3)]
    assert [pair.a["arm"] for pair in found.pairs] == ["sft"]
    assert found.pairs[0].difference == pytest.approx(0.05)
    assert "same dataset" in found.note


def test_other_instructions_are_said_and_a_missing_value_stays_missing(tmp_path: Path) -> None:
    found = compare(write_run(tmp_path / "a", 0.1, None), write_run(tmp_path / "b", 0.1, 0.25, dataset="d2"))
    assert found.pairs[0].difference is None
    assert found.settings == []
    assert "different datasets" in found.note


def test_a_run_without_results_and_damaged_results_are_named(tmp_path: Path) -> None:
    good = write_run(tmp_path / "a", 0.1, 0.2)
    with pytest.raises(UsageError, match=r"no results\.json"):
        compare(good, tmp_path)
    bad = write_run(tmp_path / "b", 0.1, 0.2)
    (bad / "results.json").write_text('{"rows": [{"arm": 1}]}')
    with pytest.raises(DataError, match="not a table of results"):
        compare(good, bad)
