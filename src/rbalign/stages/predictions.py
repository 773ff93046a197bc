"""`rba score PLACE FILE`: predictions made elsewhere become a run of one arm, with the same scorers and intervals.

RUNS/NAME/eval/NAME/open.jsonl, open.scores.jsonl   the answers as `rba eval` writes its own, and their scores
RUNS/NAME/results.json                              so that `rba compare RUN:base RUNS/NAME:NAME` works, too
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from rbalign import __version__
from rbalign.config.recipe import Recipe
from rbalign.config.sections import EvalConfig
from rbalign.data.dataset import MANIFEST, Dataset
from rbalign.errors import RunError, UsageError
from rbalign.eval.collect import collect, in_turn
from rbalign.eval.metrics import METRICS
from rbalign.eval.predictions import Kind, Predictions, read_predictions
from rbalign.eval.results import Evidence, Subject, build
from rbalign.eval.schedule import Spoken
from rbalign.eval.score import load_rows, score
from rbalign.rundir.files import sha256_file
from rbalign.rundir.run import RunDir, StageHandle
from rbalign.stages.chain import settings
from rbalign.stages.eval import held_out, text_scorers, write_results
from rbalign.stages.named import dataset_named

TASK = "open"


@dataclass(frozen=True)
class Outside:
    """Predictions, checked against the instructions that they belong to; nothing is written yet."""

    recipe: Recipe
    """Of the run that they become: what is asked, and how intervals are drawn."""
    file: Path
    dataset: Dataset
    asked: Spoken
    """Instructions with a clip and an independent reference."""
    left_out: int
    """Instructions that lack one of them."""
    predictions: Predictions

    @property
    def resamples(self) -> int:
        """Behind each interval."""
        return (self.recipe.eval or EvalConfig()).bootstrap

    def counted(self) -> list[str]:
        """What there is and what is missing, in words."""
        found, total = self.predictions, len(self.predictions.items)
        unit = "clips" if found.kind == "clip" else "instructions"
        lines = [f"{total - found.missing - found.failed} of {total} {unit} have a response"]
        if found.missing or found.failed:
            lines.append(f"{found.missing} missing, {found.failed} failed: both count with the lowest score")
        if found.ignored:
            lines.append(f"{found.ignored} responses belong to other instructions of the split: passed over")
        if self.left_out:
            lines.append(f"{self.left_out} instructions have no clip or no independent reference: left out")
        return lines


def read(
    place: str,
    file: Path,
    *,
    name: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    runs: Path = Path("runs"),
) -> Outside:
    """Check a file of predictions against a dataset folder or a run (its folder, or its recipe's name).

    `split` and `limit` default to the run's [eval], for a dataset to test and all. Loads no model, writes nothing.
    """
    dataset, seed, own = _asked(place, runs)
    changes = {key: value for key, value in (("split", split), ("limit", limit)) if value is not None}
    try:
        config = EvalConfig.model_validate({**own.model_dump(), "references": (), "qa": 0, **changes})
        recipe = Recipe(name=name or _name(file), seed=seed, eval=config)
    except ValidationError as error:
        wrong = error.errors()[0]
        given = f"--{'.'.join(map(str, wrong['loc']))} {wrong['input']!r}: {wrong['msg'].lower()}"
        raise UsageError(given, "a name has small letters, digits, dots and dashes; see `rba score --help`") from None
    spoken, mute = held_out(dataset, config.split, config.limit)
    usable = [example for example in spoken.examples if example.reference]
    if not usable:
        raise UsageError(
            f"no instruction of the {config.split} split of {dataset.folder} has an independent reference",
            "give a dataset that `rba synth` wrote with answers",
        )
    asked = replace(spoken, examples=usable)
    left_out = mute + len(spoken.examples) - len(usable)
    known: dict[str, Kind] = {example.id: "instruction" for example in dataset.examples(config.split)}
    known |= {view.id: "clip" for view in dataset.views(config.split)}
    return Outside(recipe, file, dataset, asked, left_out, read_predictions(file, asked, known))


def score_predictions(outside: Outside, runs: Path = Path("runs"), again: bool = False) -> RunDir:
    """Score what has no score yet and write results.json; the run. `again` drops what an earlier file left in it."""
    name = outside.recipe.name
    with RunDir.open(runs, outside.recipe) as run:
        if not (handle := _enter(outside, run, again)).done:
            answers, scores = (run.path("eval", name, f"{TASK}{kind}.jsonl") for kind in ("", ".scores"))
            collect(in_turn(outside.predictions), outside.predictions.items, answers, {}, batch_size=1000, label="read")
            notes = outside.counted()
            scorers, _ = text_scorers(notes, outside.asked.examples)
            scorers.pop("similarity-answer", None)  # y_ref is what others were trained on, and judges nobody
            score(
                answers,
                scores,
                {example.id: example for example in outside.asked.examples},
                scorers,
                floors={metric: one.floor for metric, one in METRICS.items()},
                label="score",
            )
            evidence = Evidence(
                [Subject(name)],
                {TASK: [example.id for example in outside.asked.examples]},
                {(name, None, TASK): load_rows([scores])},
                protocols={
                    TASK: f"made elsewhere: {outside.file.name}, one response for each {outside.predictions.kind}"
                },
            )
            results = build(evidence, resamples=outside.resamples, seed=outside.recipe.seed)
            handle.finish(write_results(run, results, notes))
        return run


def _enter(outside: Outside, run: RunDir, again: bool) -> StageHandle:
    """The stage `eval` of the run, keyed by the file, the dataset and how it is judged."""
    inputs = {
        "synth.dataset": outside.dataset.content_hash,
        "predictions": sha256_file(outside.file),
        "rbalign": __version__,
    }
    other = RunError(
        f"{run.folder} is another run, not scores of predictions", "choose another name for these: --name NAME"
    )
    entry = run.status["stages"].get("eval")
    if set(run.status["stages"]) - {"eval"} or (entry and "predictions" not in entry["inputs"]):
        raise other
    if again:
        run.reopen("eval")
        for path in run.path("eval").glob("*/*.jsonl"):
            path.unlink()
    try:
        return run.stage("eval", settings(outside.recipe, "eval"), inputs, repeat=again)
    except RunError as error:
        raise RunError(error.problem, "--again scores these instead; --name NAME keeps both") from None


def _asked(place: str, runs: Path) -> tuple[Dataset, int, EvalConfig]:
    """The dataset, the seed of its run, and what that run's [eval] asks of it."""
    named = dataset_named(place, runs)
    if named.recipe is None or (Path(place) / MANIFEST).is_file():
        return named.dataset, 0, EvalConfig()
    return named.dataset, named.recipe.seed, named.recipe.eval or EvalConfig()


def _name(file: Path) -> str:
    """A run's name made of the file's."""
    return re.sub(r"[^a-z0-9._-]+", "-", file.stem.lower()).strip("._-")[:64] or "predictions"
