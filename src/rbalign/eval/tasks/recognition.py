"""Speech to speech: how well the independent ASR understood spoken answers, beside every score of what it heard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rbalign.eval.tasks.sheet import Sheet


@dataclass(frozen=True, slots=True)
class Recognition:
    """Who said the answers and who heard them."""

    voice: str
    asr: str
    errors: Mapping[str, tuple[int, int]]
    """Item's id -> word errors of the transcript against the model's own text, and words of that text."""

    @property
    def protocol(self) -> str:
        """One line."""
        return f"answers said by {self.voice}, heard by {self.asr}"


def recognition(sheet: Sheet, found: Recognition) -> None:
    """The corpus word error rate of the ASR, resampled by instruction. Items without an answer say nothing."""
    errors: dict[str, int] = {}
    words: dict[str, int] = {}
    for item in sheet.data.items:
        if item.id in found.errors:
            wrong, count = found.errors[item.id]
            errors[item.unit] = errors.get(item.unit, 0) + wrong
            words[item.unit] = words.get(item.unit, 0) + count
            sheet.extra.setdefault(item.id, {})["asr"] = {"errors": wrong, "words": count}
    order = sorted(errors)
    estimate = sheet.bootstrap("recognition", len(order)).ratio(
        np.array([errors[unit] for unit in order], dtype=np.float64),
        np.array([words[unit] for unit in order], dtype=np.float64),
    )
    rule = "word error rate against the model's own text, both by Whisper's English normaliser; unspoken words are lost"
    if np.isnan(estimate.value):
        sheet.figure("asr_wer", "", None, f"{rule}; {found.protocol}", note="no answer has a word")
    else:
        sheet.figure("asr_wer", "", estimate, f"{rule}; {found.protocol}")
