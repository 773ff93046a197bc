"""`rba synth`: drafts -> accepted examples -> independent references -> spoken views -> a finished dataset folder.

data/drafts.jsonl        what became of every candidate, by index (append-only)
data/references.jsonl    an independent teacher sample for each held-out example
data/labels.jsonl        topic and difficulty by id, if the recipe labels; data/topics/*: a test split's candidates
data/unspoken.jsonl      views that no voice could make, and why
data/heard.jsonl         what an independent ASR heard, if the recipe reads back
data/remote.json         requests, tokens and cost of servers, if the recipe names any
data/examples-*.jsonl, data/views/*.parquet, data/manifest.json     the dataset
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from rbalign.asr.whisper import Transcriber
from rbalign.audio.channel import noise_files
from rbalign.config.recipe import Recipe
from rbalign.config.synth import SynthConfig
from rbalign.data.dataset import VIEWS_PER_SHARD, Dataset, DatasetWriter
from rbalign.data.signatures import Signatures
from rbalign.errors import DataError, UsageError
from rbalign.rundir.files import sha256_file, stable_hash
from rbalign.rundir.journal import Journal
from rbalign.rundir.progress import progress
from rbalign.rundir.run import RunDir
from rbalign.stages.base import Plan
from rbalign.stages.endpoints import Servers, endpoint_inputs
from rbalign.stages.labelling import filled, label_summary, labelling
from rbalign.stages.policy import heard_by
from rbalign.stages.recorded import Translation, open_recordings
from rbalign.stages.synth_plan import plan_of
from rbalign.stages.voices import bank_of
from rbalign.synth.accept import TEXTS_PER_CAUSE, Acceptance
from rbalign.synth.heldout import SHIPPED, as_flac, held_out, heldout_folder
from rbalign.synth.leakage import leakage_texts
from rbalign.synth.readback import ReadBack, other_voices
from rbalign.synth.recordings import Recordings, source_hash
from rbalign.synth.speak import planned, speak_shard
from rbalign.synth.topics import TopicSplit
from rbalign.synth.vocabulary import practice_examples, practice_words
from rbalign.synth.write import Draft, draft_id, open_teacher, write_many, write_references
from rbalign.types import Example, Split, View
from rbalign.voices.bank import VoiceBank
from rbalign.voices.phonemes import pronounced_words
from rbalign.voices.pool import SpeakFailure

Make = Callable[[Sequence[View], str], Iterator[tuple[View, SpeakFailure | None]]]
"""(views of a shard, its split) -> each with its clip, or with the reason why it has none."""
MOST_CANDIDATES_PER_ACCEPTED = 200
"""Past this many candidates for each example wanted the filters and the teacher do not fit: stop and say so."""


def plan(recipe: Recipe, run: RunDir) -> Plan:
    """What is still to write and to speak. Estimates for two cores and the embedded teacher."""
    return plan_of(recipe, _config(recipe))


def run(recipe: Recipe, run: RunDir) -> Mapping[str, str]:
    """Make the dataset, going on where an earlier start stopped."""
    config, folder = _config(recipe), run.path("data")
    bank = bank_of(config)
    for rule in config.views:  # a test-only or unknown voice is refused before any work
        names = bank.names(engine=rule.voices) if isinstance(rule.voices, str) else rule.voices
        bank.require(names, {Split.TRAIN, Split.VALIDATION, Split.TEST}, "synth")
    noises = noise_files(Path(config.noise_folder)) if config.noise_folder else []
    source = open_recordings(config, recipe.seed)
    seen = _leakage(recipe)
    ready, clips = _held_out(config, recipe, seen)
    with Servers(recipe, folder) as servers:
        servers.try_voices()
        made = _texts(config, recipe, folder, [*seen, Signatures.build(e.instruction for e in ready)], servers, source)
        practice = _practice(config, recipe, made.examples)
        written = _with_references(made.examples, config, recipe, folder, servers)
        writer = DatasetWriter(folder, _origin(config, recipe, made))
        writer.add_examples([*ready, *written, *practice])
        if clips and 0 not in writer.committed(Split.TEST):
            writer.commit_views(Split.TEST, 0, as_flac(clips))
        spoken = {example.id: example.spoken for example in [*written, *practice]}
        if source is not None:
            views = source.views(written)
            unspoken = _speak(views, lambda shard, split: source.clips(shard, spoken), folder, writer, servers)
            more: dict[str, Any] = {}
        else:
            views = planned([*written, *practice], config, bank, recipe.seed)
            with _reading_back(config, recipe, folder, views, bank) as read_back:
                speak = _by_voices(views, spoken, config, servers, noises, read_back)
                unspoken = _speak(views, speak, folder, writer, servers)
                more = {"read_back": read_back.summary()} if read_back else {}
        manifest = writer.finish(**more)
        servers.tell()
    return {"dataset": str(manifest["content_hash"]), "unspoken": str(unspoken)}


@dataclass(frozen=True, slots=True)
class _Texts:
    """The examples that were accepted, who judged them, and what the manifest says of their labels."""

    examples: list[Example]
    judged: list[Acceptance]
    told: dict[str, Any]


def _texts(
    config: SynthConfig,
    recipe: Recipe,
    folder: Path,
    leakage: list[Signatures],
    servers: Servers,
    source: Recordings | None,
) -> _Texts:
    """Examples with answers and labels: of recordings, or of what the teacher writes; test split by topic first."""
    if source is not None:
        with Journal(folder / "drafts.jsonl") as journal:
            judged = Translation(recipe, config, journal, servers, open_teacher).accept(source, leakage)
        return _Texts([example for part in judged for example in part.examples], judged, {})
    with labelling(recipe, folder, servers, open_teacher) as label:
        if label is None:
            acceptance = _write(config, recipe, folder, leakage, servers)
            return _Texts(acceptance.examples, [acceptance], {})
        judged, told = [], {}
        if config.labels and config.labels.test_per_topic:
            split = TopicSplit(config, recipe.seed, leakage)
            filled(split, partial(_stream, recipe, folder, servers), label)
            judged, told = [split.acceptance], {"topics": split.table()}
            leakage = [*leakage, Signatures.build(example.instruction for example in split.acceptance.examples)]
        judged.append(_write(config, recipe, folder, leakage, servers))
        examples = label.labelled([example for part in judged for example in part.examples])
        return _Texts(examples, judged, told | {"labels": label_summary(recipe, examples)})


def _origin(config: SynthConfig, recipe: Recipe, made: _Texts) -> dict[str, Any]:
    """What the manifest says beside counts and hashes."""
    dropped: dict[str, list[str]] = {}
    for part in made.judged:
        for cause, texts in part.dropped.items():
            dropped[cause] = [*dropped.get(cause, []), *texts][:TEXTS_PER_CAUSE]
    kind: dict[str, Any] = {} if config.kind == "instructions" else {"kind": config.kind}
    if config.kind == "s2tt":
        kind["languages"] = [config.filters.language, config.s2tt.target]
    return {
        "teacher": recipe.teacher.author,
        "recipe": stable_hash(config.model_dump(mode="json"))[:16],
        "seed": recipe.seed,
        **kind,
        "candidates": sum(part.seen for part in made.judged),
        "dropped": dict(sum((part.causes for part in made.judged), Counter[str]()).most_common()),
        "dropped_texts": dropped,
        **made.told,
    }


def _config(recipe: Recipe) -> SynthConfig:
    if recipe.synth is None:
        raise UsageError(f"recipe {recipe.name} has no [synth] section", "add one, or choose another recipe")
    return recipe.synth


def _workers(config: SynthConfig) -> int:
    return config.workers or os.cpu_count() or 1


def _leakage(recipe: Recipe) -> list[Signatures]:
    """What new texts must not resemble: files of evaluation texts, what the connector was trained on, and for a new
    connector the held-out set that ships."""
    config = _config(recipe)
    found = [Signatures.build(leakage_texts(Path(name))) for name in config.filters.leakage_files]
    from rbalign.speechlm.connector import connector_folder

    known = recipe.connect.start if recipe.connect else recipe.align.connector if recipe.align else "default"
    if known is not None and not (recipe.align and recipe.align.model):
        found.append(heard_by(connector_folder(known)))
    if recipe.connect is not None:
        shipped = Dataset.open(heldout_folder(SHIPPED)).examples(Split.TEST)
        found.append(Signatures.build(example.instruction for example in shipped))
    return found


def _held_out(config: SynthConfig, recipe: Recipe, seen: Sequence[Signatures]) -> tuple[list[Example], list[View]]:
    if not config.test_views:
        return [], []
    return held_out(config.test_views, config.test, recipe.teacher.author, seen, config.filters.max_leakage)


def _write(
    config: SynthConfig, recipe: Recipe, folder: Path, leakage: Sequence[Signatures], servers: Servers
) -> Acceptance:
    """Take candidates in index order until every split is full."""
    acceptance = Acceptance(config, leakage)
    if acceptance.is_full():
        return acceptance
    drafts = _drafts(folder / "drafts.jsonl", config, recipe, recipe.seed, servers)
    with closing(drafts), progress(acceptance.wanted, "write instructions", unit="accepted") as advance:
        for number, draft in enumerate(drafts, start=1):
            before = len(acceptance.examples)
            acceptance.add(draft)
            advance(len(acceptance.examples) - before)
            if acceptance.is_full():
                break
            if number > MOST_CANDIDATES_PER_ACCEPTED * acceptance.wanted:
                raise DataError(
                    f"{number} candidates gave {len(acceptance.examples)} of {acceptance.wanted} examples; "
                    f"dropped: {dict(acceptance.causes.most_common(3))}",
                    "loosen [synth.filters], or use a teacher that writes speakable instructions",
                )
    return acceptance


def _stream(
    recipe: Recipe, folder: Path, servers: Servers, name: str, config: SynthConfig, seed: int
) -> Generator[Draft, None, None]:
    """The candidates of one stream of the test split by topic."""
    return _drafts(folder / "topics" / f"{name}.jsonl", config, recipe, seed, servers)


def _drafts(
    path: Path, config: SynthConfig, recipe: Recipe, seed: int, servers: Servers
) -> Generator[Draft, None, None]:
    """Drafts in index order, without end: those that an earlier start wrote, then new ones, sampled in chunks that may
    come back in any order. Close it to stop writing."""
    place = 0
    with Journal(path) as journal:
        known: dict[str, Draft] = {row["id"]: row for row in journal.rows()}
        while (draft := known.get(draft_id(place))) is not None:
            yield draft
            place += 1
        servers.try_teacher()
        todo = (chunk for start in count(0, config.batch_size) if (chunk := _missing(start, config, known)))
        with closing(write_many(recipe.teacher, config, seed, todo, _workers(config))) as chunks:
            for drafts in chunks:
                journal.append(drafts)
                servers.save()
                known.update((draft["id"], draft) for draft in drafts)
                while (ready := known.get(draft_id(place))) is not None:
                    yield ready
                    place += 1


def _missing(start: int, config: SynthConfig, known: Mapping[str, Draft]) -> list[int]:
    return [i for i in range(start, start + config.batch_size) if draft_id(i) not in known]


def _with_references(
    examples: Sequence[Example], config: SynthConfig, recipe: Recipe, folder: Path, servers: Servers
) -> list[Example]:
    """Held-out examples with an independent teacher sample each."""
    held_out = [e for e in examples if e.split != Split.TRAIN] if config.answers and not config.sentences else []
    with Journal(folder / "references.jsonl") as journal:
        todo = [example for example in held_out if example.id not in journal]
        if todo:
            servers.try_teacher()
            with progress(len(held_out), "write references", done=len(journal)) as advance:
                for identity, text in write_references(open_teacher(recipe.teacher), config, recipe.seed, todo):
                    journal.append([{"id": identity, "text": text}])
                    advance()
        texts = {row["id"]: row["text"] for row in journal.rows()}
    return [replace(example, reference=texts.get(example.id)) for example in examples]


def _practice(config: SynthConfig, recipe: Recipe, written: Sequence[Example]) -> list[Example]:
    """Sentences that go through the teacher's vocabulary, made of its train sentences."""
    texts = [example.instruction for example in written if example.split == Split.TRAIN]
    if not config.vocabulary or not texts:
        return []
    words = practice_words(
        _learner_tokenizer(recipe), pronounced_words(), config.vocabulary_of, config.vocabulary_pieces
    )
    return practice_examples(config.vocabulary, texts, words, recipe.seed, config.vocabulary_share)


def _learner_tokenizer(recipe: Recipe) -> Any:
    """Of the teacher in memory, or, when a server writes, of the LLM that will hear."""
    if recipe.teacher.endpoint is None:
        return open_teacher(recipe.teacher).lm.tokenizer
    from rbalign.assets import model_folder
    from rbalign.lm.load import load_tokenizer

    return load_tokenizer(model_folder(recipe.connect.language_model if recipe.connect else recipe.teacher.model))


@contextmanager
def _reading_back(
    config: SynthConfig, recipe: Recipe, folder: Path, splits: Mapping[str, Sequence[View]], bank: VoiceBank
) -> Iterator[ReadBack | None]:
    """The independent ASR, if the recipe asks for it."""
    if not config.read_back.share:
        yield None
        return
    listener = Transcriber(config.read_back.model, workers=_workers(config))
    others = other_voices((view for own in splits.values() for view in own), bank, recipe.seed)
    with Journal(folder / "heard.jsonl") as journal:
        yield ReadBack(config.read_back, recipe.seed, listener.transcribe_many, others, journal)


def _by_voices(
    splits: Mapping[str, Sequence[View]],
    spoken: dict[str, str],
    config: SynthConfig,
    servers: Servers,
    noises: Sequence[Path],
    read_back: ReadBack | None,
) -> Make:
    """Clips spoken by the voices of the plan."""
    return lambda shard, split: speak_shard(
        shard,
        spoken,
        _workers(config),
        crowd=splits[split],
        noise_files=noises,
        remote=servers.speakers,
        read_back=read_back,
    )


def _speak(
    splits: Mapping[str, Sequence[View]], make: Make, folder: Path, writer: DatasetWriter, servers: Servers
) -> int:
    """Make the clips of every split shard by shard; the number of views that have none."""
    jobs = [
        (split, index, views[start : start + VIEWS_PER_SHARD])
        for split, views in sorted(splits.items())
        for index, start in enumerate(range(0, len(views), VIEWS_PER_SHARD))
    ]
    done = sum(len(views) for split, index, views in jobs if index in writer.committed(split))
    with (
        Journal(folder / "unspoken.jsonl") as failures,
        progress(sum(len(views) for *_, views in jobs), "speak", done=done, unit="clips") as advance,
    ):
        for split, index, views in jobs:
            if index not in writer.committed(split):
                clips = list(_clips(make(views, split), failures, advance))
                writer.commit_views(split, index, sorted(clips, key=lambda view: (view.example_id, view.index)))
                servers.save()
        return len(failures)


def _clips(made: Iterable[tuple[View, SpeakFailure | None]], failures: Journal, advance: Any) -> Iterator[View]:
    for view, failure in made:
        advance()
        if failure is None:
            yield view
        else:
            failures.append([{"id": view.id, "voice": view.spec.voice, "reason": failure.reason}])


def inputs(recipe: Recipe) -> Mapping[str, str]:
    """Hashes of what is read from outside the run."""
    config = _config(recipe)
    files = {name: sha256_file(Path(name)) for name in config.filters.leakage_files if Path(name).is_file()}
    if config.test_views:
        files["test_views"] = Dataset.open(heldout_folder(config.test_views)).content_hash
    if config.recordings is not None and Path(config.recordings).is_dir():
        files["recordings"] = source_hash(Path(config.recordings))
    if config.noise_folder and Path(config.noise_folder).is_dir():
        folder = Path(config.noise_folder)  # names and sizes: the recordings may be gigabytes
        listed = [[str(path.relative_to(folder)), path.stat().st_size] for path in noise_files(folder)]
        files["noise_folder"] = stable_hash(listed)
    return files | endpoint_inputs(recipe)
