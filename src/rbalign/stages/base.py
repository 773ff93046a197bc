"""What every stage of a run offers: a plan that costs nothing to make, and the work itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from rbalign.config.recipe import Recipe
from rbalign.rundir.run import RunDir


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One kind of work in a stage, as far as it is still to do."""

    what: str
    """In the user's words: "speak views", "updates of rba-single"."""
    count: int
    seconds: float = 0.0
    """Estimated wall time of all `count`, from measured unit costs on two cores."""
    bytes: int = 0
    """Estimated disk space of all `count`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a stage would do."""

    rows: tuple[PlanRow, ...] = ()

    @property
    def seconds(self) -> float:
        """Estimated wall time of the whole stage."""
        return sum(row.seconds for row in self.rows)

    @property
    def bytes(self) -> int:
        """Estimated disk space of the whole stage."""
        return sum(row.bytes for row in self.rows)


class StageModule(Protocol):
    """A module `rbalign.stages.NAME`. It may also offer `inputs(recipe) -> Mapping[str, str]`: name -> hash of what
    it reads from outside the run (a connector folder, ready test views), so that a change there is noticed; and
    `check(recipe)`, which refuses what cannot be right before any stage has begun.
    """

    def plan(self, recipe: Recipe, run: RunDir) -> Plan:
        """What is still to do, from the recipe and the files that are there. Loads no model, writes nothing."""
        ...

    def run(self, recipe: Recipe, run: RunDir) -> Mapping[str, str]:
        """Do it, going on where an earlier start stopped; what it made, name -> hash, for the stages after it."""
        ...
