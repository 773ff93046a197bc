"""What `rba eval` has to do and how long that takes: the schedule itself, on stand-ins for data not made yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rbalign.config.recipe import Recipe
from rbalign.config.sections import EvalConfig
from rbalign.eval import qa
from rbalign.eval.results import SIDES
from rbalign.eval.schedule import Source, Spoken, Work, arm_work, reference_work
from rbalign.rundir.journal import count_lines
from rbalign.rundir.run import RunDir
from rbalign.stages.answering import arm_folders
from rbalign.stages.base import Plan, PlanRow
from rbalign.types import Example, Split, View, ViewSpec

SECONDS: dict[Source, float] = {
    "speech": 0.09,
    "wrong-audio": 0.09,
    "text": 0.08,
    "self-cascade": 0.09,
    "cascade": 0.9,
    "loss": 0.09,
    "text-loss": 0.05,
}
"""Wall seconds of one answer of about 30 tokens, by two processes on two cores, embedded models, encoder included."""
WHAT: dict[Source, str] = {
    "speech": "answers to speech",
    "wrong-audio": "answers to another item's audio",
    "text": "answers to text",
    "self-cascade": "answers to what the model heard",
    "cascade": "answers to what Whisper heard",
    "loss": "losses of y_ref on speech",
    "text-loss": "losses of y_ref on text",
}
SECONDS_PER_CLIP = 1.1
SECONDS_PER_SCORE = 0.08
"""Of an open answer: nearly all of it the teacher's likelihood. All else is scored in no time."""
BYTES_PER_ANSWER, BYTES_PER_SCORE, BYTES_PER_CLIP = 1_500, 400, 65_000


def plan_of(recipe: Recipe, config: EvalConfig, run: RunDir) -> Plan:
    """Answers and scores that no journal of the run holds yet. Estimates for two cores and the embedded models."""
    answers, scores = Counter[Source](), Counter[str]()
    for work in _planned(recipe, config):
        folder = run.path("eval", work.folder)
        answers[work.source] += max(0, len(work.items) - count_lines(folder / f"{work.task}.jsonl"))
        scored = count_lines(folder / f"{work.task}.scores.jsonl")
        scores["aside" if work.task in SIDES else work.kind] += max(0, len(work.items) - scored)
    clips = 0 if run.path("eval", "questions").is_dir() else config.qa * qa.VIEWS_PER_QUESTION
    rows = [PlanRow("speak questions", clips, clips * SECONDS_PER_CLIP, clips * BYTES_PER_CLIP)]
    for source, what in WHAT.items():
        count = answers[source]
        rows.append(PlanRow(what, count, count * SECONDS[source], count * BYTES_PER_ANSWER))
    rows.append(PlanRow("scores", scores.total(), scores["open"] * SECONDS_PER_SCORE, scores.total() * BYTES_PER_SCORE))
    return Plan(tuple(row for row in rows if row.count))


def _planned(recipe: Recipe, config: EvalConfig) -> Iterator[Work]:
    """Every journal that the evaluation will fill, with stand-ins for its instructions and questions."""
    synth = recipe.synth
    wanted = synth.size(config.split) if synth else 0
    each = sum(rule.per_example for rule in synth.views) if synth else 4
    instructions = _stand_ins(min(wanted, config.limit or wanted), each)
    questions = _stand_ins(config.qa, qa.VIEWS_PER_QUESTION)
    shared = (config.references, instructions, questions, config.consistency_samples, recipe.seed)
    yield from reference_work(*shared)
    for folder in arm_folders(recipe):
        yield from arm_work(folder, *shared)


def _stand_ins(count: int, views: int) -> Spoken:
    examples = [Example(str(number), Split.TEST, "", "") for number in range(count)]
    spec = ViewSpec("")
    return Spoken(
        examples, {one.id: [View(one.id, index, Split.TEST, spec, 0.0) for index in range(views)] for one in examples}
    )
