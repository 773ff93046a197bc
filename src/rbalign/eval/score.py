"""Scores for answers that stand in a journal: generating and scoring are apart, so answers can be scored again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rbalign.rundir.journal import Journal, read_rows
from rbalign.rundir.progress import progress
from rbalign.scorers import Scorer
from rbalign.scorers.base import example_columns
from rbalign.scorers.form import echoed
from rbalign.types import Example

BATCH = 64

TokenScores = Callable[[Sequence[str], Sequence[Sequence[int]]], list[list[float] | None]]
"""(instructions, token ids of answers) -> the teacher's log-prob of every token; None where there is no token."""


def score(
    answers: Path,
    scores: Path,
    examples: Mapping[str, Example],
    scorers: Mapping[str, Scorer],
    *,
    teacher_logprobs: TokenScores | None = None,
    floors: Mapping[str, float | None],
    label: str,
) -> None:
    """Score every answer that `scores` lacks. `scorers` maps metric names to scorers.

    An answer that failed gets each metric's floor (None where there is none): it is never left out.
    """
    with Journal(scores) as journal:
        # Answers to one instruction stand together: whoever reads it reads it once for all.
        todo = sorted((row for row in read_rows(answers) if row["id"] not in journal), key=lambda row: row["example"])
        with progress(len(journal) + len(todo), label, done=len(journal), unit="scores") as advance:
            for start in range(0, len(todo), BATCH):
                batch = todo[start : start + BATCH]
                columns = _columns(batch, examples, scorers, teacher_logprobs)
                values = {
                    name: scorer([row["prompt"] for row in batch], columns["text"], columns["ids"], **columns)
                    for name, scorer in scorers.items()
                }
                journal.append(
                    _row(row, {name: values[name][i] for name in values}, examples[row["example"]], floors)
                    for i, row in enumerate(batch)
                )
                advance(len(batch))


def _columns(
    batch: Sequence[Mapping[str, Any]],
    examples: Mapping[str, Example],
    scorers: Mapping[str, Scorer],
    teacher_logprobs: TokenScores | None,
) -> dict[str, list[Any]]:
    """The columns that scorers may ask for; what only a model can give is computed when one of them needs it."""
    own = [examples[row["example"]] for row in batch]
    columns: dict[str, list[Any]] = {
        "text": [row["answer"] for row in batch],
        "ids": [row["ids"] for row in batch],
        **example_columns(own),
    }
    if teacher_logprobs is not None and any("teacher_logprobs" in scorer.needs for scorer in scorers.values()):
        columns["teacher_logprobs"] = list(teacher_logprobs([example.instruction for example in own], columns["ids"]))
    return columns


def _row(
    answer: Mapping[str, Any],
    values: dict[str, float | None],
    example: Example,
    floors: Mapping[str, float | None],
) -> dict[str, Any]:
    failed = answer["stop"] == "error"
    if failed:
        values = {name: floors.get(name) for name in values}
    values |= dict(answer["values"]) | {"failed": float(failed)}
    if answer["stop"] in ("end", "length"):
        tokens = len(answer["ids"])
        values |= {"tokens": float(tokens), "truncated": float(answer["stop"] == "length")}
        values["surprisal"] = -answer["logprob"] / tokens if tokens else None
        values["echo"] = echoed(example.instruction, answer["answer"])
    return {
        **{key: answer[key] for key in ("id", "example", "view", "sample", "voice")},
        "scores": {name: None if value is None else round(value, 6) for name, value in values.items()},
        "wer": None if answer["heard"] is None else word_errors(example.spoken, answer["heard"]),
    }


def word_errors(spoken: str, heard: str) -> list[int]:
    """[errors, words] after the same normalisation on both sides; corpus WER is the ratio of their sums."""
    import jiwer

    from rbalign.text.normalise import for_wer

    wanted, got = for_wer(spoken), for_wer(heard)
    if not wanted:
        return [len(got.split()), 0]
    counted = jiwer.process_words(wanted, got)
    return [counted.substitutions + counted.deletions + counted.insertions, len(wanted.split())]


def load_rows(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The rows of journals that exist, one list."""
    return [row for path in paths if path.is_file() for row in read_rows(path)]
