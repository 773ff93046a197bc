"""What a disfluency or a noisy channel costs, beside the same instructions said plainly. No torch."""

from __future__ import annotations

import numpy as np

from rbalign.eval.stats import Estimate
from rbalign.eval.tasks.items import TaskItem
from rbalign.eval.tasks.sheet import Sheet
from rbalign.scorers.qa import matches


def conditions(sheet: Sheet, protocol: str) -> None:
    """Score by condition, and its ratio to the plain clips of the same instructions; items are scored already."""
    disfluent, plain = sheet.task.by_delivery, sheet.task.plain
    ratio = "relative_accuracy" if disfluent else "preserve_rate"
    units = sorted({item.unit for item in sheet.data.items})
    boot = sheet.bootstrap("", len(units))
    base = sheet.by_unit([item for item in sheet.data.items if item.part == plain], "score", units)
    sheet.figure("score", plain, boot.mean(base), protocol)
    for name in sorted({kind for item in sheet.data.items for kind in item.part.split("+")} - {plain}):
        items = [item for item in sheet.data.items if name in item.part.split("+")]
        own = sheet.by_unit(items, "score", units)
        sheet.figure("score", name, boot.mean(own), protocol)
        found = boot.ratio(own, base)
        rule = f"{ratio} against {plain} on the same instructions; {protocol}"
        if np.isnan(found.value):
            sheet.figure(
                ratio, name, None, rule, unit="", note=f"no instruction is answered {plain} and scored above 0"
            )
        else:
            sheet.figure(ratio, name, found if disfluent else _capped(found), rule, unit="")
    if disfluent:
        _retracted(sheet, protocol)


def _capped(found: Estimate) -> Estimate:
    """min(1, ratio): a percentile of the capped resamples is the capped percentile."""
    return Estimate(min(1.0, found.value), min(1.0, found.low), min(1.0, found.high), found.n)


def _retracted(sheet: Sheet, protocol: str) -> None:
    """How often a value that was taken back is said in the answer, and how often what it asked for is answered."""
    items = [item for item in sheet.data.items if item.retracted and "correction" in item.part.split("+")]
    if not items:
        return
    for item in items:
        sheet.put(item, "retracted_said", float(_says(sheet.text(item), item)))
    values = sheet.by_unit(items, "retracted_said")
    rule = "share of answers to corrections that say the retracted value, by whole tokens, folded"
    estimate = sheet.bootstrap("correction", len(values)).mean(values)
    sheet.figure("retracted_said", "correction", estimate, f"{rule}; {protocol.partition(';')[0]}")
    known = [item for item in items if item.retracted_aliases]
    if not known:
        return
    for item in known:
        text = sheet.text(item)
        sheet.put(item, "retracted_answered", float(_answers_the_first(text, item)))
    values = sheet.by_unit(known, "retracted_answered")
    rule = "share of answers to corrections that answer the request that was taken back, and not the one that was meant"
    estimate = sheet.bootstrap("correction answered", len(values)).mean(values)
    sheet.figure("retracted_answered", "correction", estimate, f"{rule}; containment+number-folding")


def _answers_the_first(text: str, item: TaskItem) -> bool:
    return matches(text, item.retracted_aliases) and not matches(text, item.aliases)


def _says(text: str, item: TaskItem) -> bool:
    return matches(text, [item.retracted or ""])
