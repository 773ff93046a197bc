"""One recipe: what a run is made from. Loading from TOML and the command line is in `load.py`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rbalign.config.section import Section
from rbalign.config.sections import AlignConfig, ConnectConfig, EvalConfig, ReportConfig, TeacherConfig
from rbalign.config.synth import SynthConfig

STAGES = ("synth", "connect", "align", "eval", "report")


class Recipe(Section):
    """A whole run. A stage whose section is absent is not part of the run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """The run lives in RUNS/NAME."""
    description: str = ""
    """One line for `rba list recipes`."""
    seed: int = 1
    """Every random draw of the run comes from it, the arms' own seeds aside. The shipped connector's sentences were
    drawn with 0: most candidates of that seed are refused as heard (2 % pass instead of 11)."""
    teacher: TeacherConfig = TeacherConfig()
    """Who writes instructions and answers."""
    synth: SynthConfig | None = None
    """Make the dataset."""
    connect: ConnectConfig | None = None
    """Train encoder and adapter."""
    align: AlignConfig | None = None
    """Train the arms."""
    eval: EvalConfig | None = None
    """Measure them."""
    report: ReportConfig | None = None
    """Draw the page."""

    def stages(self) -> list[str]:
        """The stages this recipe asks for, in the order they run."""
        return [stage for stage in STAGES if getattr(self, stage) is not None]
