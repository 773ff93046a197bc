"""The page's tables as plain values: numbers become strings here, and nowhere else. No HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rbalign.report.drawing import colour
from rbalign.report.pivot import (
    CURVES,
    HEADLINES,
    LOWER_IS_BETTER,
    REFERENCES,
    Results,
    Row,
    digits,
    label,
    lower_is_better,
    show,
    signed,
)

NEUTRAL = {"tokens", "truncated", "surprisal", "echo", "failed"}


def cell(row: Row | None, metric: str = "") -> dict[str, Any]:
    """A value, its interval and its flags; an empty value where there is none."""
    if row is None or row["value"] is None:
        return {"value": "", "interval": "", "optimised": False, "best": False, "note": (row or {}).get("note", "")}
    name = metric or row["metric"]
    span = "" if row["ci_low"] is None else f"{show(row['ci_low'], name)} to {show(row['ci_high'], name)}"
    return {
        "value": show(row["value"], name),
        "interval": span,
        "optimised": row["optimised"],
        "best": False,
        "note": "",
    }


def main_table(results: Results) -> dict[str, Any]:
    """Every arm and reference under every pooled metric."""
    columns, facets, lines = results.columns(), results.facets(), []
    best = {column: _best(results, *column) for column in columns}
    for arm in results.arms():
        cells = []
        for task, metric in columns:
            made = cell(results.shown(arm, task, metric))
            made["best"] = arm == best[task, metric]
            cells.append(made)
        seeds = sorted({row["seed"] for row in results.rows if row["arm"] == arm and row["seed"] is not None})
        lines.append(
            {
                "arm": arm,
                "reference": arm in REFERENCES,
                "colour": colour(arm, results.arms()),
                "seeds": f"{len(seeds)} seeds" if len(seeds) > 1 else "",
                "cells": cells,
            }
        )
    heads = [
        {
            "label": facets.get((task, metric)) or label(metric),
            "headline": task in ("open", "qa") and metric in HEADLINES,
            "hint": _hint(task, metric),
        }
        for task, metric in columns
    ]
    return {"columns": heads, "lines": lines}


def _hint(task: str, metric: str) -> str:
    return (
        ""
        if metric in NEUTRAL or "-" in task
        else "lower is better"
        if metric in LOWER_IS_BETTER
        else "higher is better"
    )


def _best(results: Results, task: str, metric: str) -> str | None:
    """The best of base and the trained arms that did not optimise the metric."""
    if metric in NEUTRAL or metric == "wer" or "-" in task:
        return None
    rows = [(arm, results.find(arm, metric, task)) for arm in ["base", *results.trained()]]
    known = [(row["value"], arm) for arm, row in rows if row and row["value"] is not None and not row["optimised"]]
    if len(known) < 2:
        return None
    return (min if metric in LOWER_IS_BETTER else max)(known)[1]


def comparison_table(results: Results) -> list[dict[str, str | bool]]:
    """Every paired comparison, headline ones first."""
    rows = sorted(results.comparisons, key=lambda row: not row["headline"])
    return [
        {
            "name": f"{row['a']} − {row['b']}",
            "metric": label(row["metric"]),
            "optimised": row["optimised"],
            "difference": _signed(row, "difference"),
            "interval": "–" if row["ci_low"] is None else f"{_signed(row, 'ci_low')} to {_signed(row, 'ci_high')}",
            "n": str(row["n"]),
            "flips": _flips(row),
            "sign_p": _p(row["sign_p"]) if row["wins"] + row["losses"] + row["ties"] else "–",
            "p": _p(row["p"]),
            "p_holm": _p(row["p_holm"]),
        }
        for row in rows
    ]


def _signed(row: Row, name: str) -> str:
    return "–" if row[name] is None else f"{row[name]:+.{digits(row['metric'])}f}"


def _flips(row: Row) -> str:
    if not row["wins"] + row["losses"] + row["ties"]:
        return "–"
    better, worse = row["wins"], row["losses"]
    if lower_is_better(row):
        better, worse = worse, better
    return f"{better} / {worse} / {row['ties']}"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def gap_table(results: Results) -> dict[str, Any]:
    """Gap closed, per arm and metric."""
    found = dict.fromkeys(row["metric"] for row in results.rows if row["metric"].startswith("gap-closed@"))
    names = sorted((m.split("@")[1] for m in found), key=lambda m: (m not in HEADLINES, label(m)))
    lines = []
    for arm in results.arms():
        rows = [results.find(arm, f"gap-closed@{name}") for name in names]
        if any(rows):
            lines.append({"arm": arm, "cells": [cell(row) for row in rows]})
    return {"columns": [label(name) for name in names], "lines": lines}


def consistency_table(results: Results) -> list[dict[str, Any]]:
    """Headline, raw, floor and ceiling of each arm under each embedder."""
    lines = []
    for embedder in results.embedders():
        for arm in results.arms():
            pieces = ("headline", "raw", "floor", "ceiling")
            rows = [results.find(arm, f"consistency:{embedder}/{piece}", "open") for piece in pieces]
            if any(rows):
                lines.append({"arm": arm, "embedder": embedder, "cells": [cell(row) for row in rows]})
    return lines


def voice_tables(results: Results) -> list[dict[str, Any]]:
    """One table for each headline metric: voices down, arms across."""
    blocks = []
    for metric in HEADLINES:
        voices = results.voices(metric)
        if voices:
            arms = [arm for arm in results.arms() if any(arm in rows for rows in voices.values())]
            lines = [
                {"voice": voice, "cells": [cell(rows.get(arm), metric) for arm in arms]}
                for voice, rows in voices.items()
            ]
            blocks.append({"metric": label(metric), "arms": arms, "lines": lines})
    return blocks


def verdict(results: Results) -> list[dict[str, str]]:
    """What the headline numbers say, one line for each pair of arms; what adjusted p leaves open is called open."""
    lines = []
    for row in results.comparisons:
        if (row["a"], row["b"]) == ("text", "base") and row["metric"] in HEADLINES and row["ci_low"] is not None:
            clear = "reading beats hearing by" if row["ci_low"] > 0 else "reading minus hearing is"
            words = f"Before alignment, {label(row['metric'])}: {clear} {signed(row)}."
            lines.append({"kind": "plain", "text": words})
    lines += _questions_kept(results) + _reading_gained(results)
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in results.comparisons:
        if row["headline"] and row["difference"] is not None:
            pairs.setdefault((row["a"], row["b"]), []).append(row)
    lines += [_sentence(ours, theirs, rows) for (ours, theirs), rows in pairs.items()]
    return lines or [{"kind": "plain", "text": "No headline comparison could be made from these results."}]


def _questions_kept(results: Results) -> list[dict[str, str]]:
    """How many of the questions that reading answers rightly hearing does too, beside another question's audio."""
    kept, chance = (results.find("base", "qa/where-text-right", task) for task in ("qa", "qa-wrong-audio"))
    if kept is None or kept["value"] is None:
        return []
    words = f"Of {kept['n']} questions that reading answers rightly, hearing answers {_percent(kept)} rightly"
    if chance is not None and chance["value"] is not None:
        words += f"; with another question's audio {_percent(chance)}"
    return [{"kind": "plain", "text": f"{words}."}]


def _reading_gained(results: Results) -> list[dict[str, str]]:
    """What alignment gave the arms' own reading: a gain there is no narrower gap between hearing and reading."""
    metric = results.similarity()
    pairs = {row["a"]: row for row in results.comparisons if (row["b"], row["metric"]) == ("text", metric)}
    own = {arm: pairs.get(f"{arm}-text") for arm in results.trained()}
    gains = [f"{arm} {signed(row)}" for arm, row in own.items() if row and row["difference"] is not None]
    if metric is None or not gains:
        return []
    words = f"{label(metric)} of each arm on text, against the text LLM: {', '.join(gains)}."
    return [{"kind": "plain", "text": f"Reading changed, too. {words[0].upper()}{words[1:]}"}]


def _percent(row: Row) -> str:
    return f"{100 * row['value']:.0f} % ({100 * row['ci_low']:.0f} to {100 * row['ci_high']:.0f})"


def _sentence(ours: str, theirs: str, rows: Sequence[Row]) -> dict[str, str]:
    found = [_direction(row) for row in rows]
    kind = (
        "up" if "up" in found and "down" not in found else "down" if "down" in found and "up" not in found else "open"
    )
    words = {"up": "better", "down": "worse", "open": "no clear difference"}
    parts = [
        f"{label(row['metric'])} {words[direction]}, {signed(row)}, adjusted p {_p(row['p_holm'])}"
        for row, direction in zip(rows, found, strict=True)
    ]
    return {"kind": kind, "text": f"{ours} against {theirs}: {'; '.join(parts)}."}


def _direction(row: Row) -> str:
    """up or down only where the Holm-adjusted p-value is below 0.05."""
    if row["p_holm"] is None or row["p_holm"] >= 0.05:
        return "open"
    return "up" if (row["difference"] > 0) == (not lower_is_better(row)) else "down"


def family_size(results: Results) -> int:
    """How many comparisons the Holm adjustment covers."""
    return sum(bool(row["headline"]) for row in results.comparisons)


def training_table(results: Results) -> list[dict[str, str]]:
    """What each arm's training took, one line an arm and seed."""
    return [
        {
            "arm": row["arm"],
            "seed": str(row["seed"]),
            "updates": str(row["updates"]),
            "selected": show(row.get("selected_update"), "updates"),
            "operations": f"{row['operations'] / 1e12:.1f}",
            "minutes": f"{row['seconds'] / 60:.1f}",
        }
        for row in results.value.get("training", ())
    ]


def curve_names(logs: Sequence[Sequence[Row]]) -> list[str]:
    """Training quantities worth a figure that any log has."""
    present = {name for rows in logs for row in rows for name, value in row.items() if isinstance(value, int | float)}
    return [name for name in CURVES if name in present]
