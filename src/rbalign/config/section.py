"""What every table of a recipe is: validated, frozen, without unknown keys; and the bounds that many keys share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen table of a recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")
