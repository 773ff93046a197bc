"""Write the results tables of README.md from results/*.json: no number there is typed by hand.

python dev/readme_table.py            # rewrite
python dev/readme_table.py --check    # exit 1 if README.md is not what it would write
"""

import json
import sys
from pathlib import Path

from rbalign.report.pivot import Results
from rbalign.report.tables import main_table, verdict

ROOT = Path(__file__).parent.parent
START, END = "<!-- results -->", "<!-- /results -->"


def cell(value: dict, headline: bool) -> str:
    """`0.228 (0.158 to 0.295)`, starred where the arm's loss optimises the metric."""
    interval = f" ({value['interval']})" if headline and value["interval"] else ""
    return f"{value['value']}{'*' if value['optimised'] else ''}{interval}"


def section(name: str, results: dict) -> str:
    """One run's table in Markdown, and what it says in words."""
    asked = Results(results)
    made = main_table(asked)
    columns = made["columns"]
    lines = ["| arm | " + " | ".join(column["label"] for column in columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for line in made["lines"]:
        cells = [cell(value, column["headline"]) for value, column in zip(line["cells"], columns, strict=True)]
        lines.append(f"| {line['arm']} | " + " | ".join(cells) + " |")
    note = f"`rba run {name}` (results/{name}.json). 95 % intervals over instructions; * = the arm's loss optimises it."
    said = [f"- {line['text']}" for line in verdict(asked)]
    return "\n".join([note, "", *lines, "", *said])


def main() -> None:
    """Rewrite README.md between the marks, or check that it is current."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    files = sorted((ROOT / "results").glob("*.json"), key=lambda path: path.stem != "quickstart")
    tables = [section(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in files]
    wanted = before + START + "\n\n" + "\n\n".join(tables) + ("\n\n" if tables else "") + END + after
    if "--check" in sys.argv:
        sys.exit(wanted != text and "README.md is not current: python dev/readme_table.py")
    readme.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
