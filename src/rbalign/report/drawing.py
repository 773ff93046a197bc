"""What all figures share: colours of arms, and axes as inline SVG that follows the page, light or dark. No torch."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

INK, FAINT = "#010203", "#040506"
"""Stand-ins that become `currentColor` and `var(--faint)` in the finished SVG."""
# After Okabe and Ito, told apart by colour-blind readers, too; darkened until each has a contrast of 3 to 1 with the
# page's light and with its dark ground. Names and marker shapes tell arms apart in black and white.
COLOURS = {
    "base": "#82878f",
    "sft": "#bf7e00",
    "kd": "#2f9bd6",
    "sft-matched": "#9c5f00",
    "kd-matched": "#3d73c4",
    "rba-single": "#009e73",
    "rba-group": "#d55e00",
    "text": "#c25f95",
    "cascade": "#8d7b3f",
    "self-cascade": "#5b6ee1",
}
SPARE = ("#8f8f2b", "#aa4499", "#2f9a8a", "#b3564c")
MARKERS = "osD^vP*X"
WIDTH = 4.7
"""Inches. Two figures stand side by side on a desk's screen; a phone scales one to 0.7 and can still read it."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A finished figure: what it is called, the same numbers in words for those who cannot see it, and its SVG."""

    title: str
    alt: str
    svg: Markup


def colour(arm: str, arms: Sequence[str] = ()) -> str:
    """An arm's colour; arms that the palette does not know take the spare ones in turn."""
    others = [name for name in arms if name not in COLOURS]
    return COLOURS.get(arm) or SPARE[others.index(arm) % len(SPARE) if arm in others else 0]


def marker(arm: str, arms: Sequence[str]) -> str:
    """An arm's marker: its place among `arms`, so that it is the same one in every figure."""
    return MARKERS[arms.index(arm) % len(MARKERS)] if arm in arms else MARKERS[0]


def draw(height: float, paint: Callable[[Any], None], title: str, alt: str) -> Figure:
    """One figure, `height` inches of axes high (a legend comes on top), painted on axes that have the page's ink."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

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
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.solid_capstyle": "round",
    }
    with rc_context(settings):
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        canvas.patch.set_alpha(0)
        axes = canvas.add_subplot()
        axes.patch.set_alpha(0)
        axes.locator_params(axis="x", nbins=5)
        paint(axes)
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            columns = 2 if max(map(len, labels)) > 16 else 3
            canvas.set_figheight(height + 0.2 * -(-len(labels) // columns))
            canvas.legend(handles, labels, loc="outside lower center", ncols=columns, handletextpad=0.3)
        out = io.StringIO()
        canvas.savefig(out, format="svg", metadata={"Date": None, "Title": title, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    return Figure(
        title, alt, Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" class="figure" ', 1))
    )
