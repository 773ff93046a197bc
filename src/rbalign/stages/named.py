"""Runs, arms and datasets as people name them: by a folder or a recipe, an arm with or without its seed."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rbalign.config.load import load_recipe
from rbalign.config.recipe import Recipe
from rbalign.data.dataset import MANIFEST, Dataset
from rbalign.errors import UsageError, unknown
from rbalign.rundir.run import RunDir

BASE = "base"


@dataclass(frozen=True, slots=True)
class NamedDataset:
    """A finished dataset, and where it comes from as far as its place tells."""

    dataset: Dataset
    name: str
    """Of its run, or of its folder; no path."""
    recipe: Recipe | None
    """What it was made with: of the run around it, or recipe.toml in its own folder."""
    run: Path | None
    """The folder of that run."""

    @property
    def languages(self) -> list[str]:
        """What is said, and, where it is another one, what is answered in."""
        synth = self.recipe.synth if self.recipe else None
        return list(self.dataset.manifest.get("languages") or [synth.filters.language if synth else "en"])


def dataset_named(given: str, runs: Path = Path("runs")) -> NamedDataset:
    """The dataset behind its folder, a run's folder, or a recipe whose run is in `runs`; opened.

    UsageError if there is no such thing, DataError if the dataset is not finished.
    """
    folder = Path(given)
    if not (folder / MANIFEST).is_file():
        if folder.is_dir() and not (folder / "status.json").is_file():
            raise UsageError(
                f"{given} is neither a run nor a dataset", "give a folder with status.json or manifest.json"
            )
        run = run_named(given, runs)
        return NamedDataset(Dataset.open(run.path("data")), run.folder.name, run.recipe, run.folder)
    dataset, place = Dataset.open(folder), folder.resolve()
    with suppress(UsageError):  # a recipe of another version: then the dataset stands for itself
        if place.name == "data" and (place.parent / "status.json").is_file():
            run = run_named(str(place.parent))
            return NamedDataset(dataset, run.folder.name, run.recipe, run.folder)
        if (place / "recipe.toml").is_file():
            return NamedDataset(dataset, place.name, load_recipe(place / "recipe.toml"), None)
    return NamedDataset(dataset, place.name, None, None)


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
