"""The page's words and tables as Markdown: for a pull request, a mail, a terminal. No figures, no samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def report(context: Mapping[str, Any]) -> str:
    """report.md from what `page` shows; texts cannot break out of a table or become HTML."""
    blocks = [
        f"# {plain(context['name'])}",
        plain(context["description"]),
        plain("; ".join(context["facts"])),
        "\n".join(f"- {plain(line['text'])}" for line in context["verdict"]),
        "## Table",
        "Mean over instructions (95 % interval). † the arm's own loss raises this number, so it judges nothing.",
        cells("arm", [column["label"] for column in context["table"]["columns"]], context["table"]["lines"], "arm"),
    ]
    if context["comparisons"]:
        blocks += [differences(context)]
    if context["gaps"]["lines"]:
        blocks += ["## Gap closed", cells("arm", context["gaps"]["columns"], context["gaps"]["lines"], "arm")]
    if context["consistency"]:
        lines = [{**line, "arm": f"{line['arm']} ({line['embedder']})"} for line in context["consistency"]]
        blocks += ["## Consistency between voices", cells("arm (embedder)", STEADINESS, lines, "arm")]
    for block in context["voices"]:
        blocks += [f"## {block['metric']} by voice", cells("voice", block["arms"], block["lines"], "voice")]
    if context["training"]:
        rows = [[line[key] for key in TRAINING.values()] for line in context["training"]]
        blocks += ["## Training", table(TRAINING, rows)]
    blocks += ["## How it was measured", terms(context["method"])]
    return "\n\n".join(block for block in blocks if block) + "\n"


DIFFERENCES = {
    "a − b": "name",
    "metric": "metric",
    "difference": "difference",
    "95 % interval": "interval",
    "n": "n",
    "better / worse / same": "flips",
    "sign test p": "sign_p",
    "p": "p",
    "adjusted p": "p_holm",
}
STEADINESS = ("headline", "raw cosine", "floor", "same audio")
TRAINING = {
    "arm": "arm",
    "seed": "seed",
    "updates": "updates",
    "weights of update": "selected",
    "10^12 operations": "operations",
    "minutes": "minutes",
}
"""Column's head -> the key of its value, for the page, too."""


def table(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; every cell is escaped."""
    lines = [[plain(column) for column in columns]]
    lines += [["---"] * len(lines[0]), *([plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text on one line that is neither a cell's end nor HTML nor a link or emphasis."""
    escaped = "".join(f"\\{letter}" if letter in r"\`*_[]|~" else letter for letter in text)
    return " ".join(escaped.replace("&", "&amp;").replace("<", "&lt;").split())


def differences(context: Mapping[str, Any]) -> str:
    """Every paired comparison, with its heading."""
    rows = [[_marked(row, key) for key in DIFFERENCES.values()] for row in context["comparisons"]]
    family = f"Adjusted p: Holm over all {context['family']} headline comparisons."
    return "\n\n".join(["## Differences, paired by instruction", family, table(DIFFERENCES, rows)])


def terms(said: Iterable[tuple[str, str]]) -> str:
    """What stands behind the numbers, a term in a line."""
    return "\n".join(f"- {plain(name)}: {plain(text)}" for name, text in said)


def cells(corner: str, columns: Sequence[str], lines: Iterable[Mapping[str, Any]], name: str) -> str:
    """Lines of values, each with its interval."""
    rows = [[line[name], *(_value(cell) for cell in line["cells"])] for line in lines]
    return table([corner, *columns], rows)


def _value(cell: Mapping[str, Any]) -> str:
    mark = "†" if cell.get("optimised") else ""
    span = f" ({cell['interval']})" if cell["interval"] else ""
    return f"{cell['value']}{mark}{span}" if cell["value"] else "–"


def _marked(row: Mapping[str, Any], key: str) -> str:
    return f"{row[key]} †" if key == "metric" and row["optimised"] else str(row[key])
