"""Does an answer depend on what was asked, and not on which clip asks it? Quality and agreement over all clips of an
instruction, worst ones apart; cosines between answers, beside those of other instructions and of the same clip. No
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rbalign.eval.consistency import measure
from rbalign.eval.stats import Estimate
from rbalign.eval.table import flip_rate
from rbalign.eval.tasks.items import TaskItem
from rbalign.eval.tasks.sheet import PERCENT, Sheet
from rbalign.scorers.similarity import Embedder, unit_vectors


def consistency(sheet: Sheet, metric: str, protocol: str, embedders: Mapping[str, Embedder]) -> None:
    """All figures; items are scored under `metric` already: "accuracy" (right or wrong) or a grade in [0, 1]."""
    by_unit: dict[str, list[TaskItem]] = {}
    for item in sheet.data.items:
        by_unit.setdefault(item.unit, []).append(item)
    units = sorted(by_unit)
    quality(sheet, metric, protocol, [by_unit[unit] for unit in units])
    for name, embedder in embedders.items():
        closeness(sheet, name, embedder, [by_unit[unit] for unit in units])


def quality(sheet: Sheet, metric: str, protocol: str, groups: Sequence[Sequence[TaskItem]]) -> None:
    """The mean, the worst voice, and what all clips of an instruction share; length beside them."""
    boot, marked = sheet.bootstrap("", len(groups)), metric == "accuracy"
    unit = PERCENT if marked else ""
    scores = [_scores(sheet, metric, items) for items in groups]
    sheet.figure(metric, "", boot.mean(np.array([_mean(own) for own in scores])), protocol, unit=unit)
    voices = sorted({item.part for items in groups for item in items})
    pairs = list(zip(groups, scores, strict=True))
    table = np.array([[_mean(own[[item.part == voice for item in items]]) for voice in voices] for items, own in pairs])
    if np.isfinite(table).any():
        worst, which = boot.worst_column(table)
        rule = f"{metric} of the voice with the lowest, looked for again in each resample; {protocol}"
        sheet.figure("worst_voice", voices[which], worst, rule, unit=unit)
    lowest = np.array([float(own.min()) if own.size and not np.isnan(own).any() else np.nan for own in scores])
    counts = sorted({len(items) for items in groups})
    clips = f"K={counts[0]}" if len(counts) == 1 else f"K={counts[0]} to {counts[-1]}"
    if marked:
        rule = f"share of instructions answered rightly on all of their K clips; {protocol}"
        sheet.figure("pass^K", clips, boot.mean(lowest), rule)
        flips = np.array([flip_rate(own) for own in scores])
        rule = f"share of pairs of clips of an instruction of which one is answered rightly and one wrongly; {protocol}"
        sheet.figure("flip_rate", clips, boot.mean(flips), rule)
    else:
        rule = f"mean over instructions of the lowest {metric} on its K clips; {protocol}"
        sheet.figure("worst_view", clips, boot.mean(lowest), rule, unit="")
    words = np.array([float(np.mean([len(sheet.text(item).split()) for item in items])) for items in groups])
    sheet.figure("words", "", boot.mean(words), "words an answer, empty ones too", unit="")


def closeness(sheet: Sheet, name: str, embedder: Embedder, groups: Sequence[Sequence[TaskItem]]) -> None:
    """Cosine between answers to clips of one instruction; its place between floor and ceiling is the headline."""
    place = {item.id: row for row, item in enumerate(sheet.data.asked)}
    vectors = unit_vectors(embedder, [sheet.text(item) for item in sheet.data.asked])
    twice: dict[str, list[int]] = {}
    for item in sheet.data.repeats:
        if all(sheet.responses.get(name) is not None for name in (item.clip, item.id)):
            twice[item.unit] = [place[item.clip], place[item.id]]
    views = [vectors[[place[item.id] for item in items]] for items in groups]
    repeats = [vectors[twice.get(items[0].unit, [])] for items in groups]
    found = measure(sheet.bootstrap("", len(groups)), views, repeats)
    shared = f"{name} cosine between whole answers, an empty one is similar to nothing"
    for metric, estimate, rule, lacks in (
        ("consistency", found.headline, "(cross_view - floor) / (ceiling - floor)", _undefined(found.ceiling)),
        ("cross_view", found.raw, "clips of one instruction", "one instruction alone"),
        ("floor", found.floor, "answers to different instructions", "one instruction alone"),
        ("ceiling", found.ceiling, "two answers to one clip", "no second answer to a clip: ids EXAMPLE/VIEW/1"),
    ):
        shown = estimate if estimate is not None and np.isfinite(estimate.value) else None
        note = {} if shown else {"note": lacks}
        sheet.figure(metric, name, shown, f"{rule}; {shared}", unit="", **note)


def _undefined(ceiling: Estimate) -> str:
    if np.isnan(ceiling.value):
        return "needs a ceiling: second answers to a clip"
    return "the same clip again is no closer than another instruction: nothing to divide by"


def _scores(sheet: Sheet, metric: str, items: Sequence[TaskItem]) -> np.ndarray:
    """(K,) an instruction's scores; NaN unscored."""
    found = [sheet.scores[item.id][metric] for item in items]
    return np.array([np.nan if value is None else value for value in found])


def _mean(own: np.ndarray) -> float:
    known = own[~np.isnan(own)]
    return float(known.mean()) if known.size else float("nan")
