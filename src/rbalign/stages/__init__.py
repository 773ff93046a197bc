"""The public Python API. Names load on first use, so that importing rbalign.stages costs nothing.

from rbalign import stages
folder = stages.run_recipe("quickstart", ("--align.beta", "0.2"))

A stage shared out (docs/datasets.md): run_shard(recipe, Path("runs"), Part.parse("3/64")), merge(recipe, Path("runs")).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rbalign.config.load import load_recipe
    from rbalign.config.recipe import Recipe
    from rbalign.rundir.run import RunDir
    from rbalign.stages.base import Plan, PlanRow
    from rbalign.stages.chain import run_recipe
    from rbalign.stages.synth_merge import merge
    from rbalign.stages.synth_shards import run_shard
    from rbalign.synth.parts import Part

__all__ = ["Part", "Plan", "PlanRow", "Recipe", "RunDir", "load_recipe", "merge", "run_recipe", "run_shard"]

_HOMES = {
    "Part": "rbalign.synth.parts",
    "Plan": "rbalign.stages.base",
    "PlanRow": "rbalign.stages.base",
    "Recipe": "rbalign.config.recipe",
    "RunDir": "rbalign.rundir.run",
    "load_recipe": "rbalign.config.load",
    "merge": "rbalign.stages.synth_merge",
    "run_recipe": "rbalign.stages.chain",
    "run_shard": "rbalign.stages.synth_shards",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
