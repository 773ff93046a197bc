"""`rba synth RECIPE --shard I/N`: one process' share of a recipe's dataset, on any machine.

    rba synth RECIPE --shard I/N   for every I: the candidates I-1, I-1+N, I-1+2N, ...        shards/I-of-N/texts
    rba synth RECIPE --merge       accepts in index order: near duplicates, leakage, splits   shards/texts
    rba synth RECIPE --shard I/N   for every I: its clips, labels and references              shards/I-of-N/clips
    rba synth RECIPE --merge       the dataset that one process would have written            data

Why two rounds. Which split an example belongs to, and whether there is an earlier one like it, depends on all that
was accepted before it; and the split decides who may speak it. A shard that spoke at once would give its clips the
voices of a guessed split, and speak near duplicates, of which there are the more the larger the set. Speaking takes
most of the time, so it waits for the merge, which is minutes of one core for 100,000 texts.

Why the result depends on nothing but the recipe. A draft is a function of its candidate's index, a clip of its
example; shards share both out (`synth/parts.py`), the merge judges drafts in the order of their indices, as one
process does, and clips stand in the same files of 250. So N, the order in which shards end, and being killed show
nowhere: ids, texts, labels, clips and the content hash are those of a plain `rba synth`.

A shard's folder is a run of its own (lock, status, environment), is finished pass by pass, and holds a hash of every
file, so that half a copy is noticed. `shards` is all that travels between machines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from rbalign import __version__
from rbalign.config.recipe import Recipe
from rbalign.config.synth import SynthConfig
from rbalign.data.dataset import Dataset, DatasetWriter
from rbalign.errors import RunError, UsageError
from rbalign.rundir.files import sha256_file, stable_hash
from rbalign.rundir.run import RunDir, StageHandle
from rbalign.stages import synth
from rbalign.stages.base import Plan, PlanRow
from rbalign.stages.chain import settings
from rbalign.stages.endpoints import Servers
from rbalign.stages.labelling import labelling
from rbalign.stages.synth_outside import checked_voices, config_of, inputs, ready_views
from rbalign.stages.synth_plan import plan_of
from rbalign.synth.accept import Acceptance, quotas
from rbalign.synth.parts import SURPLUS, Part, part_size
from rbalign.synth.speak import TALKERS, Job, Speech, in_shards, plan_views
from rbalign.types import Example, Split, View
from rbalign.voices.bank import VoiceBank

Say = Callable[[str], None]
SHARDS = "shards"
TEXTS, CLIPS = "texts", "clips"


def run_shard(
    recipe: Recipe, runs: Path, part: Part, surplus: float | None = None, say: Say = lambda line: None
) -> None:
    """Make what is next of a part, going on where an earlier start stopped; `say` hears what to do then.

    surplus: accepted instructions beside the part's own, as a share of them; a larger one than before writes on.
    Raises RunError if another process makes this part, or it was begun with another recipe or version.
    """
    run = RunDir.look(runs, recipe)
    if whole_stage(run, recipe, begin=False).done:
        say("synth: finished before, skipped")
        return
    refuse_recordings(recipe)
    folder = run.path(SHARDS)
    texts = merged_texts(folder, recipe, part)
    with RunDir.open(folder, _named(recipe, part), forkable=False) as own:
        if texts is None:
            handle = enter(own, part, TEXTS, Given.of(recipe))
            if not _has_enough(handle, surplus):
                own.reopen(TEXTS)
                _write(recipe, part, own.path(TEXTS), SURPLUS if surplus is None else surplus, handle)
            say(f"shard {part}: its texts are written; when all {part.of} have theirs: rba synth RECIPE --merge")
            return
        handle = enter(own, part, CLIPS, Given.of(recipe, texts))
        if not handle.done:
            _speak(recipe, part, own.path(CLIPS), texts, handle)
        say(f"shard {part}: its clips are made; when all {part.of} have theirs: rba synth RECIPE --merge")


def plan_shard(recipe: Recipe, run: RunDir, part: Part, surplus: float | None = None) -> Plan:
    """What is next of a part, from the recipe alone."""
    if whole_stage(run, recipe, begin=False).done:
        return Plan()
    refuse_recordings(recipe)
    texts = merged_texts(run.path(SHARDS), recipe, part)
    own = look_at_shard(run.path(SHARDS), recipe, part)
    write, *others = plan_of(recipe, config_of(recipe)).rows
    if texts is not None:
        done = enter(own, part, CLIPS, Given.of(recipe, texts)).done
        return Plan() if done else Plan(tuple(_scaled(row, 1.0 / part.of) for row in others))
    if _has_enough(enter(own, part, TEXTS, Given.of(recipe)), surplus):
        return Plan()
    share = part_size(write.count, part.of, SURPLUS if surplus is None else surplus) / max(write.count, 1)
    return Plan((_scaled(write, share),))


def _scaled(row: PlanRow, share: float) -> PlanRow:
    """A part of a row of a plan."""
    return PlanRow(row.what, math.ceil(row.count * share), row.seconds * share, math.ceil(row.bytes * share))


def whole_stage(run: RunDir, recipe: Recipe, begin: bool = True) -> StageHandle:
    """The stage that all shards make together."""
    return run.stage("synth", settings(recipe, "synth"), inputs(recipe), begin=begin)


def look_at_shard(folder: Path, recipe: Recipe, part: Part) -> RunDir:
    """The run of a part, for reading."""
    return RunDir.look(folder, _named(recipe, part))


@dataclass(frozen=True, slots=True)
class Given:
    """What a pass is keyed by: the recipe's settings, the hashes of what it reads, and the version of rba."""

    section: Mapping[str, Any]
    inputs: Mapping[str, str]

    @classmethod
    def of(cls, recipe: Recipe, texts: Dataset | None = None) -> Self:
        """Of the first pass, or, with merged texts, of the second. Hashes the recipe's files: once is enough."""
        more = {} if texts is None else {"texts": texts.content_hash}
        return cls(settings(recipe, "synth"), {**inputs(recipe), "rba": __version__, **more})


def enter(own: RunDir, part: Part, name: str, given: Given) -> StageHandle:
    """A pass of a part; begun if `own` is open for writing. RunError if it is of another recipe, version or merge."""
    try:
        return own.stage(name, given.section, given.inputs)
    except RunError as error:
        cure = f"give it the same recipe and rba, or delete {own.folder} and `rba synth RECIPE --shard {part}`"
        raise RunError(f"shard {part} is of another recipe or version: {error.problem}", cure) from None


def texts_key(recipe: Recipe) -> str:
    """What merged texts depend on, as one hash."""
    given = Given.of(recipe)
    return stable_hash([given.section, given.inputs])


def merged_texts(folder: Path, recipe: Recipe, part: Part | None = None) -> Dataset | None:
    """What the merge accepted, if it has; UsageError if it was of another number of shards than the part's.

    Raises RunError if it was for another recipe or version.
    """
    place = folder / TEXTS
    if not place.exists():
        return None
    texts = Dataset.open(place)
    if texts.manifest.get("key") != texts_key(recipe):
        raise RunError(
            f"the texts in {place} were merged for another recipe or version of rba",
            f"give the same, or delete {folder} and make all shards again",
        )
    of = texts.manifest["shards"]
    if part is not None and of != part.of:
        raise UsageError(f"--shard {part}: the texts were merged from {of} shards", f"choose 1/{of} to {of}/{of}")
    return texts


def hashes(folder: Path) -> dict[str, str]:
    """Every file below a folder and its sha256; what is being written is left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def share_of(
    examples: Callable[[], Iterable[Example]], part: Part, config: SynthConfig, bank: VoiceBank, seed: int
) -> Speech:
    """The part's shards of views; of the others no more than it needs. examples: reads them again at each call."""
    jobs: list[Job] = []
    crowd: dict[str, list[View]] = {}
    # Talkers are borrowed from a split's beginning, beyond the shard's own views and those of the example itself.
    enough = synth.VIEWS_PER_SHARD + TALKERS[1] + sum(rule.per_example for rule in config.views)
    every = (view for example in examples() for view in plan_views(example, config.views, bank, seed))
    for place, job in enumerate(in_shards(every, synth.VIEWS_PER_SHARD)):
        first = crowd.setdefault(job[0], [])
        first += job[2][: max(0, enough - len(first))]
        if part.owns(place):
            jobs.append(job)
    own = {view.example_id for *_, views in jobs for view in views}
    near = {view.example_id for views in crowd.values() for view in views}
    spoken: dict[str, str] = {}
    around: list[View] = []
    for example in examples():
        if example.id in own or example.id in near:
            spoken[example.id] = example.spoken
        if example.id in own:
            around += plan_views(example, config.views, bank, seed)
    return Speech(jobs, spoken, crowd, around)


def _has_enough(handle: StageHandle, surplus: float | None) -> bool:
    """Whether a part's texts are written, with the surplus that is asked for."""
    return handle.done and (surplus or 0.0) <= float(handle.outputs["surplus"])


def _write(recipe: Recipe, part: Part, folder: Path, surplus: float, handle: StageHandle) -> None:
    """The part's candidates, until enough of them would be accepted if there were no other part."""
    config, seen = config_of(recipe), ready_views(recipe).leakage
    wanted = sum(size for _, size in quotas(config))
    enough = part_size(wanted, part.of, surplus) if wanted else 0
    only = {"train": enough, "validation": 0, "test": 0, "test_views": None, "labels": None}
    with Servers(recipe, folder) as servers:
        if (
            synth.by_topic(config) and part.number == 1
        ):  # small beside the rest, and each topic waits for the one before
            synth.topic_split(recipe, folder, seen, servers)
        with closing(synth.write_drafts_of(part, recipe, folder / "drafts.jsonl", servers)) as drafts:
            synth.judge(Acceptance(config.model_copy(update=only), seen), drafts, f"write instructions, shard {part}")
        servers.tell()
    handle.finish({**hashes(folder), "surplus": f"{surplus:g}"})


def _speak(recipe: Recipe, part: Part, folder: Path, texts: Dataset, handle: StageHandle) -> None:
    """The part's labels, references and clips."""
    texts.verify()
    config, counts = config_of(recipe), texts.manifest["counts"]
    bank, noises = checked_voices(config)
    first, last = counts["ready"], counts["ready"] + counts["written"]
    with Servers(recipe, folder) as servers:
        servers.try_voices()
        with labelling(recipe, folder, servers, synth.open_teacher) as label:
            if label is not None:
                label.labelled(list(part.own(islice(texts.iter_examples(), first + counts["by_topic"], last))))
        held_out = (e for e in islice(texts.iter_examples(), first, last) if e.split != Split.TRAIN)
        synth.with_references(list(part.own(held_out)), recipe, folder, servers)
        speech = share_of(lambda: islice(texts.iter_examples(), first, None), part, config, bank, recipe.seed)
        synth.speak(speech, recipe, folder, DatasetWriter(folder, {}), servers, bank, noises)
        servers.tell()
    handle.finish(hashes(folder))


def _named(recipe: Recipe, part: Part) -> Recipe:
    """The recipe under the name of the part's folder."""
    return recipe.model_copy(update={"name": part.name})


def refuse_recordings(recipe: Recipe) -> None:
    """UsageError if the recipe's clips are recordings."""
    if config_of(recipe).recordings is not None:
        raise UsageError(
            "recordings are taken over and not spoken, which needs no shards", "run `rba synth RECIPE` as it is"
        )
