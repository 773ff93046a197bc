"""The public Python API. Names load on first use, so that importing rbalign.stages costs nothing.

from rbalign import stages
folder = stages.run_recipe("quickstart", ("--align.beta", "0.2"))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rbalign.config.load import load_recipe
    from rbalign.config.recipe import Recipe
    from rbalign.rundir.run import RunDir
    from rbalign.stages.base import Plan, PlanRow
    from rbalign.stages.chain import run_recipe

__all__ = ["Plan", "PlanRow", "Recipe", "RunDir", "load_recipe", "run_recipe"]

_HOMES = {
    "Plan": "rbalign.stages.base",
    "PlanRow": "rbalign.stages.base",
    "Recipe": "rbalign.config.recipe",
    "RunDir": "rbalign.rundir.run",
    "load_recipe": "rbalign.config.load",
    "run_recipe": "rbalign.stages.chain",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
