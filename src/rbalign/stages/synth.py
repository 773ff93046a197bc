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
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from rbalign.asr.whisper import Transcriber
from rbalign.config.recipe import Recipe
from rbalign.config.synth import SynthConfig
from rbalign.data.dataset import VIEWS_PER_SHARD as VIEWS_PER_SHARD
from rbalign.data.dataset import DatasetWriter
from rbalign.data.signatures import Signatures
from rbalign.errors import DataError
from rbalign.rundir.files import stable_hash
from rbalign.rundir.journal import Journal, read_rows
from rbalign.rundir.progress import progress
from rbalign.rundir.run import RunDir
from rbalign.stages.base import Plan
from rbalign.stages.endpoints import Servers
from rbalign.stages.labelling import filled, label_summary, labelling
from rbalign.stages.recorded import Translation, open_recordings
from rbalign.stages.synth_ahead import Ahead, until
from rbalign.stages.synth_outside import checked_voices, commit_ready, config_of, ready_views
from rbalign.stages.synth_outside import inputs as inputs  # as every stage offers them
from rbalign.stages.synth_plan import plan_of
from rbalign.synth.accept import TEXTS_PER_CAUSE, Acceptance
from rbalign.synth.parts import WHOLE, Draft, InTurn, Part, draft_id
from rbalign.synth.readback import ReadBack, other_voices, read_back_summary
from rbalign.synth.recordings import Recordings
from rbalign.synth.speak import Job, Speech, in_shards, plan_views, planned, speak_shard
from rbalign.synth.topics import TopicSplit
from rbalign.synth.vocabulary import practice_examples, practice_words
from rbalign.synth.write import open_teacher as open_teacher
from rbalign.synth.write import write_many, write_references
from rbalign.types import Example, Split, View
from rbalign.voices.bank import VoiceBank
from rbalign.voices.phonemes import pronounced_words
from rbalign.voices.pool import SpeakFailure

Make = Callable[[Sequence[View], str], Iterator[tuple[View, SpeakFailure | None]]]
"""(views of a shard, its split) -> each with its clip, or with the reason why it has none."""
Take = Callable[[Sequence[Example]], None]
"""Hears of examples as they are accepted."""
UNSPOKEN, HEARD = "unspoken.jsonl", "heard.jsonl"
MOST_CANDIDATES_PER_ACCEPTED = 200
"""Past this many candidates for each example wanted the filters and the teacher do not fit: stop and say so."""


def plan(recipe: Recipe, run: RunDir) -> Plan:
    """What is still to write and to speak. Estimates for two cores and the embedded teacher."""
    return plan_of(recipe, config_of(recipe))


def run(recipe: Recipe, run: RunDir) -> Mapping[str, str]:
    """Make the dataset, going on where an earlier start stopped."""
    config, folder = config_of(recipe), run.path("data")
    bank, noises = checked_voices(config)
    source = open_recordings(config, recipe.seed)
    ready, writer = ready_views(recipe), DatasetWriter(folder, {})
    with Servers(recipe, folder) as servers:
        servers.try_voices()

        def speak_now(speech: Speech, stop: threading.Event | None = None) -> int:
            return speak(speech, recipe, folder, writer, servers, bank, noises, stop)

        with _speaking_ahead(recipe, bank, source, speak_now) as take:
            fill = partial(_write, recipe, folder, servers, take)
            made = accepted(recipe, folder, ready.leakage, servers, source, fill)
        made = _with_labels(made, recipe, folder, servers)
        practice = practised(recipe, made.examples)
        written = with_references(made.examples, recipe, folder, servers)
        writer.add_examples([*ready.examples, *written, *practice])
        commit_ready(ready.clips, writer)
        spoken = {example.id: example.spoken for example in [*written, *practice]}
        if source is not None:
            views = source.views(written)
            jobs = list(in_shards(chain.from_iterable(views.values()), VIEWS_PER_SHARD))
            take_over = partial(source.clips, spoken=spoken, workers=_workers(config))
            unspoken = _speak(jobs, lambda shard, split: take_over(shard), folder, writer, servers)
            more: dict[str, Any] = {}
        else:
            views = planned([*written, *practice], config, bank, recipe.seed)
            every = list(chain.from_iterable(views.values()))
            speech = Speech(list(in_shards(every, VIEWS_PER_SHARD)), spoken, views, every)
            unspoken = speak_now(speech)
            more = read_back_told(config, folder)
        manifest = writer.finish(**origin(recipe, made), **more)
        servers.tell()
    return {"dataset": str(manifest["content_hash"]), "unspoken": str(unspoken)}


@dataclass(frozen=True, slots=True)
class Texts:
    """The examples that were accepted, who judged them, and what the manifest says of topics and labels."""

    examples: list[Example]
    judged: list[Acceptance]
    told: dict[str, Any]


def accepted(
    recipe: Recipe,
    folder: Path,
    leakage: list[Signatures],
    servers: Servers,
    source: Recordings | None,
    fill: Callable[[Sequence[Acceptance]], None],
) -> Texts:
    """Examples with answers: of recordings, or of what the teacher writes; a test split by topic first, with labels.

    fill: gives drafts to the last acceptance until every other split has its examples.
    """
    config = config_of(recipe)
    if source is not None:
        with Journal(folder / "drafts.jsonl") as journal:
            judged = Translation(recipe, config, journal, servers, open_teacher).accept(source, leakage)
        return Texts([example for part in judged for example in part.examples], judged, {})
    judged, told = [], {}
    if by_topic(config):
        split = topic_split(recipe, folder, leakage, servers)
        judged, told = [split.acceptance], {"topics": split.table()}
        leakage = [*leakage, Signatures.build(example.instruction for example in split.acceptance.examples)]
    judged.append(Acceptance(config, leakage))
    fill(judged)
    return Texts([example for part in judged for example in part.examples], judged, told)


def by_topic(config: SynthConfig) -> bool:
    """Whether the test split has as many instructions of each topic."""
    return bool(config.labels and config.labels.test_per_topic)


def topic_split(recipe: Recipe, folder: Path, leakage: Sequence[Signatures], servers: Servers) -> TopicSplit:
    """The test split by topic; candidates and labels that `folder` has are not written again."""
    split = TopicSplit(config_of(recipe), recipe.seed, leakage)
    with labelling(recipe, folder, servers, open_teacher) as label:
        if label is not None:
            filled(split, partial(_stream, recipe, folder, servers), label)
    return split


def _with_labels(made: Texts, recipe: Recipe, folder: Path, servers: Servers) -> Texts:
    with labelling(recipe, folder, servers, open_teacher) as label:
        if label is None:
            return made
        examples = label.labelled(made.examples)
    return replace(made, examples=examples, told=made.told | {"labels": label_summary(recipe, examples)})


def origin(recipe: Recipe, made: Texts) -> dict[str, Any]:
    """What the manifest says beside counts and hashes."""
    config, dropped = config_of(recipe), dict[str, list[str]]()
    for part in made.judged:
        for cause, texts in part.dropped.items():
            dropped[cause] = [*dropped.get(cause, []), *texts][:TEXTS_PER_CAUSE]
    kind: dict[str, Any] = {} if config.kind == "instructions" else {"kind": config.kind}
    if config.kind == "s2tt":
        kind["languages"] = [config.filters.language, config.s2tt.target]
    author = recipe.teacher.author
    if config.translator and config.recordings is not None:
        author = config.translator.author  # nothing was written
    elif config.translator:
        kind["translator"] = config.translator.author
    return {
        "teacher": author,
        "recipe": stable_hash(config.model_dump(mode="json"))[:16],
        "seed": recipe.seed,
        **kind,
        "candidates": sum(part.seen for part in made.judged),
        "dropped": dict(sum((part.causes for part in made.judged), Counter[str]()).most_common()),
        "dropped_texts": dropped,
        **made.told,
    }


def _workers(config: SynthConfig) -> int:
    return config.workers or os.cpu_count() or 1


@contextmanager
def _speaking_ahead(
    recipe: Recipe, bank: VoiceBank, source: Recordings | None, speak_now: Callable[..., int]
) -> Iterator[Take]:
    """What hears of examples as they are accepted: it has them spoken, where writing leaves the cores free."""
    config = config_of(recipe)
    if source is not None or recipe.teacher.endpoint is None:
        yield lambda examples: None
        return
    plan = partial(plan_views, rules=config.views, bank=bank, seed=recipe.seed)
    with Ahead(plan, speak_now, VIEWS_PER_SHARD) as ahead:
        yield ahead.take


def _write(recipe: Recipe, folder: Path, servers: Servers, take: Take, judged: Sequence[Acceptance]) -> None:
    for earlier in judged[:-1]:
        take(earlier.examples)
    with closing(write_drafts_of(WHOLE, recipe, folder / "drafts.jsonl", servers)) as drafts:
        judge(judged[-1], drafts, "write instructions", take)


def judge(acceptance: Acceptance, drafts: Iterable[Draft], label: str, take: Take = lambda examples: None) -> None:
    """Take candidates in index order until every split is full, or there are no more; `take` gets what is accepted."""
    if acceptance.is_full():
        return
    with progress(acceptance.wanted, label, unit="accepted") as advance:
        for number, draft in enumerate(drafts, start=1):
            before = len(acceptance.examples)
            acceptance.add(draft)
            advance(len(acceptance.examples) - before)
            take(acceptance.examples[before:])
            if acceptance.is_full():
                break
            if number > MOST_CANDIDATES_PER_ACCEPTED * acceptance.wanted:
                raise DataError(
                    f"{number} candidates gave {len(acceptance.examples)} of {acceptance.wanted} examples; "
                    f"dropped: {dict(acceptance.causes.most_common(3))}",
                    "loosen [synth.filters], or use a teacher that writes speakable instructions",
                )


def _stream(
    recipe: Recipe, folder: Path, servers: Servers, name: str, config: SynthConfig, seed: int
) -> Generator[Draft, None, None]:
    """The candidates of one stream of the test split by topic."""
    return _drafts(folder / "topics" / f"{name}.jsonl", config, recipe, seed, servers, WHOLE)


def write_drafts_of(part: Part, recipe: Recipe, path: Path, servers: Servers) -> Generator[Draft, None, None]:
    """The drafts of a part's candidates in index order, without end; `path` keeps them. Close it to stop writing."""
    return _drafts(path, config_of(recipe), recipe, recipe.seed, servers, part)


def _drafts(
    path: Path, config: SynthConfig, recipe: Recipe, seed: int, servers: Servers, part: Part
) -> Generator[Draft, None, None]:
    """Drafts that an earlier start wrote, then new ones, sampled in chunks that may come back in any order."""
    turn = InTurn(part)
    with Journal(path) as journal:
        yield from turn.give(journal.rows())
        servers.try_teacher()
        chunks = (range(start, start + config.batch_size) for start in count(0, config.batch_size))
        mine = ([place for i in chunk if draft_id(place := part.place(i)) not in journal] for chunk in chunks)
        with closing(write_many(recipe.teacher, config, seed, filter(None, mine), _workers(config))) as written:
            for drafts in written:
                journal.append(drafts)
                servers.save()
                yield from turn.give(drafts)


def with_references(examples: Sequence[Example], recipe: Recipe, folder: Path, servers: Servers) -> list[Example]:
    """Held-out examples with an independent teacher sample each."""
    config = config_of(recipe)
    held_out = [e for e in examples if e.split != Split.TRAIN] if config.answers and not config.sentences else []
    with Journal(folder / "references.jsonl") as journal:
        todo = [example for example in held_out if example.id not in journal]
        if todo:
            servers.try_teacher()
            teacher = open_teacher(config.translator or recipe.teacher)
            with progress(len(held_out), "write references", done=len(journal)) as advance:
                for identity, text in write_references(teacher, config, recipe.seed, todo):
                    journal.append([{"id": identity, "text": text}])
                    advance()
        texts = {row["id"]: row["text"] for row in journal.rows()}
    return [replace(example, reference=texts.get(example.id)) for example in examples]


def practised(recipe: Recipe, written: Sequence[Example]) -> list[Example]:
    """Sentences that go through the teacher's vocabulary, made of its train sentences."""
    config = config_of(recipe)
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


def speak(
    speech: Speech,
    recipe: Recipe,
    folder: Path,
    writer: DatasetWriter,
    servers: Servers,
    bank: VoiceBank,
    noises: Sequence[Path],
    stop: threading.Event | None = None,
) -> int:
    """Speak what is not committed yet; the number of views that have no clip. StoppedError once `stop` is set."""
    config = config_of(recipe)
    with _reading_back(recipe, folder, speech.around, bank) as read_back:

        def make(views: Sequence[View], split: str) -> Iterator[tuple[View, SpeakFailure | None]]:
            made = speak_shard(
                views,
                speech.spoken,
                _workers(config),
                crowd=speech.crowd[split],
                noise_files=noises,
                remote=servers.speakers,
                read_back=read_back,
            )
            return made if stop is None else until(stop, made)

        return _speak(speech.jobs, make, folder, writer, servers)


@contextmanager
def _reading_back(recipe: Recipe, folder: Path, views: Iterable[View], bank: VoiceBank) -> Iterator[ReadBack | None]:
    """The independent ASR, if the recipe asks for it."""
    config = config_of(recipe)
    if not config.read_back.share:
        yield None
        return
    language = config.filters.language
    listener = Transcriber(config.read_back.model, workers=_workers(config), language=language)
    with Journal(folder / HEARD) as journal:
        others = other_voices(views, bank, recipe.seed)
        yield ReadBack(config.read_back, recipe.seed, listener.transcribe_many, others, journal, language)


def read_back_told(config: SynthConfig, folder: Path) -> dict[str, Any]:
    """What the manifest says of the read-back, if there was one."""
    if not config.read_back.share:
        return {}
    return {"read_back": read_back_summary(read_rows(folder / HEARD), config.read_back.max_wer)}


def _speak(jobs: Sequence[Job], make: Make, folder: Path, writer: DatasetWriter, servers: Servers) -> int:
    """Make the clips shard by shard, split by split; the number of views that have none."""
    jobs = sorted(jobs, key=lambda job: job[:2])
    done = sum(len(views) for split, index, views in jobs if index in writer.committed(split))
    with (
        Journal(folder / UNSPOKEN) as failures,
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
