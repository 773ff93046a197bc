"""`rba report`: the run folder as one static page. Reads files only; seconds, no model, no torch."""

from __future__ import annotations

from collections.abc import Mapping

from rbalign.config.recipe import Recipe
from rbalign.config.sections import ReportConfig
from rbalign.report.page import build
from rbalign.rundir.files import sha256_file
from rbalign.rundir.run import RunDir
from rbalign.stages.base import Plan, PlanRow

SECONDS = 8.0
"""Fifteen figures and 60 cards on one core."""
SECONDS_PER_SAMPLE = 0.005
BYTES_PER_CLIP = 65_000
CLIPS_PER_SAMPLE = 6
"""Four views of an instruction, two of a question."""


def plan(recipe: Recipe, run: RunDir) -> Plan:
    """One page, and the clips that it shows."""
    config = recipe.report or ReportConfig()
    clips = (config.samples if config.audio else 0) + config.single_file
    seconds = SECONDS + SECONDS_PER_SAMPLE * config.samples
    return Plan((PlanRow("write the page", 1, seconds, clips * CLIPS_PER_SAMPLE * BYTES_PER_CLIP),))


def run(recipe: Recipe, run: RunDir) -> Mapping[str, str]:
    """Write `report/index.html` anew, with samples, clips, Markdown and JSON beside it."""
    page = build(run.folder, recipe.report or ReportConfig())
    return {"index.html": sha256_file(page)}
