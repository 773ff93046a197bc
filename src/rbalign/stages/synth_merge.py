"""`rba synth RECIPE --merge`: first what all shards wrote becomes texts, then what they spoke becomes the dataset.

Memory grows with the texts that are kept, not with the candidates: see docs/datasets.md for the measure. Killed
anywhere and started again it ends the same: merged texts are written aside and renamed as a folder, the dataset is
complete when its manifest is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from rbalign.config.recipe import Recipe
from rbalign.data.dataset import Dataset, DatasetWriter
from rbalign.data.examples import EXAMPLES_PER_FILE
from rbalign.errors import DataError, RunError
from rbalign.remote.counts import summed
from rbalign.rundir.files import atomic_write, link_or_copy, new_folder, sha256_file
from rbalign.rundir.journal import Journal, count_lines, read_rows
from rbalign.rundir.progress import progress
from rbalign.rundir.run import RunDir, StageHandle
from rbalign.stages import synth
from rbalign.stages.base import Plan, PlanRow
from rbalign.stages.endpoints import LEDGER, Servers
from rbalign.stages.labelling import label_summary
from rbalign.stages.synth_outside import commit_ready, config_of, ready_views
from rbalign.stages.synth_shards import (
    CLIPS,
    SHARDS,
    TEXTS,
    Given,
    Say,
    enter,
    look_at_shard,
    merged_texts,
    texts_key,
    whole_stage,
)
from rbalign.synth.accept import Acceptance
from rbalign.synth.parts import Part, merged
from rbalign.types import Example

JOURNALS = ("labels.jsonl", "references.jsonl", synth.UNSPOKEN, synth.HEARD)
BYTES_PER_TEXT = 1_000
SECONDS_PER_DRAFT, SECONDS_PER_FILE = 0.002, 0.2
"""Of one core, among 100,000 texts; 250 clips to a file, which are hashed twice."""
Done = Sequence[tuple[Part, RunDir, StageHandle]]
"""A pass of every part: finished, unless something else is said."""


class TooFewTextsError(RunError):
    """All parts together brought too few."""

    surplus: float
    """What each must bring beside its own, as a share."""


def merge(recipe: Recipe, runs: Path, say: Say = lambda line: None) -> None:
    """Merge what is next: the texts of all shards, then their clips; `say` hears what to do then.

    Raises RunError naming the shards that are missing, unfinished or of another recipe, TooFewTextsError if they must
    write on, DataError for a file of one that is not as it was written.
    """
    with RunDir.open(runs, recipe) as run:
        handle = whole_stage(run, recipe)
        if handle.done:
            say("synth: finished before, skipped")
            return
        folder = run.path(SHARDS)
        texts = merged_texts(folder, recipe)
        parts = parts_in(folder)
        if texts is None:
            written = finished(folder, recipe, parts, TEXTS)
            _check_files(written, TEXTS)
            settle(recipe, run, written)
            texts = Dataset.open(folder / TEXTS)
            if not all(handle.done for *_, handle in _passes(folder, recipe, parts, CLIPS, texts)):
                say(f"the texts of {len(parts)} shards are merged: {_sizes(texts)}")
                say(f"now each makes its clips: rba synth RECIPE --shard I/{len(parts)}")
                return
        spoken = finished(folder, recipe, parts, CLIPS, texts)
        _check_files(spoken, CLIPS)
        handle.finish(assemble(recipe, run, texts, spoken))
        say("synth: done")


def plan_merge(recipe: Recipe, run: RunDir) -> Plan:
    """What a merge would do now; it refuses what `merge` would, files that differ aside. Estimates for one core."""
    if whole_stage(run, recipe, begin=False).done:
        return Plan()
    folder = run.path(SHARDS)
    texts, parts = merged_texts(folder, recipe), parts_in(folder)
    if texts is not None:
        spoken = finished(folder, recipe, parts, CLIPS, texts)
        files = sum(name.startswith("views/") for *_, handle in spoken for name in handle.outputs)
        return Plan((PlanRow("take over files of clips", files, files * SECONDS_PER_FILE),))
    written = finished(folder, recipe, parts, TEXTS)
    drafts = sum(count_lines(own.path(TEXTS, "drafts.jsonl")) for _, own, _ in written)
    return Plan((PlanRow("judge candidates", drafts, drafts * SECONDS_PER_DRAFT),))


def parts_in(folder: Path) -> list[Part]:
    """All parts of the whole that the folder holds parts of. RunError if there is none, or of several wholes."""
    wholes = {part.of for path in folder.glob("*-of-*") if (part := Part.named(path.name))}
    if not wholes:
        raise RunError(f"no shard in {folder}", "make them, `rba synth RECIPE --shard 1/N` to N/N, or copy them there")
    if len(wholes) > 1:
        sizes = " and of ".join(map(str, sorted(wholes)))
        raise RunError(f"{folder} has shards of {sizes}", "keep those of one N, and move the others away")
    (of,) = wholes
    return [Part(number, of) for number in range(1, of + 1)]


def _passes(folder: Path, recipe: Recipe, parts: Sequence[Part], name: str, texts: Dataset | None) -> Done:
    """A pass of every part, finished or not. RunError for one of another recipe or version."""
    given = Given.of(recipe, texts)
    looked = [(part, look_at_shard(folder, recipe, part)) for part in parts]
    return [(part, own, enter(own, part, name, given)) for part, own in looked]


def finished(folder: Path, recipe: Recipe, parts: Sequence[Part], name: str, texts: Dataset | None = None) -> Done:
    """Every part's finished pass. RunError names those that are missing, and the command that makes them."""
    passes = _passes(folder, recipe, parts, name, texts)
    if missing := [part for part, _, handle in passes if not handle.done]:
        there = [str(part) for part, own, handle in passes if not handle.done and name in own.status["stages"]]
        begun = f" (begun: {', '.join(there)})" if there else ""
        numbers = " ".join(str(part.number) for part in missing)
        command = f"`rba synth RECIPE --shard {missing[0]}`"
        if len(missing) > 1:
            command = f"`for i in {numbers}; do rba synth RECIPE --shard $i/{parts[0].of}; done`"
        named = ", ".join(map(str, missing))
        raise RunError(
            f"{len(missing)} of {len(parts)} shards in {folder} lack their {name}: {named}{begun}",
            f"{command}, or copy them there, then merge again",
        )
    return passes


def settle(recipe: Recipe, run: RunDir, written: Done) -> None:
    """Judge the candidates of all parts in index order, and write what is accepted as a dataset without clips.

    Raises TooFewTextsError with the surplus that will do.
    """
    data, of, ready = run.path("data"), len(written), ready_views(recipe)

    def fill(judged: Sequence[Acceptance]) -> None:
        rows = [read_rows(own.path(TEXTS, "drafts.jsonl")) for _, own, _ in written]
        synth.judge(judged[-1], merged(rows), f"judge candidates of {of} shards")
        if not judged[-1].is_full():
            raise _too_few(judged[-1], written)

    with Servers(recipe, data) as servers:
        _take_topics(written[0][1].path(TEXTS), data)
        made = synth.accepted(recipe, data, ready.leakage, servers, None, fill)
        practice = synth.practised(recipe, made.examples)
    counts = {"ready": len(ready.examples), "written": len(made.examples), "practice": len(practice)}
    counts["by_topic"] = len(made.judged[0].examples) if len(made.judged) > 1 else 0
    origin = synth.origin(recipe, made)
    meta = {"teacher": origin["teacher"], "recipe": origin["recipe"], "origin": origin, "counts": counts}
    with new_folder(run.path(SHARDS, TEXTS), BYTES_PER_TEXT * sum(counts.values())) as folder:
        writer = DatasetWriter(folder, meta | {"key": texts_key(recipe), "shards": of})
        writer.add_examples([*ready.examples, *made.examples, *practice])
        writer.finish()


def assemble(recipe: Recipe, run: RunDir, texts: Dataset, spoken: Done) -> dict[str, str]:
    """The dataset, of merged texts and the parts' labels, references and clips; what the stage gives."""
    texts.verify()
    config, data, counts = config_of(recipe), run.path("data"), texts.manifest["counts"]
    for name in JOURNALS:
        _take_rows(name, spoken, data)
    ledgers = [own.path(name, LEDGER) for _, own, _ in spoken for name in (TEXTS, CLIPS)]
    if requests := summed(json.loads(path.read_text(encoding="utf-8")) for path in ledgers if path.is_file()):
        atomic_write(data / LEDGER, json.dumps(requests, indent=2) + "\n")
    _take_clips(spoken, data)
    complete = _completed(texts, data)
    origin = dict(texts.manifest["origin"])
    if config.labels:
        labelled = islice(complete(), counts["ready"], counts["ready"] + counts["written"])
        origin["labels"] = label_summary(recipe, labelled)
    writer = DatasetWriter(data, origin)
    examples = complete()
    while batch := list(islice(examples, EXAMPLES_PER_FILE)):
        writer.add_examples(batch)
    commit_ready(ready_views(recipe).clips, writer)
    manifest = writer.finish(**synth.read_back_told(config, data))
    return {"dataset": manifest["content_hash"], "unspoken": str(sum(1 for _ in read_rows(data / synth.UNSPOKEN)))}


def _completed(texts: Dataset, data: Path) -> Any:
    """A function that reads the examples, each with its labels and reference."""
    labels = {row.pop("id"): row for row in read_rows(data / JOURNALS[0])}
    references = {row["id"]: row["text"] for row in read_rows(data / JOURNALS[1])}

    def read() -> Iterator[Example]:
        for example in texts.iter_examples():
            own = example.labels | labels.get(example.id, {})
            yield replace(example, labels=own, reference=references.get(example.id, example.reference))

    return read


def _take_rows(name: str, spoken: Done, data: Path) -> None:
    """Put the rows of all parts' journals of a name into the dataset's; what is there already stays single."""
    if any(name in handle.outputs for *_, handle in spoken):
        with Journal(data / name) as journal:
            for _, own, _ in spoken:
                journal.append(read_rows(own.path(CLIPS, name)))


def _take_clips(spoken: Done, data: Path) -> None:
    """Every part's files of clips stand in the dataset, by a hard link where that is possible."""
    files = [(own, name) for _, own, handle in spoken for name in handle.outputs if name.startswith("views/")]
    with progress(len(files), "take over clips", unit="files") as advance:
        for own, name in files:
            link_or_copy(own.path(CLIPS, name), data / name)
            advance()


def _take_topics(source: Path, data: Path) -> None:
    """What the first part wrote for a test split by topic: its candidates, and the labels that it judged them by."""
    for path in sorted(source.glob("topics/*.jsonl")):
        atomic_write(data / "topics" / path.name, path.read_bytes())
    with suppress(FileNotFoundError):
        atomic_write(data / JOURNALS[0], (source / JOURNALS[0]).read_bytes())


def _check_files(done: Done, name: str) -> None:
    """Compare every file with the hash that its part ended with. DataError names the first that differs."""
    files = [
        (part, own.path(name, file), expected)
        for part, own, handle in done
        for file, expected in _files(handle.outputs).items()
    ]
    with progress(len(files), "check shards", unit="files") as advance:
        for part, path, expected in files:
            if not path.is_file() or sha256_file(path) != expected:
                what = "is not what shard {} wrote" if path.is_file() else "of shard {} is missing"
                cure = f"copy the shard again, or delete {path.parent.parent} and `rba synth RECIPE --shard {part}`"
                raise DataError(f"{path} {what.format(part)}", cure)
            advance()


def _files(outputs: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in outputs.items() if name != "surplus"}


def _sizes(texts: Dataset) -> str:
    return ", ".join(f"{split} {table['examples']:,}" for split, table in texts.manifest["splits"].items())


def _too_few(acceptance: Acceptance, written: Done) -> TooFewTextsError:
    """What each part must bring more: in proportion to what was found, and a twentieth for the near-duplicates."""
    found, of = len(acceptance.examples), len(written)
    before = min(float(handle.outputs["surplus"]) for *_, handle in written)
    more = math.ceil(100 * ((1.0 + before) * 1.05 * acceptance.wanted / max(found, 1) - 1.0)) / 100
    causes = dict(acceptance.causes.most_common(3))
    error = TooFewTextsError(
        f"{of} shards brought {found:,} of {acceptance.wanted:,} examples (dropped: {causes}); none is lost",
        f"let each write on with `rba synth RECIPE --shard I/{of} --surplus {more:g}`, then merge again",
    )
    error.surplus = more
    return error
