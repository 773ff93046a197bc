"""The benchmarks by name, from tasks.toml. Imports nothing heavy: `rba list tasks` reads it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Literal

from rbalign.config.views import CLEAN, FLUENT
from rbalign.errors import UsageError, unknown

Kind = Literal[
    "constraints", "preference", "open", "answers", "translation", "conditions", "accents", "consistency", "prompts"
]
Column = Literal["text", "text?", "texts", "number", "tables"]


@dataclass(frozen=True, slots=True)
class Source:
    """One table of a task's data."""

    part: str
    names: tuple[str, ...]
    """Globs below the data's folder; the first that finds files is taken."""
    columns: Mapping[str, Column]
    clip: tuple[str, ...] = ()
    """Columns that may hold the clip: `{bytes, path}`, bytes, or the path of a file; the first that is there."""


@dataclass(frozen=True, slots=True)
class Task:
    """A benchmark: its data and its rule."""

    name: str
    title: str
    kind: Kind
    rule: str
    """A paragraph."""
    licence: str
    scorers: tuple[str, ...]
    """What `--scorer` may name; the first is the default."""
    ids: str
    """What predictions call an item."""
    hub: str = ""
    """Dataset on the hub; empty where the data is not there."""
    revision: str = ""
    data: str = ""
    """Where else the data comes from."""
    against: str = ""
    """What `--against` takes; empty: nothing."""
    pair: str = ""
    """The sign between two languages, where the name goes on with ":SOURCE-TARGET"."""
    languages: tuple[str, str] | None = None
    files: tuple[Source, ...] = ()
    smoke: str = ""
    """The set of `tasks.smoke` that it asks; empty: its data is elsewhere."""
    into: str = ""
    """Of a translation that ships: the language's English name."""
    plain: str = CLEAN
    """Of conditions: the one that all others are held against."""

    @property
    def ships(self) -> str | None:
        """What stands for the place of its data where that comes with rba."""
        return SHIPPED if self.smoke else None

    @property
    def of_dataset(self) -> bool:
        """Whether its data is a dataset folder of rba."""
        return not self.files and not self.smoke

    @property
    def by_delivery(self) -> bool:
        """Of kind "conditions": whether they are deliveries; else channels and speeds."""
        return self.plain == FLUENT

    @property
    def place(self) -> str:
        """Where the data comes from, in words."""
        return f"{self.hub} at {self.revision}" if self.hub else self.data


@cache
def tasks() -> Mapping[str, Task]:
    """Name -> task, in the order of the file."""
    table = tomllib.loads(resources.files(__package__).joinpath("tasks.toml").read_text(encoding="utf-8"))
    return {name: _task(name, fields) for name, fields in table.items()}


SMOKE = "smoke"
"""As a task: all that ship."""
DOWIS = "dowis"
"""The prompts that other tasks' clips can be asked with; see `eval.tasks.prompts`."""
SHIPPED = "shipped"
"""The place of their data."""


def tasks_named(given: Iterable[str]) -> list[Task]:
    """The tasks of those names, once each; `smoke` is all that ship. UsageError as `task_named`."""
    ships = [task.name for task in tasks().values() if task.smoke]
    names = [name for one in given for name in (ships if one == SMOKE else [one])]
    return [task_named(name) for name in dict.fromkeys(names)]


def task_named(given: str) -> Task:
    """The task of that name; of a translation with its languages, `fleurs:de_de-en_us`. UsageError otherwise."""
    name, colon, pair = given.partition(":")
    if name not in tasks():
        raise unknown("task", name, [*tasks(), SMOKE], "see `rba list tasks`")
    task = tasks()[name]
    if task.kind == "prompts":
        raise UsageError(
            f"{name} is no task of its own", f"rba eval --tasks OTHER --spoken-prompts FOLDER: {task.title}"
        )
    if not task.pair:
        if colon:
            raise UsageError(f"task {name} takes no languages, given {given!r}", f"write --task {name}")
        return task
    source, sign, target = pair.partition(task.pair)
    if not (source and sign and target) or not pair.replace("-", "_").replace("_", "").isalnum():
        raise UsageError(f"task {given!r} names no two languages", f"see `rba list tasks`: {task.title}")
    return replace(task, name=given, languages=(source, target))


def _task(name: str, fields: Mapping[str, Any]) -> Task:
    files = tuple(
        Source(
            part,
            tuple(name.replace("{part}", part) for name in one["names"]),
            dict(one["columns"]),
            tuple(one.get("clip", ())),
        )
        for one in fields.get("files", ())
        for part in one.get("parts", [one.get("part", "")])
    )
    rest: dict[str, Any] = {key: value.strip() for key, value in fields.items() if isinstance(value, str)}
    return Task(name=name, scorers=tuple(fields["scorers"]), files=files, **rest)
