"""Scorers: one answer in, one score or None out. The same scorer is a reward in training and a metric in evaluation.

`scorers.build("similarity")` makes one; `scorers.names()` lists them. Listing imports no model and no torch.
"""

from rbalign.scorers.base import Scorer
from rbalign.scorers.registry import build, names

__all__ = ["Scorer", "build", "names"]
