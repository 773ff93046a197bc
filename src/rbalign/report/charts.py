"""Figures as inline SVG that follows the page's colours, light or dark. No torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rbalign.report.pivot import HEADLINES, LOWER_IS_BETTER, Results, Row, label

INK, FAINT = "#010203", "#040506"
"""Stand-ins that become `currentColor` and `var(--faint)` in the finished SVG."""
# Okabe and Ito's palette: told apart by colour-blind readers, too. Line styles tell arms apart in print.
COLOURS = {
    "base": "#8a8f98",
    "sft": "#e69f00",
    "kd": "#56b4e9",
    "sft-matched": "#b37400",
    "kd-matched": "#1f78b4",
    "rba-single": "#009e73",
    "rba-group": "#d55e00",
    "text": "#cc79a7",
    "cascade": "#a0742c",
    "self-cascade": "#0072b2",
}
SPARE = ("#f0e442", "#999933", "#aa4499", "#44aa99")
MARKERS = "osD^vP*X"


def colour(arm: str, arms: Sequence[str] = ()) -> str:
    """An arm's colour; arms that the palette does not know take the spare ones in turn."""
    others = [name for name in arms if name not in COLOURS]
    return COLOURS.get(arm) or SPARE[others.index(arm) % len(SPARE) if arm in others else 0]


def _draw(width: float, height: float, paint: Callable[[Any], None], title: str) -> str:
    """One SVG of `width` x `height` inches, painted on axes that have the page's ink."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "rba",
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": FAINT,
        "grid.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        paint(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Title": title, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{_attribute(title)}" class="figure" ', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")


def forest(results: Results, metric: str) -> str | None:
    """Differences of trained arms to base, sft and kd under one metric, with intervals; None without any."""
    trained = set(results.trained())
    rows = [
        r for r in results.comparisons if r["metric"] == metric and r["a"] in trained and r["difference"] is not None
    ]
    rows = [row for row in rows if not row["b"].endswith(("-text", "-wrong-audio")) and row["b"] != "text"]
    if not rows:
        return None

    def paint(axes: Any) -> None:
        for place, row in enumerate(reversed(rows)):
            shade = colour(row["a"])
            axes.plot([row["ci_low"], row["ci_high"]], [place, place], color=shade, lw=2.2, solid_capstyle="round")
            sure = row["ci_low"] > 0 or row["ci_high"] < 0
            axes.plot(row["difference"], place, "o", ms=7, color=shade, mfc=shade if sure else "none", mew=1.6)
        axes.axvline(0, color=INK, lw=0.9)
        axes.set_yticks(range(len(rows)), [f"{row['a']} − {row['b']}" for row in reversed(rows)])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        better = "lower is better" if metric in LOWER_IS_BETTER else "higher is better"
        axes.set_xlabel(f"difference in {label(metric)} ({better})")
        axes.grid(axis="x")

    return _draw(7.2, 0.9 + 0.34 * len(rows), paint, f"Differences in {label(metric)} with 95 % intervals")


def ladder(results: Results, metric: str) -> str | None:
    """Where the gap lies: every arm and reference on one scale, from hearing to reading."""
    rows = [(arm, results.find(arm, metric)) for arm in results.arms()]
    known = [(arm, row) for arm, row in rows if row is not None and row["value"] is not None]
    if len(known) < 3:
        return None
    known.sort(key=lambda pair: pair[1]["value"], reverse=metric in LOWER_IS_BETTER)

    def paint(axes: Any) -> None:
        for place, (arm, row) in enumerate(known):
            shade = colour(arm, results.arms())
            axes.plot([row["ci_low"], row["ci_high"]], [place, place], color=shade, lw=2.2, solid_capstyle="round")
            axes.plot(row["value"], place, "o", ms=7, color=shade)
            _side(axes, results, arm, metric, row["task"], place, shade)
        for name, style in (("base", ":"), ("text", "--")):
            line = results.find(name, metric)
            if line is not None and line["value"] is not None:
                axes.axvline(line["value"], color=INK, lw=0.8, ls=style)
        axes.set_yticks(range(len(known)), [arm for arm, _ in known])
        axes.set_ylim(-0.6, len(known) - 0.4)
        axes.set_xlabel(f"{label(metric)}   (dotted: base, dashed: text LLM; ▷ own text side, × wrong audio)")
        axes.grid(axis="x")

    return _draw(7.2, 0.9 + 0.36 * len(known), paint, f"Gap decomposition in {label(metric)}")


def _side(axes: Any, results: Results, arm: str, metric: str, task: str, place: int, shade: str) -> None:
    """The arm's own score on text, and on another item's audio."""
    for suffix, marker in (("-text", ">"), ("-wrong-audio", "x")):
        row = results.find(arm, metric, task + suffix)
        if row is not None and row["value"] is not None:
            axes.plot(row["value"], place, marker, ms=6, color=shade, mfc="none", mew=1.4)


def consistency_against_quality(results: Results) -> str | None:
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
    if len(points) < 2:
        return None

    def paint(axes: Any) -> None:
        for place, (arm, good, steady) in enumerate(points):
            shade, x, y = colour(arm, results.arms()), good["value"], steady["value"]
            axes.errorbar(
                x,
                y,
                xerr=[[x - good["ci_low"]], [good["ci_high"] - x]],
                yerr=[[y - steady["ci_low"]], [steady["ci_high"] - y]],
                fmt=MARKERS[place % len(MARKERS)],
                color=shade,
                ms=7,
                lw=1.2,
                label=arm,
            )
        axes.set_xlabel(f"quality: {label(metric)}")
        axes.set_ylabel("consistency between voices\n(0 other instruction, 1 same audio)")
        axes.grid()
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))

    return _draw(7.2, 3.8, paint, "Consistency against quality")


def curves(metrics: Mapping[str, Sequence[Row]], name: str) -> str | None:
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

    def paint(axes: Any) -> None:
        for arm, points in lines.items():
            axes.plot(*zip(*points, strict=True), color=colour(arm.rsplit("-s", 1)[0]), lw=1.6, label=arm)
        axes.set_xlabel("update")
        axes.set_ylabel(name)
        axes.grid()
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))

    return _draw(7.2, 2.6, paint, f"{name} over updates")
