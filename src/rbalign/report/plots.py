"""Kinds of figures that runs and benchmarks share. Each says its numbers in words, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rbalign.report.drawing import INK, Figure, colour, draw, marker
from rbalign.report.pivot import Row, axis, label, lower_is_better, show, signed


def forest(rows: Sequence[Row], metric: str, arms: Sequence[str]) -> Figure | None:
    """Differences a - b under one metric, with intervals; None without any. Filled: the interval excludes zero."""
    if not rows:
        return None

    def paint(axes: Any) -> None:
        for place, row in enumerate(reversed(rows)):
            shade = colour(row["a"], arms)
            axes.plot([row["ci_low"], row["ci_high"]], [place, place], color=shade, lw=2.2)
            sure = row["ci_low"] > 0 or row["ci_high"] < 0
            axes.plot(row["difference"], place, "o", ms=7, color=shade, mfc=shade if sure else "none", mew=1.6)
        axes.axvline(0, color=INK, lw=0.9)
        axes.set_yticks(range(len(rows)), [f"{row['a']} − {row['b']}" for row in reversed(rows)])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        better = "lower" if lower_is_better(rows[0]) else "higher"
        axes.set_xlabel(f"difference in {axis(metric)}\n({better} is better)")
        axes.grid(axis="x")

    title = f"Differences in {label(metric)}, 95 % intervals"
    said = "; ".join(f"{row['a']} − {row['b']} {signed(row)}" for row in rows)
    return draw(0.9 + 0.28 * len(rows), paint, title, f"{title}: {said}.")


def by_condition(
    conditions: dict[str, dict[str, Row]], arms: Sequence[str], metric: str, title: str, reading: Row | None
) -> Figure:
    """Arms in each condition; how far each lies from the dashed line (reading) is its gap there.

    conditions: name -> arm -> row. arms: every arm of the page, in order; only those with rows are shown.
    """
    shown = [arm for arm in arms if any(arm in rows for rows in conditions.values())]
    points = [
        (place, order, arm, conditions[name][arm])
        for place, name in enumerate(reversed(conditions))
        for order, arm in enumerate(shown)
        if arm in conditions[name] and conditions[name][arm]["value"] is not None
    ]
    step = 0.76 / len(shown)

    def paint(axes: Any) -> None:
        named = set()
        for place, order, arm, row in points:
            shade, height = colour(arm, arms), place + 0.38 - step * (order + 0.5)
            axes.plot([row["ci_low"], row["ci_high"]], [height, height], color=shade, lw=1.4)
            name = arm if arm not in named else None
            axes.plot(row["value"], height, marker(arm, arms), ms=5, color=shade, label=name, ls="none")
            named.add(arm)
        if reading is not None:
            axes.axvline(reading["value"], color=INK, lw=0.9, ls="--", label="text (reads)")
        axes.set_yticks(range(len(conditions)), list(reversed(conditions)))
        axes.set_ylim(-0.6, len(conditions) - 0.4)
        axes.set_xlabel(axis(metric))
        axes.grid(axis="x")

    said = "; ".join(
        f"{name}: " + ", ".join(f"{arm} {value(rows[arm])}" for arm in shown if arm in rows)
        for name, rows in conditions.items()
    )
    height = 0.8 + len(conditions) * max(0.4, 0.13 * len(shown) + 0.1)
    reads = f"; the text LLM reads {value(reading)}" if reading is not None else ""
    return draw(height, paint, title, f"{title}{reads}; {said}.")


def steadiness(points: Sequence[tuple[str, Row, Row]], arms: Sequence[str], quality: str, steady: str) -> Figure | None:
    """Consistency over quality: a constant answer has no place on this figure. points: (arm, quality, consistency)."""
    if len(points) < 2:
        return None

    def paint(axes: Any) -> None:
        for arm, good, row in points:
            cross(axes, arm, arms, good, row)
        axes.set_xlabel(f"quality: {quality}")
        axes.set_ylabel(steady)
        axes.grid()

    said = "; ".join(f"{arm} quality {value(good)}, consistency {value(row)}" for arm, good, row in points)
    return draw(3.4, paint, "Consistency against quality", f"Consistency against quality: {said}.")


def wins(
    points: Sequence[tuple[str, Row, Row]],
    arms: Sequence[str],
    opponent: Row,
    title: str,
    words: tuple[str, str, str],
) -> Figure:
    """How often an arm wins over the length of its answers: what rises with length may be length alone.

    points: (arm, length, percent won). opponent: its length. words: the opponent's name, the unit of lengths, what the
    percent is of.
    """
    name, unit, share = words

    def paint(axes: Any) -> None:
        for arm, length, won in points:
            cross(axes, arm, arms, length, won)
        axes.axhline(50, color=INK, lw=0.9)
        axes.axvline(opponent["value"], color=INK, lw=0.9, ls=":", label=f"length of {name}")
        axes.set_xlabel(f"length of an answer, {unit}")
        axes.set_ylabel(f"wins over {name},\n{share}")
        axes.grid()

    said = "; ".join(
        f"{arm} {value(length)} {unit}, wins {won['value']:.0f} % ({won['ci_low']:.0f} to {won['ci_high']:.0f})"
        for arm, length, won in points
    )
    return draw(3.2, paint, title, f"{title}; {name} has {value(opponent)} {unit}; {said}.")


def cross(axes: Any, arm: str, arms: Sequence[str], x: Row, y: Row) -> None:
    """An arm as a point with both its intervals; a value without one has none."""
    axes.errorbar(
        x["value"],
        y["value"],
        xerr=_arms_of(x),
        yerr=_arms_of(y),
        fmt=marker(arm, arms),
        color=colour(arm, arms),
        ms=7,
        lw=1.2,
        label=arm,
    )


def _arms_of(row: Row) -> list[list[float]] | None:
    if row.get("ci_low") is None:
        return None
    return [[row["value"] - row["ci_low"]], [row["ci_high"] - row["value"]]]


def value(row: Row) -> str:
    """A row's number, in words."""
    return show(row["value"], row["metric"])
