"""`rba predict`: the answering half of `rba eval`, written to the same journals under the same key.

What it leaves is what an interrupted `rba eval` leaves: `rba score` or `rba eval` go on from it.
"""

from __future__ import annotations

from collections.abc import Mapping

from rbalign.config.recipe import Recipe
from rbalign.rundir.run import RunDir
from rbalign.stages import eval as whole
from rbalign.stages.base import Plan


def plan(recipe: Recipe, run: RunDir) -> Plan:
    """What `rba eval` plans, without the scores."""
    return Plan(tuple(row for row in whole.plan(recipe, run).rows if row.what != "scores"))


def run(recipe: Recipe, run: RunDir) -> Mapping[str, str]:
    """Answer, going on where an earlier start stopped. No output of the stage yet: those are the scores'."""
    whole.Evaluation.open(recipe, run).answer()
    return {}
