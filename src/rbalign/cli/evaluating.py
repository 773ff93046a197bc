"""`rba eval`: a recipe's stage, or, with --model, any model on benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rbalign.cli.pipeline import STAGES, DryRun, Fork, Runs, check_option, execute, recipe_verb, split_words
from rbalign.errors import UsageError

if TYPE_CHECKING:
    from rbalign.stages.evaluation import ModelEvaluation

PLAIN = ("seed", "limit", "split", "beside", "judge", "voice", "workers", "batch_size")
"""Options that are settings as they stand."""
FEW = 3
"""Instructions of each task in a page of one file."""
MODEL_PANEL = "Any model on benchmarks"
HELP = f"""{STAGES["eval"]} Or, with --model: any model on benchmarks.

rba eval RECIPE [--section.key VALUE]: a stage of a run, with its own held-out set, arms and references.

rba eval --model M --tasks T1,T2 --output DIR: no run is needed; M answers clips, and `rba score` rates it.

rba eval --suite rba-paper --output DIR: the paper's rows beside what DIR holds; with --model evaluated first.
"""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    recipe_verb(app, "eval", HELP)(evaluate)


def _option(*names: str, text: str, **more: Any) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(*names, help=text, rich_help_panel=MODEL_PANEL, **more)
    return option


Recipe = Annotated[
    str | None, typer.Argument(metavar="[RECIPE]", help="A packaged name (rba list recipes) or a .toml file.")
]
Model = Annotated[
    str | None,
    _option(
        "--model",
        metavar="M",
        text="embedded, a run, RUN:ARM, a model folder, OWNER/NAME of the hub, or a server's FILE.toml.",
    ),
]
Tasks = Annotated[str | None, _option("--tasks", metavar="T1,T2", text="Which benchmarks: `rba list tasks`.")]
Output = Annotated[Path | None, _option("--output", metavar="DIR", text="Answers and scores; there, it goes on.")]
Limit = Annotated[int | None, _option("--limit", min=1, text="Only the first N instructions of each task.")]
Data = Annotated[
    list[str] | None,
    _option("--data", metavar="TASK=FOLDER", text="A local copy with its clips, or hf:; for one task FOLDER alone."),
]
References = Annotated[
    str | None,
    _option(
        "--references", metavar="R1,R2", text="Also text, own-reading, teacher, cascade (Whisper first), self-cascade."
    ),
]
Teacher = Annotated[
    str | None,
    _option(
        "--teacher", metavar="T", text="An asset, a model folder or a server's FILE.toml; else whoever taught the run."
    ),
]
Baselines = Annotated[
    str | None,
    _option("--baselines", metavar="DIR1,DIR2", text="Other models' --output, which the page compares this one with."),
]
Samples = Annotated[int, _option("--samples", min=0, text="Instructions of each task on the page, with their clips.")]
Suite = Annotated[
    str | None,
    _option("--suite", metavar="NAME", text="rba-paper: the paper's rows beside the scores anywhere in --output."),
]
SingleFile = Annotated[
    bool, _option("--single-file", text="report/single.html, too: one file with a few samples and their clips.")
]
AnswersOnly = Annotated[
    bool, _option("--answers-only", text="Write predictions, leave scoring to `rba score --task`, anywhere.")
]
Judge = Annotated[str | None, _option("--judge", metavar="JUDGE.toml", text="As `rba score --judge`.")]
Voice = Annotated[
    str | None,
    _option(
        "--voice",
        metavar="VOICE",
        text="Speech to speech: it says each answer, Whisper base hears it, and that is scored, too.",
    ),
]
System = Annotated[str | None, _option("--system", text="System prompt of a server or a folder without its own.")]
Beside = Annotated[str, _option("--beside", text="An instruction written beside each clip, such as for translation.")]
SpokenPrompts = Annotated[
    str | None,
    _option(
        "--spoken-prompts",
        metavar="FOLDER",
        text="DOWIS, a local copy or hf:. Each clip is asked with its prompts, written and spoken, in every style.",
    ),
]
PromptTask = Annotated[str | None, _option("--prompt-task", metavar="TASK", text="Whose prompts, such as ST.")]
PromptLanguage = Annotated[str, _option("--prompt-language", text="Of the prompts.")]
Split = Annotated[str, _option("--split", text="Of dataset folders.")]
Temperature = Annotated[float, _option("--temperature", min=0.0, max=5.0, text="0 is greedy.")]
TopP = Annotated[float, _option("--top-p", min=0.001, max=1.0, text="Of sampling.")]
Tokens = Annotated[int, _option("--max-new-tokens", min=1, max=4096, text="Longer answers are cut.")]
Seed = Annotated[int, _option("--seed", text="Of sampling.")]
Batch = Annotated[int, _option("--batch-size", min=1, text="Clips answered at once; a crash loses no more.")]
Workers = Annotated[int, _option("--workers", min=0, text="Answering processes; 0: one a core, as memory allows.")]


def evaluate(
    ctx: typer.Context,
    recipe: Recipe = None,
    model: Model = None,
    tasks: Tasks = None,
    output: Output = None,
    limit: Limit = None,
    data: Data = None,
    references: References = None,
    teacher: Teacher = None,
    baselines: Baselines = None,
    judge: Judge = None,
    voice: Voice = None,
    system: System = None,
    beside: Beside = "",
    spoken_prompts: SpokenPrompts = None,
    prompt_task: PromptTask = None,
    prompt_language: PromptLanguage = "en",
    split: Split = "test",
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    max_new_tokens: Tokens = 128,
    seed: Seed = 0,
    batch_size: Batch = 8,
    workers: Workers = 0,
    samples: Samples = 12,
    single_file: SingleFile = False,
    answers_only: AnswersOnly = False,
    suite: Suite = None,
    runs: Runs = Path("runs"),
    fork: Fork = None,
    dry_run: DryRun = False,
) -> None:
    """Either the stage or the benchmarks; options of the other one are refused."""
    given = {
        _spelled(name)
        for name in ctx.params
        if name not in ("recipe", "dry_run")
        and (source := ctx.get_parameter_source(name)) is not None
        and source.name == "COMMANDLINE"
    }
    if model is not None:
        _refuse(given & {"--runs", "--fork"}, "beside --model", "name a run's folder: --model runs/NAME:ARM")
        _refuse_stray([*([] if recipe is None else [recipe]), *ctx.args], list(ctx.params))
        _benchmarks(ctx.params, dry_run)
    elif suite is not None:
        _refuse(given - {"--suite", "--output"}, f"beside --suite {suite}", "with --model it evaluates first")
        _refuse_stray([*([] if recipe is None else [recipe]), *ctx.args], list(ctx.params), "--suite")
        _compare_with(suite, output)
    else:
        _refuse(given - {"--runs", "--fork"}, "without --model", "a recipe says it in [eval]: --eval.limit 8")
        name, overrides = split_words([*([] if recipe is None else [recipe]), *ctx.args])
        execute(name, overrides, runs, fork, dry_run, "eval")


def _benchmarks(given: Mapping[str, Any], dry_run: bool) -> None:
    from rbalign.config.sections import ReportConfig, Sampling
    from rbalign.stages.evaluation import prepare
    from rbalign.stages.exams import Settings, Wanted
    from rbalign.stages.suite import suite_table

    if given["tasks"] is None or given["output"] is None:
        raise UsageError("--model needs --tasks and --output", "rba eval --model M --tasks T1,T2 --output DIR")
    if given["suite"] is not None:
        suite_table(given["suite"], None)  # an unknown name stops before any work
    tasks = _listed(given["tasks"])
    settings = Settings(
        Sampling(**{name: given[name] for name in ("temperature", "top_p", "max_new_tokens")}),
        references=_references(given["references"]),
        **{name: given[name] for name in PLAIN},
    )
    places = _places(given["data"] or [], tasks)
    wanted = Wanted(
        given["model"],
        tasks,
        places,
        given["output"],
        settings,
        given["system"],
        given["teacher"],
        _prompts(given["spoken_prompts"], given["prompt_task"], given["prompt_language"]),
        tuple(map(Path, _listed(given["baselines"] or ""))),
        ReportConfig(samples=given["samples"], single_file=FEW if given["single_file"] else 0),
        given["answers_only"],
    )
    evaluation = prepare(wanted)
    _plan(evaluation)
    if dry_run:
        return
    _show(evaluation.run(), evaluation)
    if given["suite"] is not None:
        _compare_with(given["suite"], evaluation.output)


def _refuse_stray(words: Sequence[str], params: Sequence[str], beside: str = "--model") -> None:
    for word in words:
        check_option(word, (*(_spelled(name) for name in params if name != "recipe"), "--help"))
    if words:
        raise UsageError(f"{words[0]} beside {beside}", "a recipe and its keys belong to `rba eval RECIPE`")


def _spelled(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse(given: set[str], where: str, cure: str) -> None:
    if given:
        raise UsageError(f"{', '.join(sorted(given))} {where}", cure)


def _listed(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())


def _references(given: str | None) -> Any:
    from rbalign.errors import unknown
    from rbalign.stages.exams import REFERENCES

    names = _listed(given or "")
    for name in names:
        if name not in REFERENCES:
            raise unknown("reference", name, REFERENCES)
    return names


def _prompts(place: str | None, task: str | None, language: str) -> Any:
    from rbalign.stages.exams import SpokenPrompts

    if (place is None) != (task is None):
        raise UsageError("--spoken-prompts and --prompt-task go together", "--spoken-prompts FOLDER --prompt-task ST")
    return None if place is None or task is None else SpokenPrompts(place, task, language)


def _places(given: Sequence[str], tasks: Sequence[str]) -> Mapping[str, str]:
    """TASK=FOLDER, or FOLDER alone where there is one task."""
    places: dict[str, str] = {}
    for word in given:
        name, sign, place = word.partition("=")
        if sign and name in tasks:
            places[name] = place
        elif len(tasks) == 1:
            places[tasks[0]] = word
        else:
            raise UsageError(f"--data {word}: for which of {', '.join(tasks)}?", "write --data TASK=FOLDER")
    return places


def _plan(evaluation: ModelEvaluation) -> None:
    from rbalign.cli import show

    columns = ("task", "who", "instructions", "items", "answered", "without a clip", "to do")
    title = f"{evaluation.subject.name}: {evaluation.subject.what}"
    show.table(title, columns, evaluation.counted(), right=columns[2:])


def _show(summary: Mapping[str, Any], evaluation: ModelEvaluation) -> None:
    from rbalign.cli import show
    from rbalign.eval.tasks.scored import number, remark

    show.table(
        "scores (95 % intervals over instructions)",
        ("task", "who", "metric", "part", "value", "n", "note"),
        [
            [one["task"], one["model"], one["metric"], one["part"], number(one), str(one["n"]), remark(one)]
            for one in summary["figures"]
        ],
        right=("n",),
    )
    rated = {one["task"] for one in summary["figures"]}
    for name in (exam.task.name for exam in evaluation.exams if exam.task.name not in rated):
        typer.echo(
            f"{name}: answered, not scored; `rba score --task` does, a comparison with --references text and --judge"
        )
    page = evaluation.output / "report" / "index.html"
    if page.is_file():
        typer.echo(f"{page}  (the page: opens by double click)")
    typer.echo(f"{evaluation.output}  (answers, scores and protocols by task; rba compare sets two .json side by side)")


def _compare_with(suite: str, output: Path | None) -> None:
    from rbalign.cli import show
    from rbalign.stages.suite import suite_table

    show.suite(suite_table(suite, output, strict=False))
