"""kind = "s2tt" from recordings: transcripts are translated in an order drawn by key until every split is full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rbalign.config.recipe import Recipe
from rbalign.config.synth import SynthConfig
from rbalign.data.signatures import Signatures
from rbalign.errors import DataError
from rbalign.rundir.journal import Journal
from rbalign.rundir.progress import note, progress
from rbalign.stages.endpoints import Servers
from rbalign.synth.accept import Acceptance, quotas
from rbalign.synth.filters import instruction_cause
from rbalign.synth.parts import Draft
from rbalign.synth.recordings import Recordings, Said
from rbalign.synth.write import answer_texts
from rbalign.types import StopReason


def open_recordings(config: SynthConfig, seed: int) -> Recordings | None:
    """The recipe's source of recordings, if it has one."""
    if config.recordings is None:
        return None
    return Recordings(Path(config.recordings), config.s2tt.column, seed, config.s2tt.max_seconds)


class Translation:
    """Translates what is said, keeps it in data/drafts.jsonl, and judges it in order."""

    def __init__(self, recipe: Recipe, config: SynthConfig, journal: Journal, servers: Servers, opened: Any) -> None:
        """opened: gives the teacher when it is needed."""
        self._recipe, self._config, self._journal = recipe, config, journal
        self._servers, self._open = servers, opened
        self._known: dict[str, Draft] = {row["id"]: row for row in journal.rows()}

    def accept(self, source: Recordings, leakage: Sequence[Signatures]) -> list[Acceptance]:
        """What is accepted from each pool of the source; a split that stays short is told in one line.

        Raises DataError if nothing is.
        """
        made: list[Acceptance] = []
        seen = list(leakage)
        wanted = dict(quotas(self._config))
        for splits, pool in source.pools():
            sizes: dict[str, Any] = {split: wanted[split] if split in splits else 0 for split in wanted}
            acceptance = Acceptance(self._config.model_copy(update=sizes), seen)
            self._fill(acceptance, pool, source)
            seen.append(Signatures.build(example.instruction for example in acceptance.examples))
            made.append(acceptance)
        found = Counter(example.split for acceptance in made for example in acceptance.examples)
        if not found:
            causes = sum((acceptance.causes for acceptance in made), Counter[str]())
            raise DataError(
                f"no recording became an example; dropped: {dict(causes.most_common(3))}",
                "look at the transcripts, or loosen [synth.s2tt]",
            )
        if short := [f"{split} {found[split]:,} of {size:,}" for split, size in wanted.items() if found[split] < size]:
            note(f"the recordings do not fill every split: {', '.join(short)}")
        return made

    def _fill(self, acceptance: Acceptance, pool: Sequence[Said], source: Recordings) -> None:
        if acceptance.is_full():
            return
        with progress(min(acceptance.wanted, len(pool)), "translate", unit="accepted") as advance:
            for batch in _batches(pool, self._config.batch_size):
                problems = {said.id: source.problem(said) for said in batch}
                drafts = self._drafts([said for said in batch if problems[said.id] is None])
                for said in batch:
                    before = len(acceptance.examples)
                    if problem := problems[said.id]:
                        acceptance.drop(said.text, problem)
                    else:
                        acceptance.add(drafts[said.id])
                    advance(len(acceptance.examples) - before)
                    if acceptance.is_full():
                        return

    def _drafts(self, batch: Sequence[Said]) -> dict[str, Draft]:
        """Drafts by id; what no earlier start has translated is translated now."""
        todo = [said for said in batch if said.id not in self._known]
        if todo:
            self._servers.try_teacher()
            teacher = self._open(self._config.translator or self._recipe.teacher)
            rows = [{"id": said.id, "text": said.text, "stop": str(StopReason.END)} for said in todo]
            worth = [row for row in rows if instruction_cause(row["text"], StopReason.END, self._config) is None]
            answer_texts(teacher, self._config, self._recipe.seed, worth)
            self._journal.append(rows)
            self._servers.save()
            self._known.update((row["id"], row) for row in rows)
        return {said.id: self._known[said.id] for said in batch}


def _batches(pool: Sequence[Said], size: int) -> Iterator[Sequence[Said]]:
    return (pool[start : start + size] for start in range(0, len(pool), size))
