"""What every table of a recipe is: validated, frozen, without unknown keys; and the bounds that many keys share."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen table of a recipe; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    younger: ClassVar[tuple[str, ...]] = ()
    """Keys that came when runs existed. A dump leaves them out at their default, so that those runs keep their keys."""

    @model_serializer(mode="wrap")
    def _without_younger_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        table: dict[str, Any] = dump(self)
        for name in self.younger:
            default = type(self).model_fields[name].get_default(call_default_factory=True, validated_data={})
            if getattr(self, name) == default:
                table.pop(name, None)
        return table
