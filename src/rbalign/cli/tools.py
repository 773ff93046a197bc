"""`rba ask`, `export`, `export-data`, `inspect`, `card`, `compare`: use a model, look at a dataset or two runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rbalign.errors import UsageError

if TYPE_CHECKING:
    from rbalign.eval.paired import Flip

ASK_PANEL, LOOK_PANEL = "Use a model", "Look around"


def register(app: typer.Typer) -> None:
    """Add the verbs of this module."""
    app.command(rich_help_panel=ASK_PANEL)(ask)
    app.command(rich_help_panel=ASK_PANEL)(export)
    app.command("export-data", rich_help_panel=ASK_PANEL)(export_data)
    app.command(rich_help_panel=LOOK_PANEL)(inspect)
    app.command(rich_help_panel=LOOK_PANEL)(card)
    app.command(rich_help_panel=LOOK_PANEL)(compare)


def ask(
    clip: Annotated[Path | None, typer.Argument(metavar="CLIP.wav", help="Speech in any common format.")] = None,
    text: Annotated[str | None, typer.Option("--text", help="Ask in writing; beside a clip: its true words.")] = None,
    beside: Annotated[str, typer.Option("--beside", help="An instruction written beside the clip.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, nothing else.")] = False,
    run: Annotated[Path | None, typer.Option("--run", metavar="RUN", help="A run whose arm answers.")] = None,
    arm: Annotated[str | None, typer.Option("--arm", help="Which arm of that run, for example sft-s0.")] = None,
) -> None:
    """Ask a speech LLM: what it heard, its answer, and the answer to the same words as text."""
    if clip is None and text is None:
        raise UsageError("nothing to ask", 'give CLIP.wav, or --text "..."')
    if clip is not None and not clip.is_file():
        raise UsageError(f"no file {clip}", "give the path of a sound file")
    if arm is not None and run is None:
        raise UsageError(f"--arm {arm} without a run", "add --run RUN")
    if run is not None and not (run / "status.json").is_file():
        raise UsageError(f"{run} is no run", "give a folder such as runs/quickstart")
    from rbalign.stages.ask import ask as answer_to

    if as_json:
        typer.echo(json.dumps(answer_to(clip, text, None, run, arm, beside), ensure_ascii=False))
        return
    typer.echo("answer: ", nl=False)
    found = answer_to(clip, text, lambda piece: typer.echo(piece, nl=False), run, arm, beside)
    typer.echo("")
    for field in ("heard", "text_answer"):
        if found[field] is not None:
            typer.echo(f"{field.replace('_', ' ')}: {found[field]}")
    typer.echo(f"seconds: {found['seconds']:.1f}")


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or a recipe whose run is in --runs.")],
    arm: Annotated[str, typer.Argument(metavar="ARM", help="A trained arm, sft or sft-s0; or base.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs live.")] = Path("runs"),
) -> None:
    """One arm as a transformers folder: LoRA merged, safetensors, processor, tokenizer, model card."""
    from rbalign.cli.show import size
    from rbalign.stages.export import export as write
    from rbalign.stages.named import run_named

    folder = write(run_named(run, runs), arm, out)
    typer.echo(f"{folder}  ({size(sum(path.stat().st_size for path in folder.iterdir()))}; how to load it: README.md)")


def export_data(
    place: Annotated[
        str, typer.Argument(metavar="DATASET|RUN", help="A dataset folder, a run folder, or a recipe with a run.")
    ],
    form: Annotated[str, typer.Argument(metavar="FORMAT", help="audiofolder, ms-swift or verl.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    system: Annotated[
        str | None,
        typer.Option(
            "--system", help='System prompt of ms-swift and verl rows; default: the teacher\'s own, "": none.'
        ),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs live.")] = Path("runs"),
) -> None:
    """A dataset as another trainer reads it: clips as files, rows in its format, a dataset card."""
    from rbalign.data.export import left_out
    from rbalign.stages.export_data import export_data as write

    made = write(place, form, out, system, runs)
    splits = ", ".join(f"{count:,} {split}" for split, count in made.clips.items())
    typer.echo(f"{made.folder}  ({splits} clips; how to load it: README.md)")
    if made.left_out:
        typer.echo(f"left out: {left_out(made)}")


def card(
    place: Annotated[
        str, typer.Argument(metavar="DATASET|RUN", help="A dataset folder, a run folder, or a recipe with a run.")
    ],
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it there, not to stdout.")] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs live.")] = Path("runs"),
) -> None:
    """A dataset's README.md: licences, teacher, voices, filters and drops, counts, how to make it again."""
    from rbalign.rundir.files import atomic_write
    from rbalign.stages.card import dataset_card
    from rbalign.stages.named import dataset_named

    text = dataset_card(dataset_named(place, runs))
    if out is None:
        typer.echo(text, nl=False)
    elif out.exists():
        raise UsageError(f"{out} is already there", "give another --out, or remove it")
    else:
        atomic_write(out, text)
        typer.echo(str(out))


def inspect(
    place: Annotated[Path, typer.Argument(metavar="DATASET|RUN", help="A dataset folder or a run folder.")],
    rows: Annotated[int, typer.Option("--rows", min=0, max=1000, help="How many examples to show.")] = 5,
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="DIR", help="Write a page instead: --rows examples, drawn, with their clips."),
    ] = None,
) -> None:
    """What is in a dataset or a run: counts, voices, what was dropped and why, a few examples."""
    from rbalign.cli.show import size, table
    from rbalign.stages.inspect import look_at

    if page is not None:
        from rbalign.stages.inspect_page import write_page
        from rbalign.stages.named import dataset_named

        typer.echo(f"{write_page(dataset_named(str(place)), page, rows)}  (opens by double click)")
        return
    found = look_at(place, rows)
    for line in found.lines:
        typer.echo(line)
    if found.stages:
        table("stages", ("stage", "state", "since"), found.stages)
    if found.splits:
        columns = ("split", "instructions", "views", "hours", "distinct voices")
        table(f"dataset, {size(found.bytes)}", columns, found.splits, right=columns[1:])
    if found.labels:
        columns = ("label", "value", "how many", "share", "paper")
        table("labels beside the paper's shares", columns, found.labels, right=columns[2:])
    if found.drops:
        table("dropped", ("cause", "how many", "for example"), found.drops, right=("how many",))
    if found.examples:
        table("examples", ("id", "split", "instruction", "answer"), found.examples)


def compare(
    a: Annotated[
        Path, typer.Argument(metavar="A", help="A run with results, an arm RUN:ARM, or a file of `rba score --task`.")
    ],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    everything: Annotated[bool, typer.Option("--all", help="Also single voices, gaps and parts; all flips.")] = False,
) -> None:
    """Two runs or two scored files side by side: what differs, by instruction, and the samples that flipped."""
    from rbalign.cli.show import interval, is_plain, paired, table
    from rbalign.stages.compare import compare as compare_runs

    if a.is_file() and b.is_file():
        _compare_scored(a, b, None if everything else FLIPS)
        return
    found = compare_runs(a, b)
    table("recipes", ("key", str(a), str(b)), [[key, str(old), str(new)] for key, old, new in found.settings])
    typer.echo(found.note)
    rows = [pair for pair in found.pairs if everything or is_plain(pair.a["metric"])]
    table(
        "results, with the interval of each run",
        ("arm", "task", "metric", str(a), str(b), "difference"),
        [
            [str(pair.a[key]) for key in ("arm", "task", "metric")]
            + [interval(pair.a), interval(pair.b), "-" if pair.difference is None else f"{pair.difference:+.3f}"]
            for pair in rows
        ],
    )
    table(
        "by instruction: second minus first",
        ("arm", "task", "metric", "difference", "95 % interval", "up / down / same", "sign test p", "effect"),
        [paired(row) for row in found.paired if row["difference"] is not None],
    )
    if found.flips:
        _flips(found.flips, None if everything else FLIPS)


FLIPS = 10
"""Flipped samples that are shown without --all."""


def _compare_scored(a: Path, b: Path, most: int | None) -> None:
    from rbalign.cli.show import table
    from rbalign.stages.compare import compare_files

    found = compare_files(a, b)
    for line in found.notes:
        typer.echo(line)
    table(
        f"{found.task}, by instruction: second minus first",
        ("metric", "part", "difference", "95 % interval", "p", "up / down / same", "sign test p", "effect", "n"),
        found.lines,
        right=("n",),
    )
    _flips(found.flips, most)


def _flips(flips: Sequence[Flip], most: int | None) -> None:
    from rbalign.cli.show import table

    shown = flips[:most]
    table(
        f"samples that flipped: {len(shown)} of {len(flips)}, greatest change first",
        ("id", "metric", "first", "second", "first's response", "second's response"),
        [[f.id, f.metric, f"{f.before:g}", f"{f.after:g}", *map(_excerpt, f.responses)] for f in shown],
    )


def _excerpt(text: str | None) -> str:
    """The start of a response in one line."""
    line = "(none)" if text is None else " ".join(text.split())
    return line if len(line) <= 60 else line[:57] + "..."
