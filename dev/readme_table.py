"""Write the tables of README.md, docs/objectives.md and docs/evaluation.md from results/ and the connector's
quality.json, never by hand.

python dev/readme_table.py            # rewrite
python dev/readme_table.py --check    # exit 1 if they are not what it would write
"""

import json
import sys
from pathlib import Path

from rbalign.data.signatures import Signatures
from rbalign.report.benchmarks import called
from rbalign.report.pivot import Results, label
from rbalign.report.tables import main_table, training_table, verdict

ROOT = Path(__file__).parent.parent
SIDES = ("WER of heard", "request's words")
"""Columns that README shows beside the headlines and their sides."""
ADJUSTED = 0.05
BESIDE = ("cross_view", "floor", "ceiling", "words")
"""What stands behind consistency; the pages of `rba eval --model` have it."""
SHIPPED = ROOT / "src" / "rbalign" / "speechlm" / "shipped"


def cell(value: dict, headline: bool) -> str:
    """`0.228 (0.158 to 0.295)`, starred where the arm's loss optimises the metric."""
    interval = f" ({value['interval']})" if headline and value["interval"] else ""
    return f"{value['value']}{'*' if value['optimised'] else ''}{interval}"


def section(name: str, results: dict) -> str:
    """One run's table in Markdown, and what it says in words."""
    asked = Results(results)
    made = main_table(asked)
    sides = {*asked.facets().values(), *SIDES}
    shown = {i: column for i, column in enumerate(made["columns"]) if column["headline"] or column["label"] in sides}
    lines = table(
        ["arm", *(column["label"] for column in shown.values())],
        [
            [line["arm"], *(cell(line["cells"][i], column["headline"]) for i, column in shown.items())]
            for line in made["lines"]
        ],
    )
    note = (
        f"`rba run {name}` (results/{name}.json; its page has every column). 95 % intervals over instructions; * = the "
        "arm's loss optimises it; bold = Holm-adjusted p below 0.05."
    )
    said = [f"- {line['text']}" for line in verdict(asked) if line["kind"] == "plain"]
    spent = [f"{row['arm']} {row['operations']} ({row['updates']}, {row['selected']})" for row in training_table(asked)]
    if spent:
        what = "10^12 operations of the language model (updates, and the one whose weights are evaluated)"
        said.append(f"- Training, {what}: {', '.join(spent)}.")
    pairs = differences(asked)
    return "\n".join([note, "", *lines, "", *([*pairs, ""] if pairs else []), *said])


def differences(results: Results) -> list[str]:
    """Every headline comparison, a pair of arms in a row; bold where the Holm-adjusted p is below 0.05."""
    shown = {
        ((f"{row['a']} minus {row['b']}",), label(row["metric"])): difference(row, 3)
        for row in results.comparisons
        if row["headline"] and row["difference"] is not None
    }
    return pivoted(["difference"], shown) if shown else []


def difference(row: dict, places: int) -> str:
    """`+0.031 (+0.004 to +0.058)`, bold where the Holm-adjusted p is below 0.05, starred where training raised it."""
    mark = "**" if row["p_holm"] is not None and row["p_holm"] < ADJUSTED else ""
    value, low, high = (f"{row[name]:+.{places}f}" for name in ("difference", "ci_low", "ci_high"))
    return f"{mark}{value}{mark}{'*' if row['optimised'] else ''} ({low} to {high})"


def pivoted(corner: list[str], cells: dict[tuple[tuple[str, ...], str], str]) -> list[str]:
    """A table of (what stands left, column) -> cell."""
    columns = list(dict.fromkeys(column for _, column in cells))
    rows = dict.fromkeys(left for left, _ in cells)
    return table([*corner, *columns], [[*left, *(cells.get((left, one), "") for one in columns)] for left in rows])


def table(columns: list[str], rows: list[list]) -> list[str]:
    """Lines of a table in Markdown; cells may hold Markdown."""
    lines = [f"| {' | '.join(map(str, line))} |" for line in (columns, *rows)]
    return [lines[0], "|" + "---|" * len(columns), *lines[1:]]


def hearing(counts: dict, quality: dict, mlp: dict | None) -> str:
    """What the shipped connector hears (benchmarks/hearing.py), beside the recogniser whose encoder it uses and, where
    it was measured, beside an MLP adapter that learned from the same speech."""
    schools = [counts]
    while "start" in schools[0]:
        schools.insert(0, schools[0]["start"])
    longest = max(school["speech_hours"] for school in schools)
    further = (
        f", and then, from there, on up to {longest:.0f} h that go round longer and inflected words (dev/LOG.md)"
        if schools[1:]
        else ""
    )
    heard = len(Signatures.load(SHIPPED / "signatures.bin"))
    said = (
        f"The speech LLM that ships hears with a connector of {counts['parameters'] / 1e6:.0f} M parameters, trained "
        f"on {schools[0]['speech_hours']:.0f} h of hibari and Kokoro's train voices by `rba run connect`{further}. It "
        f"has heard {heard:,} sentences that the LLM wrote or that go round its vocabulary, and never these:"
    )
    tiny = "whisper tiny.en"
    heldout, spliced = quality["heldout"], quality["spliced"]
    alone, other = quality["greedy"], mlp or {"heldout": {"voices": {}}, "spliced": None, "people": {}}
    rows = [
        (
            "held-out sentences, every test voice",
            heldout,
            alone["heldout"],
            mlp and other["heldout"],
            heldout[f"{tiny}, one voice each"],
        ),
        *(
            (f"of these, {name}", one, alone["heldout"]["voices"][name], other["heldout"]["voices"].get(name), None)
            for name, one in heldout["voices"].items()
        ),
        (f"spliced to {spliced['seconds']:.0f} s on average", spliced, alone["spliced"], other["spliced"], None),
        *(
            (name, pair["ours"], alone["people"][name]["ours"], other["people"].get(name, {}).get("ours"), pair[tiny])
            for name, pair in quality["people"].items()
        ),
    ]
    lines = table(
        ["WER, %", "clips", "this connector", "its CTC alone, greedy", "MLP adapter", "Whisper tiny.en"],
        [[name, ours["clips"], *map(percent, [ours, *others])] for name, ours, *others in rows],
    )
    if mlp:
        own = mlp["connector"]
        said += (
            "\n\nThe MLP adapter is a second base (`--connect.adapter mlp`, dev/LOG.md), which learned from "
            f"{own['hours_heard']:.0f} h of the same speech in {own['updates']:,} updates. It has no transcript and is "
            "asked to repeat the words."
        )
    return "\n".join([said, "", *lines])


def percent(value: dict | None) -> str:
    """`12.3 (11.0 to 13.9)`; empty where nothing was measured."""
    return "" if value is None else f"{value['wer']:.1f} ({value['ci'][0]:.1f} to {value['ci'][1]:.1f})"


def costs(measured: dict) -> str:
    """What one update of each arm takes (benchmarks/updates.py)."""
    said = (
        "One update of 4 instructions x 4 voices, answers of 32 tokens, SmolLM2-135M with LoRA, clips heard before; "
        f"{measured['machine']} (`{measured['command']}`, medians). Operations are those of the language model's "
        "matrix products."
    )
    rows = [
        [f"`{row['arm']}`", f"{row['gigaflop']:,.0f}", f"{row['total']:.1f}"]
        + [f"{row[name]:.1f}" if row.get(name) else "" for name in ("sample", "reference", "step")]
        for row in measured["rows"]
    ]
    columns = ["arm", "operations, GFLOP", "seconds", "sampling", "reference", "loss and step"]
    return "\n".join([said, "", *table(columns, rows)])


def growth(measured: dict) -> str:
    """What an update takes by the number of views and of examples (benchmarks/updates.py)."""
    said = (
        "By views of an instruction, then by the number of examples in the data, each in one interleaved run "
        f"(`{measured['command']}`; {measured['machine']}). An update takes four examples; its seconds, and those "
        "divided by its views:"
    )
    rows = [
        [f"`{row['arm']}`", row["run"], row["examples"], row["views"], f"{row['total']:.1f}", f"{each(row):.2f}"]
        for row in measured["rows"]
    ]
    return "\n".join([said, "", *table(["arm", "run", "examples", "views", "seconds", "seconds a view"], rows)])


def each(row: dict) -> float:
    """Seconds for each view of the update's four examples."""
    return row["total"] / (4 * row["views"])


def beside(measured: dict) -> str:
    """One update beside another trainer's (benchmarks/beside_trl.py)."""
    rows = []
    for row in measured["rows"]:
        ratio = f"{row['ratio']:.1f} ({row['spread'][0]:.1f} to {row['spread'][1]:.1f})"
        rows.append([row["name"], f"{row['ours']:.1f}", f"{row['theirs']:.1f}", ratio, f"{row['floor']:.1f}"])
    said = f"`{measured['command']}`; {measured['machine']}, seconds of an update."
    return "\n".join([said, "", *table(["update", "ours", "theirs", "times as fast", "products alone"], rows)])


def smoke(measured: dict) -> str:
    """Every figure of the smoke tasks by model, and the arms' differences (benchmarks/smoke.py)."""
    (row,) = measured["rows"]
    figures = {
        (figure["task"], called(figure), figure["model"]): figure
        for figure in row["figures"]
        if figure["value"] is not None
        and figure["metric"] not in BESIDE
        and not (figure["task"] == "smoke-if" and figure["part"])
        and figure["part"] != "minilm"
    }
    models = row["models"]
    said = (
        f"`{measured['command']}`; {measured['machine']}. Greedy, at most {row['max_new_tokens']} tokens. "
        "95 % intervals over instructions, whose number is n. Left out: rates of single constraints, consistency by "
        "MiniLM, and what consistency is made of; the pages of `rba eval --model` have them."
    )
    lines = []
    for task, name in dict.fromkeys(key[:-1] for key in figures):
        own = [figures.get((task, name, model)) for model in models]
        n = next(figure["n"] for figure in own if figure)
        lines.append([task.removeprefix("smoke-"), name, n, *(spread(figure) if figure else "" for figure in own)])
    pairs = {}
    for one in row["differences"]:
        left = (one["task"].removeprefix("smoke-"), called(one))
        pairs[left, f"{one['a']} minus {one['b']}"] = difference(one, places(one))
    bold = (
        "Bold = p below 0.05 after Holm's adjustment over all of these but those with a star: what training raises by "
        f"itself judges nothing. Wins are judged by {row['judge']}: whose answer is nearer to the reference."
    )
    scores = table(["task", "figure", "n", *models], lines)
    return "\n".join([said, "", *scores, "", *pivoted(["task", "figure"], pairs), "", bold])


def spread(figure: dict) -> str:
    """`62.4 (56.2 to 68.2)`, starred where the model's training raises it."""
    value, low, high = (f"{figure[name]:.{places(figure)}f}" for name in ("value", "ci_low", "ci_high"))
    return f"{value}{'*' if figure['optimised'] else ''} ({low} to {high})"


def places(row: dict) -> int:
    """Decimals: one of percents, two of the rest."""
    return 1 if row["unit"] == "%" else 2


def between(text: str, mark: str, content: str) -> str:
    """The text with what stands between `<!-- mark -->` and `<!-- /mark -->` replaced."""
    before, rest = text.split(f"<!-- {mark} -->")
    _, after = rest.split(f"<!-- /{mark} -->")
    return f"{before}<!-- {mark} -->\n\n{content}\n\n<!-- /{mark} -->{after}"


def told(path: Path) -> dict:
    """What a committed file of results says."""
    return json.loads(path.read_text(encoding="utf-8"))


def pages() -> dict[Path, dict[str, str]]:
    """What stands between which marks of which page."""
    results = ROOT / "results"
    mlp = results / "hearing-mlp.json"
    files = sorted({*results.glob("*.json")} - {mlp}, key=lambda path: (path.stem != "quickstart", path.stem))
    benchmarks = results / "benchmarks"
    facts = [told(SHIPPED / name) for name in ("counts.json", "quality.json")]
    return {
        ROOT / "README.md": {
            "results": "\n\n".join(section(path.stem, told(path)) for path in files),
            "hearing": hearing(*facts, told(mlp) if mlp.is_file() else None),
        },
        ROOT / "docs" / "objectives.md": {
            "costs": costs(told(benchmarks / "updates.json")),
            "growth": growth(told(benchmarks / "updates_by_size.json")),
            "beside": beside(told(benchmarks / "beside_trl.json")),
        },
        ROOT / "docs" / "evaluation.md": {"smoke": smoke(told(benchmarks / "smoke.json"))},
    }


def main() -> None:
    """Rewrite the pages between the marks, or check that they are current."""
    for page, marks in pages().items():
        before = text = page.read_text(encoding="utf-8")
        for mark, content in marks.items():
            text = between(text, mark, content)
        if "--check" not in sys.argv:
            page.write_text(text, encoding="utf-8")
        elif text != before:
            sys.exit(f"{page.name} is not current: python dev/readme_table.py")


if __name__ == "__main__":
    main()
