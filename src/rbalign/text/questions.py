"""Questions that yes or no would answer: chance is right half the time, so they measure nothing. English."""

from __future__ import annotations

import re

_YES_NO = re.compile(
    r"^(is|are|was|were|do|does|did|can|could|will|would|should|has|have|had|may|might|am)\b", re.IGNORECASE
)


def asks_yes_or_no(question: str) -> bool:
    """Whether a question begins as those do that yes or no answers."""
    return bool(_YES_NO.match(question))
