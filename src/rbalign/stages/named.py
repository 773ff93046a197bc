"""Runs and arms as people name them: a run by its folder or its recipe, an arm with or without its seed."""

from __future__ import annotations

import re
from pathlib import Path

from rbalign.config.load import load_recipe
from rbalign.errors import UsageError, unknown
from rbalign.rundir.run import RunDir

BASE = "base"


def run_named(given: str, runs: Path = Path("runs")) -> RunDir:
    """The run behind a folder, or behind a recipe's name or file (then `runs`/NAME), for reading.

    Its recipe is the one that it was made with. UsageError if there is no such run.
    """
    folder = Path(given) if Path(given).name not in ("", "..") else Path(given).resolve()
    if not folder.is_dir():
        try:
            folder = runs / load_recipe(given).name
        except UsageError as error:
            raise UsageError(f"{given} is no run, and no recipe of one: {error.problem}", error.cure) from None
    if not (folder / "status.json").is_file():
        raise UsageError(f"{folder} is no run", "give a folder such as runs/quickstart, or --runs DIR")
    # Under the folder's own name: it may have been moved.
    recipe = load_recipe(folder / "recipe.toml").model_copy(update={"name": folder.name})
    return RunDir.look(folder.parent, recipe)


def arm_weights(run: RunDir, arm: str) -> Path | None:
    """The trained weights of an arm, `sft-s0`, or `sft` where it has one seed; None for base.

    UsageError with the arms that are there.
    """
    if arm == BASE:
        return None
    # arm.json is written last: without it the weights may be half there.
    arms = sorted(path.parent.parent.name for path in run.folder.glob("arms/*/final/arm.json"))
    found = [name for name in arms if name == arm] or [name for name in arms if re.sub(r"-s\d+$", "", name) == arm]
    if len(found) > 1:
        raise UsageError(f"arm {arm!r} has {len(found)} seeds", f"name one: {', '.join(found)}")
    if not found:
        raise unknown("arm", arm, [BASE, *arms], "" if arms else "`rba align` makes them")
    return run.path("arms", found[0], "final")
