"""`rba eval`: arms beside references on held-out instructions, voices and questions.

eval/questions/                spoken questions, a dataset like any other
eval/SUBJECT/TASK.jsonl        answers (append-only)
eval/SUBJECT/TASK.scores.jsonl scores of them
results.json                   rows and comparisons
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rbalign.config.recipe import Recipe
from rbalign.config.sections import EvalConfig
from rbalign.data.dataset import Dataset
from rbalign.data.signatures import Signatures
from rbalign.errors import AssetError, UsageError
from rbalign.eval import metrics, qa
from rbalign.eval.collect import collect
from rbalign.eval.items import by_example, limit_examples
from rbalign.eval.results import SIDES, Evidence, Subject, build
from rbalign.eval.schedule import Spoken, Work, arm_work, reference_work
from rbalign.eval.score import load_rows, score
from rbalign.rundir.files import atomic_write, sha256_file
from rbalign.rundir.run import RunDir
from rbalign.rundir.workers import workers_that_fit
from rbalign.scorers import Scorer
from rbalign.scorers import build as build_scorer
from rbalign.scorers.qa import PROTOCOL
from rbalign.scorers.similarity import Embedder, build_embedder
from rbalign.stages.answering import WORKER_BYTES, Answering, answering, arm_folders, decoding, subject_and_seed
from rbalign.stages.arms import cost
from rbalign.stages.base import Plan
from rbalign.stages.eval_plan import plan_of
from rbalign.stages.policy import hearing_hash, known_texts, model_bytes
from rbalign.types import Example, Split

SHARD = 64
"""Questions' clips in a shard: a minute of speaking to lose in a crash."""


def plan(recipe: Recipe, run: RunDir) -> Plan:
    """Answers and scores that are not there yet."""
    return plan_of(recipe, _config(recipe), run)


def run(recipe: Recipe, run: RunDir) -> Mapping[str, str]:
    """Answer, score and tabulate, going on where an earlier start stopped. `predict` and `score` do half of it each."""
    evaluation = Evaluation.open(recipe, run)
    evaluation.answer()
    return evaluation.conclude()


def inputs(recipe: Recipe) -> Mapping[str, str]:
    """The connector, where no earlier stage names it."""
    return {} if recipe.align or recipe.connect else hearing_hash(recipe)


def write_results(run: RunDir, results: Mapping[str, Any], notes: Sequence[str]) -> Mapping[str, str]:
    """results.json, and its hash as the stage's output."""
    path, whole = run.path("results.json"), {**results, "notes": list(notes)}
    atomic_write(path, json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return {"results.json": sha256_file(path)}


class Evaluation:
    """One run of the stage: who takes part, what they do, and where it is kept."""

    def __init__(self, recipe: Recipe, run: RunDir, instructions: Spoken, questions: Spoken) -> None:
        self.recipe, self.run, self.config = recipe, run, _config(recipe)
        self.instructions, self.questions = instructions, questions
        shared = (self.config.references, instructions, questions, self.config.consistency_samples, recipe.seed)
        self.references = reference_work(*shared)
        self.arms = {folder: arm_work(folder, *shared) for folder in arm_folders(recipe)}
        self.notes: list[str] = []
        self.answering = Answering(recipe, run, self.config, (instructions, questions))
        self._embedders: dict[str, Embedder] = {}

    @classmethod
    def open(cls, recipe: Recipe, run: RunDir, speak: bool = True) -> Evaluation:
        """The evaluation of a run's dataset; questions that no voice has said yet are spoken now if `speak`."""
        config = _config(recipe)
        instructions, left_out = held_out(Dataset.open(run.path("data")), config.split, config.limit)
        heard = known_texts(recipe, run)
        instructions, known = _unheard(instructions, heard)
        questions, known_questions = _unheard(_questions(recipe, run, speak), heard)
        evaluation = cls(recipe, run, instructions, questions)
        for count, what in (
            (left_out, "instructions of the split have no clip that any voice could make"),
            (known, "instructions are too like what the connector was trained on"),
            (known_questions, "questions are too like what the connector was trained on"),
        ):
            if count:
                evaluation.notes.append(f"{count} {what}: left out")
        return evaluation

    def conclude(self) -> Mapping[str, str]:
        """Score what has no score yet and write results.json."""
        self.score()
        results = build(self.evidence(), resamples=self.config.bootstrap, seed=self.recipe.seed)
        align = self.recipe.align
        results["training"] = [cost(self.run, arm, seed) for arm in align.arms for seed in align.seeds] if align else []
        return write_results(self.run, results, self.notes)

    def everything(self) -> list[Work]:
        """Every journal of this run."""
        return [*self.references, *(work for own in self.arms.values() for work in own)]

    # Answers

    def answer(self) -> None:
        """Base and references first, on the untouched model; then each arm's weights, loaded once."""
        align = self.recipe.align
        workers = workers_that_fit(self.config.workers, WORKER_BYTES + model_bytes(align.model if align else None))
        reopen = partial(_reopen, self.recipe, self.run.folder, self.run.recipe)
        with answering(lambda: self.answering, reopen, workers) as answered_by:
            for number, work in enumerate(self.everything()):
                if self._missing(work):
                    collect(
                        answered_by(number, work),
                        work.items,
                        self._path(work),
                        decoding(self.config, work),
                        batch_size=self.config.batch_size,
                        label=f"{work.folder} {work.task}",
                        workers=workers,
                    )

    # Scores

    def score(self) -> None:
        """Score every answer that has none yet."""
        floors = {name: metric.floor for name, metric in metrics.METRICS.items()}
        scorers = {"open": self._open_scorers(), "qa": {"qa": build_scorer("qa")}, "nll": {}}
        # The dearest score: own reading and wrong audio are told by what texts say alone.
        aside = {name: one for name, one in scorers["open"].items() if "teacher_logprobs" not in one.needs}
        for work in self.everything():
            examples = self.questions.examples if work.kind == "qa" else self.instructions.examples
            if len(load_rows([self._path(work, ".scores")])) < len(work.items):
                score(
                    self._path(work),
                    self._path(work, ".scores"),
                    {example.id: example for example in examples},
                    aside if work.task in SIDES and work.kind == "open" else scorers[work.kind],
                    teacher_logprobs=self._teacher_logprobs,
                    floors=floors,
                    label=f"score {work.folder} {work.task}",
                )

    def _open_scorers(self) -> dict[str, Scorer]:
        scorers, self._embedders = text_scorers(self.notes, self.instructions.examples)
        return {**scorers, "teacher-likelihood": build_scorer("teacher-likelihood")}

    def _teacher_logprobs(self, instructions: Sequence[str], ids: Sequence[Sequence[int]]) -> list[list[float] | None]:
        from rbalign.eval.answerers import teacher_scores

        return teacher_scores(self.answering.policy)(instructions, ids)

    # Evidence

    def evidence(self) -> Evidence:
        """All rows, by subject, seed and task."""
        named = {work.folder: subject_and_seed(work.folder, self.recipe) for work in self.everything()}
        scores, answers = {}, {}
        for work in self.everything():
            key = (*named[work.folder], work.task)
            scores[key] = load_rows([self._path(work, ".scores")])
            if work.task == "open":
                answers[key] = load_rows([self._path(work)])
        tasks: dict[str, list[str]] = {}
        for work in self.everything():
            spoken = self.questions if work.kind == "qa" else self.instructions
            tasks[work.task] = [example.id for example in spoken.examples]
        return Evidence(
            self._subjects(),
            tasks,
            scores,
            answers,
            {name: embedder.embed for name, embedder in self._embedders.items()},
            {task: self._protocol(task) for task in tasks},
        )

    def _subjects(self) -> list[Subject]:
        align = self.recipe.align
        trained = [
            Subject(
                arm,
                align.seeds,
                metrics.optimised_by(align.mixture(arm), align.scorer),
            )
            for arm in (align.arms if align else ())
            if align
        ]
        present = {work.folder for work in self.references}
        shown = [Subject(name) for name in ("text", "cascade", "self-cascade") if name in present]
        return [Subject("base"), *trained, *shown]

    def _protocol(self, task: str) -> str:
        tokens = self.config.sampling.max_new_tokens
        if task.startswith("qa"):
            return f"greedy, at most {tokens} tokens; {PROTOCOL}; {qa.VIEWS_PER_QUESTION} voices a question"
        if task.startswith("nll"):
            return "y_ref teacher-forced, end token included, mean a token"
        chosen = self.config.sampling
        return (
            f"temperature {chosen.temperature:g}, top-p {chosen.top_p:g}, at most {tokens} tokens, "
            f"one fixed key per item; split {self.config.split}"
        )

    def left(self, kind: str = "") -> int:
        """Answers (or, of kind ".scores", scores) that are not written yet."""
        return sum(max(0, len(work.items) - len(load_rows([self._path(work, kind)]))) for work in self.everything())

    def _missing(self, work: Work) -> bool:
        return len(load_rows([self._path(work)])) < len(work.items)

    def _path(self, work: Work, kind: str = "") -> Path:
        return self.run.path("eval", work.folder, f"{work.task}{kind}.jsonl")


def text_scorers(notes: list[str], examples: Sequence[Example]) -> tuple[dict[str, Scorer], dict[str, Embedder]]:
    """What needs an answer's text and nothing else: chrF, a cosine by each embedder that can be had, and right or wrong
    where examples have accepted answers (kind = "qa")."""
    embedders = {name: made for name in metrics.EMBEDDERS.values() if (made := _embedder(name, notes))}
    scorers = {"chrf": build_scorer("chrf", against="reference")}
    if any(example.labels.get("aliases") for example in examples):
        scorers["qa"] = build_scorer("qa")
    for metric, name in metrics.EMBEDDERS.items():
        if name in embedders:
            scorers[metric] = build_scorer("similarity", against="reference", embedder=embedders[name])
            if metric == "similarity":
                scorers["similarity-answer"] = build_scorer("similarity", against="answer", embedder=embedders[name])
    return scorers, embedders


def _embedder(name: str, notes: list[str]) -> Embedder | None:
    """None, with a note in the results, where the second embedder cannot be had; MiniLM is no option."""
    try:
        return build_embedder(name)
    except (AssetError, UsageError) as error:
        if name == "minilm":
            raise
        notes.append(f"embedder {name} left out: {error.problem}")
        return None


def _reopen(recipe: Recipe, folder: Path, named: Recipe) -> tuple[Answering, Sequence[Work]]:
    """In a worker: the evaluation that the parent has open, for reading."""
    evaluation = Evaluation.open(recipe, RunDir.look(folder.parent, named), speak=False)
    return evaluation.answering, evaluation.everything()


def _config(recipe: Recipe) -> EvalConfig:
    if recipe.eval is None:
        raise UsageError(f"recipe {recipe.name} has no [eval] section", "add one, or choose another recipe")
    return recipe.eval


def held_out(dataset: Dataset, split: str, limit: int | None) -> tuple[Spoken, int]:
    """The instructions of a split that have clips, and how many have none."""
    views = by_example(dataset.views(split))
    chosen = limit_examples(dataset.examples(split), limit)
    spoken = [example for example in chosen if views.get(example.id)]
    if not spoken:
        raise UsageError(f"the {split} split has no instruction with a clip", f"set [synth] {split} above 0")
    return Spoken(spoken, views), len(chosen) - len(spoken)


def _unheard(spoken: Spoken, heard: Signatures) -> tuple[Spoken, int]:
    """Without the texts that the connector has heard in training, and how many those were.

    Raises UsageError if it has heard them all.
    """
    near = set(heard.near_duplicates(example.spoken for example in spoken.examples))
    kept = [example for place, example in enumerate(spoken.examples) if place not in near]
    if spoken.examples and not kept:
        raise UsageError(
            f"the connector was trained on texts like each of the {len(near)} to be answered: they would show no gap",
            "evaluate on others, or name another connector in [align] connector",
        )
    return Spoken(kept, spoken.views), len(near)


def _questions(recipe: Recipe, run: RunDir, speak: bool) -> Spoken:
    """Questions with their clips, spoken now if they are not yet and `speak`; empty if the recipe asks for none."""
    config, folder = _config(recipe), run.path("eval", "questions")
    if not config.qa:
        return Spoken([], {})
    examples = qa.questions(config.qa)
    if speak:
        _speak(examples, recipe.seed, folder)
    views = by_example(Dataset.open(folder).views(Split.TEST))
    return Spoken([example for example in examples if views.get(example.id)], views)


def _speak(examples: Sequence[Example], seed: int, folder: Path) -> None:
    from rbalign.stages.speaking import speak_shards
    from rbalign.voices.bank import load_bank

    planned = qa.plan_views(examples, load_bank().names(Split.TEST, "kokoro"), seed)
    shards = {number: planned[start : start + SHARD] for number, start in enumerate(range(0, len(planned), SHARD))}
    speak_shards(folder, {"kind": "questions", "seed": seed}, examples, shards, "speak questions")
