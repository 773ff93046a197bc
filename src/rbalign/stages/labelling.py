"""Topic and difficulty for a dataset: data/labels.jsonl keeps what the tagger said, so that nothing is asked twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rbalign.config.recipe import Recipe
from rbalign.errors import DataError
from rbalign.rundir.journal import Journal
from rbalign.rundir.progress import note, progress
from rbalign.stages.endpoints import Servers, tagger_config
from rbalign.synth.labels import Labels, Tagger, label_counts, label_key, tagger_of
from rbalign.synth.topics import OpenDrafts, TopicSplit
from rbalign.types import Example

BATCH = 32
"""Instructions labelled between two writes."""


class Labelling:
    """Labels by id, asked of the recipe's tagger where the journal has none. Opens the tagger when it is needed."""

    def __init__(self, recipe: Recipe, journal: Journal, servers: Servers, open_teacher: Callable[..., Any]) -> None:
        self._recipe, self._journal, self._servers, self._open = recipe, journal, servers, open_teacher
        self._known: dict[str, Labels] = {
            row["id"]: {key: value for key, value in row.items() if key != "id"} for row in journal.rows()
        }
        self._tagger: Tagger | None = None

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[Labels]:
        """(id, text) of several -> their labels."""
        new = [(identity, text) for identity, text in pairs if identity not in self._known]
        if new:
            keys = [label_key(self._recipe.seed, identity) for identity, _ in new]
            found = self._ask()([text for _, text in new], keys)
            rows = [{"id": identity, **labels} for (identity, _), labels in zip(new, found, strict=True)]
            self._journal.append(rows)
            self._known.update((identity, labels) for (identity, _), labels in zip(new, found, strict=True))
            self._servers.save()
        return [self._known[identity] for identity, _ in pairs]

    def labelled(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with their labels."""
        made: list[Example] = []
        with progress(len(examples), "label instructions") as advance:
            for start in range(0, len(examples), BATCH):
                batch = examples[start : start + BATCH]
                labels = self([(example.id, example.instruction) for example in batch])
                made += [
                    replace(example, labels={**example.labels, **own})
                    for example, own in zip(batch, labels, strict=True)
                ]
                advance(len(batch))
        return made

    def _ask(self) -> Tagger:
        if self._tagger is None:
            config = tagger_config(self._recipe)
            self._servers.try_tagger()
            self._tagger = tagger_of(config, self._open(config))
        return self._tagger


@contextmanager
def labelling(
    recipe: Recipe, folder: Path, servers: Servers, open_teacher: Callable[..., Any]
) -> Iterator[Labelling | None]:
    """The labels of a run, None where the recipe wants none."""
    if recipe.synth is None or recipe.synth.labels is None:
        yield None
        return
    with Journal(folder / "labels.jsonl") as journal:
        yield Labelling(recipe, journal, servers, open_teacher)


def filled(split: TopicSplit, open_drafts: OpenDrafts, label: Labelling) -> TopicSplit:
    """The test split by topic, filled as far as its budget goes; what is short is told in one line.

    Raises DataError if no topic has an instruction.
    """
    split.fill(open_drafts, label)
    if not split.acceptance.examples:
        raise DataError(
            f"no candidate of {split.acceptance.seen:,} is a test instruction of any topic; dropped: "
            f"{dict(split.acceptance.causes.most_common(3))}",
            "loosen [synth.filters], raise [synth.labels] budget, or take another tagger",
        )
    if short := split.shortage():
        note(short)
    return split


def label_summary(recipe: Recipe, examples: Iterable[Example]) -> dict[str, Any]:
    """For the manifest: who labelled, and how the labels are distributed."""
    return {"tagger": tagger_config(recipe).author, **label_counts(example.labels for example in examples)}
