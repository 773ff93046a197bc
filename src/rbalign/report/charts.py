"""The page's figures. Every number comes from results.json or from a training log; each says them in words, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rbalign.report import plots
from rbalign.report.drawing import INK, Figure, colour, draw
from rbalign.report.pivot import CURVES, HEADLINES, LOWER_IS_BETTER, REFERENCES, Results, Row, axis, label


def forest(results: Results, metric: str) -> Figure | None:
    """Differences of trained arms to base, sft and kd under one metric, with intervals; None without any."""
    trained = set(results.trained())
    rows = [
        r for r in results.comparisons if r["metric"] == metric and r["a"] in trained and r["difference"] is not None
    ]
    rows = [row for row in rows if not row["b"].endswith(("-text", "-wrong-audio")) and row["b"] != "text"]
    return plots.forest(rows, metric, results.arms())


def ladder(results: Results, metric: str) -> Figure | None:
    """Where the gap lies: every arm and reference on one scale, from hearing to reading."""
    rows = [(arm, results.find(arm, metric)) for arm in results.arms()]
    known = [(arm, row) for arm, row in rows if row is not None and row["value"] is not None]
    if len(known) < 3:
        return None
    known.sort(key=lambda pair: pair[1]["value"], reverse=metric in LOWER_IS_BETTER)

    def paint(axes: Any) -> None:
        for place, (arm, row) in enumerate(known):
            shade = colour(arm, results.arms())
            axes.plot([row["ci_low"], row["ci_high"]], [place, place], color=shade, lw=2.2)
            axes.plot(row["value"], place, "o", ms=7, color=shade)
            for side, shape in (("-text", ">"), ("-wrong-audio", "x")):
                other = results.find(arm, metric, row["task"] + side)
                if other is not None and other["value"] is not None:
                    axes.plot(other["value"], place, shape, ms=6, color=shade, mfc="none", mew=1.4)
        _ends(axes, results, metric)
        axes.set_yticks(range(len(known)), [arm for arm, _ in known])
        axes.set_ylim(-0.6, len(known) - 0.4)
        axes.set_xlabel(axis(metric))
        axes.grid(axis="x")

    title = f"Where the gap lies in {label(metric)}"
    said = "; ".join(f"{arm} {plots.value(row)}" for arm, row in known)
    return draw(0.8 + 0.3 * len(known), paint, title, f"{title}: {said}.")


def _ends(axes: Any, results: Results, metric: str) -> None:
    """Where the gap begins and ends: base hearing (dotted), the text LLM reading (dashed)."""
    for name, style in (("base", ":"), ("text", "--")):
        row = results.find(name, metric)
        if row is not None and row["value"] is not None:
            axes.axvline(row["value"], color=INK, lw=0.9, ls=style)


def conditions(results: Results, metric: str) -> Figure | None:
    """Base and trained arms in each voice; how far each lies from the dashed line (reading) is its gap there."""
    voices, text = results.voices(metric), results.find("text", metric)
    arms = [arm for arm in results.arms() if arm not in REFERENCES and any(arm in rows for rows in voices.values())]
    if len(voices) < 2 or not arms or text is None or text["value"] is None:
        return None
    return plots.by_condition(voices, arms, metric, f"Gap to reading by voice, {label(metric)}", text)


def consistency_against_quality(results: Results) -> Figure | None:
    """Each arm's consistency headline over its quality: a constant answer has no place on this figure."""
    metric = next((m for m in HEADLINES if results.find("base", m)), None)
    embedder = next(iter(results.embedders()), None)
    if metric is None or embedder is None:
        return None
    points = []
    for arm in results.arms():
        steady, good = results.find(arm, f"consistency:{embedder}/headline", "open"), results.find(arm, metric)
        if steady and good and steady["value"] is not None and good["value"] is not None:
            points.append((arm, good, steady))
    unit = "consistency between voices\n(0 other instruction, 1 same audio)"
    return plots.steadiness(points, results.arms(), axis(metric), unit)


def length_against_win(results: Results, metric: str) -> Figure | None:
    """How often an arm beats base, over the length of its answers: a win that rises with length may be length alone.

    The share is of the instructions where the two differ, with the exact binomial interval that belongs to the sign
    test beside it (Clopper and Pearson 1934).
    """
    base, points = results.find("base", "tokens", "open"), []
    for arm in results.trained():
        row = next((r for r in results.comparisons if (r["a"], r["b"], r["metric"]) == (arm, "base", metric)), None)
        length = results.find(arm, "tokens", "open")
        if row and row["task"] == "open" and row["wins"] + row["losses"] and length and length["value"] is not None:
            points.append((arm, length, win_share(row["wins"], row["losses"])))
    if base is None or base["value"] is None or not points:
        return None

    title = f"Length against wins over base, {label(metric)}"
    return plots.wins(points, results.arms(), base, title, ("base", "tokens", "% of what differs"))


def win_share(wins: int, losses: int) -> Row:
    """Percent of `wins` among wins and losses, as a row with its exact 95 % interval."""
    from scipy.stats import binomtest

    found = binomtest(wins, wins + losses)
    low, high = found.proportion_ci(0.95, "exact")
    return {"metric": "wins", "value": 100 * found.statistic, "ci_low": 100 * low, "ci_high": 100 * high}


def curves(metrics: Mapping[str, Sequence[Row]], name: str) -> Figure | None:
    """One training quantity of every arm over its updates; `metrics` maps an arm's folder name to its log rows."""
    lines = {}
    for arm, rows in metrics.items():
        points = [
            (row.get("update", row.get("step")), row[name])
            for row in rows
            if isinstance(row.get(name), int | float) and isinstance(row.get("update", row.get("step")), int | float)
        ]
        if len(points) > 1:
            lines[arm] = points
    if not lines:
        return None
    words, unit = CURVES[name]

    def paint(axes: Any) -> None:
        for arm, points in lines.items():
            axes.plot(*zip(*points, strict=True), color=colour(arm.rsplit("-s", 1)[0]), lw=1.6, label=arm)
        axes.set_xlabel("update")
        axes.set_ylabel(f"{words}, {unit}")
        axes.grid()

    title = f"{words[0].upper()}{words[1:]} over updates"
    said = "; ".join(f"{arm} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for arm, points in lines.items())
    return draw(2.5, paint, title, f"{title}: {said}.")
