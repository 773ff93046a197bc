"""Which views an example gets, and the speaking of them in shards that are committed whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from rbalign.audio.io import to_flac
from rbalign.config.sections import SynthConfig, ViewPlan
from rbalign.data.shards import RATE
from rbalign.keys import Key
from rbalign.synth.vocabulary import SOURCE
from rbalign.types import Example, Split, View, ViewSpec
from rbalign.voices.bank import VoiceBank
from rbalign.voices.endpoint import EndpointSpeaker, speak_remote
from rbalign.voices.pool import SpeakFailure, SpeakJob, speak_many


def plan_views(example: Example, rules: Sequence[ViewPlan], bank: VoiceBank, seed: int) -> list[View]:
    """The views of one example, without audio: voices drawn by key, distinct within a rule."""
    views: list[View] = []
    for number, rule in enumerate(rules):
        draw = Key(seed, f"views-{number}", example=example.id).generator()
        voices = rule_voices(rule, Split(example.split), bank)
        kind = SOURCE if example.labels.get("source") == SOURCE else "written"
        wanted = example.split in rule.splits and rule.of in ("all", kind)
        if not wanted or draw.random() >= rule.fraction or not voices:
            continue
        for choice in draw.permutation(len(voices))[: rule.per_example]:
            speed = float(rule.speeds[draw.integers(len(rule.speeds))])
            spec = ViewSpec(voices[choice], speed=speed, seed=seed)
            views.append(View(example.id, len(views), example.split, spec, 0.0))
    return views


def rule_voices(rule: ViewPlan, split: Split, bank: VoiceBank) -> list[str]:
    """Voices of the split that a rule means. Named voices must belong to a split that synth may use."""
    if isinstance(rule.voices, str):
        return bank.names(split, rule.voices)
    bank.require(rule.voices, {Split.TRAIN, Split.VALIDATION, Split.TEST}, "synth")
    return [name for name in rule.voices if bank.voice(name).split == split]


def planned(examples: Sequence[Example], config: SynthConfig, bank: VoiceBank, seed: int) -> dict[str, list[View]]:
    """All views by split, in the order in which they fill shards."""
    splits: dict[str, list[View]] = {}
    for example in examples:
        splits.setdefault(example.split, []).extend(plan_views(example, config.views, bank, seed))
    return splits


def speak_shard(
    views: Sequence[View], spoken: dict[str, str], workers: int, remote: Mapping[str, EndpointSpeaker] | None = None
) -> Iterator[tuple[View, SpeakFailure | None]]:
    """Speak the views of a shard, in any order; a clip that failed comes with its reason and without audio.

    `remote` speaks its voices by threads, worker processes speak all others.
    """
    by_id = {view.id: view for view in views}
    jobs = [SpeakJob(v.id, spoken[v.example_id], v.spec.voice, v.spec.speed) for v in views]
    remote = remote or {}
    ours = (job for job in jobs if job.voice not in remote)
    theirs = (job for job in jobs if job.voice in remote)
    for identity, clip in chain(speak_many(ours, workers), speak_remote(theirs, remote)):
        view = by_id[identity]
        if isinstance(clip, SpeakFailure):
            yield view, clip
        else:
            flac = to_flac(clip, RATE)
            yield View(view.example_id, view.index, view.split, view.spec, len(clip) / RATE, flac), None
