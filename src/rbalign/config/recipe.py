"""One recipe: what a run is made from. Loading from TOML and the command line is in `load.py`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rbalign.config.sections import (
    AlignConfig,
    ConnectConfig,
    EvalConfig,
    ReportConfig,
    Section,
    SynthConfig,
    TeacherConfig,
)

STAGES = ("synth", "connect", "align", "eval", "report")


class Recipe(Section):
    """A whole run. A stage whose section is absent is not part of the run."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    description: str = ""
    seed: int = 0
    teacher: TeacherConfig = TeacherConfig()
    synth: SynthConfig | None = None
    connect: ConnectConfig | None = None
    align: AlignConfig | None = None
    eval: EvalConfig | None = None
    report: ReportConfig | None = None

    def stages(self) -> list[str]:
        """The stages this recipe asks for, in the order they run."""
        return [stage for stage in STAGES if getattr(self, stage) is not None]
