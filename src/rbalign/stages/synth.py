"""`rba synth`: drafts -> accepted examples -> independent references -> spoken views -> a finished dataset folder.

data/drafts.jsonl        what became of every candidate, by index (append-only)
data/references.jsonl    an independent teacher sample for each held-out example
data/unspoken.jsonl      views that no voice could make, and why
data/heard.jsonl         what an independent ASR heard, if the recipe reads back
data/remote.json         requests, tokens and cost of servers, if the recipe names any
data/examples-*.jsonl, data/views/*.parquet, data/manifest.json     the dataset
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
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
from rbalign.stages.base import Plan, PlanRow
from rbalign.stages.endpoints import Servers, endpoint_inputs
from rbalign.stages.policy import heard_by
from rbalign.stages.voices import bank_of
from rbalign.synth.accept import Acceptance, quotas
from rbalign.synth.heldout import SHIPPED, as_flac, held_out, heldout_folder
from rbalign.synth.readback import ReadBack, other_voices
from rbalign.synth.speak import plan_views, planned, speak_shard
from rbalign.synth.vocabulary import SOURCE, practice_examples, practice_words
from rbalign.synth.write import Draft, draft_id, open_teacher, write_many, write_references
from rbalign.types import Example, Split, View
from rbalign.voices.bank import ENDPOINT, VoiceBank
from rbalign.voices.phonemes import pronounced_words
from rbalign.voices.pool import SpeakFailure

TOKENS_PER_SECOND = 140.0
"""SmolLM2-135M on one core in float32; every worker has one."""
TOKENS_PER_CANDIDATE = 33.0
SHARE_SPEAKABLE = 0.65
"""Of candidates: complete within 48 tokens and past the filters. These and the next were counted on 1,500 drafts."""
SHARE_COMPLETE = {12: 0.02, 16: 0.04, 24: 0.11, 32: 0.18, 40: 0.24, 48: 0.29, 64: 0.37}
"""Of answers: those that end within so many tokens."""
SENTENCES_PER_CANDIDATE = 2.7
SECONDS_PER_CLIP = {"kokoro": 3.3, "hibari": 0.05}
"""CPU seconds of one core for a clip of about four seconds, while the other core works, too."""
SECONDS_PER_REQUEST = 2.0
"""Of a server, for a text or a clip: a guess, nobody can measure them all. `concurrency` of them run at once."""
SECONDS_PER_HEARD = 1.5
"""CPU seconds of Whisper base for a clip: it pads each to 30 s."""
BYTES_PER_CLIP = 65_000
MOST_CANDIDATES_PER_ACCEPTED = 200
"""Past this many candidates for each example wanted the filters and the teacher do not fit: stop and say so."""


def plan(recipe: Recipe, run: RunDir) -> Plan:
    """What is still to write and to speak. Estimates for two cores and the embedded teacher."""
    config = _config(recipe)
    wanted = sum(size for _, size in quotas(config))
    bank = bank_of(config)
    views: Counter[str] = Counter()
    made: list[tuple[Split, int, dict[str, Any]]] = [(split, size, {}) for split, size in quotas(config)]
    for split, size, labels in [*made, (Split.TRAIN, config.vocabulary, {"source": SOURCE})]:
        probe = [Example(f"plan-{i}", split, "", "", labels=labels) for i in range(min(size, 200))]
        for example in probe:
            for view in plan_views(example, config.views, bank, recipe.seed):
                views[bank.voice(view.spec.voice).engine] += size / len(probe)  # type: ignore[assignment]
    rows = [PlanRow("write and answer instructions", wanted, wanted * _seconds_per_accepted(config, recipe))]
    for engine, number in sorted(views.items()):
        clips, seconds = round(number), _seconds_per_clip(engine, config)
        rows.append(PlanRow(f"speak views with {engine}", clips, clips * seconds, clips * BYTES_PER_CLIP))
    if config.read_back.share:
        heard = round(config.read_back.share * sum(views.values()))
        rows.append(PlanRow("hear clips back", heard, heard * SECONDS_PER_HEARD / _workers(config)))
    return Plan(tuple(rows))


def _seconds_per_clip(engine: str, config: SynthConfig) -> float:
    """Wall seconds, with all workers at it."""
    if engine == ENDPOINT:
        return SECONDS_PER_REQUEST / sum(endpoint.concurrency for endpoint in config.endpoint_voices)
    return SECONDS_PER_CLIP[engine] / _workers(config)


def _seconds_per_accepted(config: SynthConfig, recipe: Recipe) -> float:
    """Wall seconds, from what the embedded teacher was seen to do on one core, with all workers at it."""
    if recipe.teacher.endpoint is not None:
        requests = (1.0 + SHARE_SPEAKABLE * config.answers) / SHARE_SPEAKABLE
        return requests * SECONDS_PER_REQUEST / recipe.teacher.endpoint.concurrency
    cap = config.answer.max_new_tokens
    answered = SHARE_SPEAKABLE * 0.8 * cap if config.answers else 0.0
    complete = max((share for tokens, share in SHARE_COMPLETE.items() if tokens <= cap), default=0.01)
    accepted = SENTENCES_PER_CANDIDATE if config.sentences else SHARE_SPEAKABLE * (complete if config.answers else 1.0)
    return (TOKENS_PER_CANDIDATE + answered) / TOKENS_PER_SECOND / accepted / _workers(config)


def run(recipe: Recipe, run: RunDir) -> Mapping[str, str]:
    """Make the dataset, going on where an earlier start stopped."""
    config, folder = _config(recipe), run.path("data")
    bank = bank_of(config)
    for rule in config.views:  # a test-only or unknown voice is refused before any work
        names = bank.names(engine=rule.voices) if isinstance(rule.voices, str) else rule.voices
        bank.require(names, {Split.TRAIN, Split.VALIDATION, Split.TEST}, "synth")
    noises = noise_files(Path(config.noise_folder)) if config.noise_folder else []
    seen = _leakage(recipe)
    ready, clips = _held_out(config, recipe, seen)
    with Servers(recipe, folder) as servers:
        servers.try_voices()
        acceptance = _write(config, recipe, folder, [*seen, Signatures.build(e.instruction for e in ready)], servers)
        practice = _practice(config, recipe, acceptance.examples)
        written = _with_references(acceptance.examples, config, recipe, folder, servers)
        writer = DatasetWriter(
            folder,
            {
                "teacher": recipe.teacher.author,
                "recipe": stable_hash(config.model_dump(mode="json"))[:16],
                "seed": recipe.seed,
                "candidates": acceptance.seen,
                "dropped": dict(acceptance.causes.most_common()),
                "dropped_texts": acceptance.dropped,
            },
        )
        writer.add_examples([*ready, *written, *practice])
        if clips and 0 not in writer.committed(Split.TEST):
            writer.commit_views(Split.TEST, 0, as_flac(clips))
        views = planned([*acceptance.examples, *practice], config, bank, recipe.seed)
        spoken = {example.id: example.spoken for example in [*acceptance.examples, *practice]}
        with _reading_back(config, recipe, folder, views, bank) as read_back:
            unspoken = _speak(views, spoken, config, folder, writer, servers, noises, read_back)
            more = {"read_back": read_back.summary()} if read_back else {}
        manifest = writer.finish(**more)
        servers.tell()
    return {"dataset": str(manifest["content_hash"]), "unspoken": str(unspoken)}


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
    found = []
    for name in config.filters.leakage_files:
        try:
            found.append(Signatures.build(Path(name).read_text(encoding="utf-8").splitlines()))
        except OSError as error:
            raise UsageError(f"cannot read leakage file {name}: {error.strerror}", "name an existing file") from None
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
    """Sample candidates in chunks until every split is full. Chunks may arrive in any order; acceptance has one."""
    acceptance = Acceptance(config, leakage)
    with (
        Journal(folder / "drafts.jsonl") as journal,
        progress(acceptance.wanted, "write instructions", unit="accepted") as advance,
    ):
        known: dict[str, Draft] = {row["id"]: row for row in journal.rows()}
        place = _accept_ready(acceptance, known, 0, advance)
        if acceptance.is_full():
            return acceptance
        servers.try_teacher()
        todo = (chunk for start in count(0, config.batch_size) if (chunk := _missing(start, config, known)))
        chunks = write_many(recipe.teacher, config, recipe.seed, todo, _workers(config))
        with closing(chunks):
            for drafts in chunks:
                journal.append(drafts)
                servers.save()
                known.update((draft["id"], draft) for draft in drafts)
                place = _accept_ready(acceptance, known, place, advance)
                if acceptance.is_full():
                    break
                if place > MOST_CANDIDATES_PER_ACCEPTED * acceptance.wanted:
                    raise DataError(
                        f"{place} candidates gave {len(acceptance.examples)} of {acceptance.wanted} examples; "
                        f"dropped: {dict(acceptance.causes.most_common(3))}",
                        "loosen [synth.filters], or use a teacher that writes speakable instructions",
                    )
    return acceptance


def _missing(start: int, config: SynthConfig, known: Mapping[str, Draft]) -> list[int]:
    return [i for i in range(start, start + config.batch_size) if draft_id(i) not in known]


def _accept_ready(acceptance: Acceptance, known: Mapping[str, Draft], place: int, advance: Any) -> int:
    """Judge drafts in index order as far as they are there; returns the next index."""
    while not acceptance.is_full() and (draft := known.get(draft_id(place))) is not None:
        before = len(acceptance.examples)
        acceptance.add(draft)
        if len(acceptance.examples) > before:
            advance(len(acceptance.examples) - before)
        place += 1
    return place


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


def _speak(
    splits: Mapping[str, Sequence[View]],
    spoken: dict[str, str],
    config: SynthConfig,
    folder: Path,
    writer: DatasetWriter,
    servers: Servers,
    noises: Sequence[Path],
    read_back: ReadBack | None,
) -> int:
    """Speak every split shard by shard; the number of views that no voice could make."""
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
                made = speak_shard(
                    views,
                    spoken,
                    _workers(config),
                    crowd=splits[split],
                    noise_files=noises,
                    remote=servers.speakers,
                    read_back=read_back,
                )
                clips = list(_clips(made, failures, advance))
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
    if config.noise_folder and Path(config.noise_folder).is_dir():
        folder = Path(config.noise_folder)  # names and sizes: the recordings may be gigabytes
        listed = [[str(path.relative_to(folder)), path.stat().st_size] for path in noise_files(folder)]
        files["noise_folder"] = stable_hash(listed)
    return files | endpoint_inputs(recipe)
