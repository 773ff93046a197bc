"""Which views an example gets, and the speaking of them in shards that are committed whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from rbalign.audio.channel import Surroundings, needs_talkers, transmit
from rbalign.audio.io import to_flac
from rbalign.config.synth import SynthConfig, ViewPlan
from rbalign.data.shards import RATE
from rbalign.keys import Key
from rbalign.synth.readback import ReadBack, Speak
from rbalign.synth.vocabulary import SOURCE
from rbalign.text.disfluency import disfluent
from rbalign.types import Example, Split, View, ViewSpec
from rbalign.voices.bank import VoiceBank
from rbalign.voices.endpoint import EndpointSpeaker, speak_remote
from rbalign.voices.pool import Clip, SpeakFailure, SpeakJob, speak_many

Job = tuple[str, int, list[View]]
"""(split, number of the shard, its views): what is spoken and committed as a whole."""
TALKERS = (3, 7)
"""Clips in babble, at least and at most, drawn by key (Snyder et al. 2018)."""


def plan_views(example: Example, rules: Sequence[ViewPlan], bank: VoiceBank, seed: int) -> list[View]:
    """The views of one example, without audio: voices drawn by key, distinct within a rule; with what is to be said."""
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
            # Not from `draw`: a rule that gets channels keeps the voices and speeds that it had without.
            ways = Key(seed, "ways", example=example.id, view=len(views)).generator()
            channel = rule.channels[ways.integers(len(rule.channels))]
            delivery = rule.deliveries[ways.integers(len(rule.deliveries))]
            spec = ViewSpec(voices[choice], speed=speed, channel=channel, seed=seed)
            view = View(example.id, len(views), example.split, spec, 0.0)
            views.append(_delivered(view, example.spoken, delivery))
    return views


def _delivered(view: View, fluent: str, delivery: str) -> View:
    """The view with the delivery that its text allows."""
    generator = Key(view.spec.seed, "delivery", example=view.example_id, view=view.index).generator()
    way = disfluent(fluent, delivery, generator)
    if way is None:
        return view
    return replace(view, spec=replace(view.spec, delivery=way.delivery), said=way.said, retracted=way.retracted)


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


def in_shards(views: Iterable[View], size: int) -> Iterator[Job]:
    """Views in shards of `size`, numbered by split, as they fill; those that stay smaller come last."""
    filling: dict[str, list[View]] = {}
    made = Counter[str]()
    for view in views:
        filling.setdefault(view.split, []).append(view)
        if len(filling[view.split]) == size:
            yield view.split, made[view.split], filling.pop(view.split)
            made[view.split] += 1
    for split, rest in sorted(filling.items()):
        yield split, made[split], rest


@dataclass(frozen=True, slots=True)
class Speech:
    """What one process is to speak, and what it must know of the views beside."""

    jobs: Sequence[Job]
    spoken: dict[str, str]
    """Example id -> its fluent text, of all examples in `jobs` and `crowd`."""
    crowd: Mapping[str, Sequence[View]]
    """By split: views from its beginning, of which a small shard borrows babble."""
    around: Iterable[View]
    """Every view of the examples in `jobs`."""


def speak_shard(
    views: Sequence[View],
    spoken: dict[str, str],
    workers: int,
    *,
    crowd: Sequence[View] = (),
    noise_files: Sequence[Path] = (),
    remote: Mapping[str, EndpointSpeaker] | None = None,
    read_back: ReadBack | None = None,
) -> Iterator[tuple[View, SpeakFailure | None]]:
    """Speak the views of a shard and send each through its channel; a clip that failed comes with its reason.

    They come in any order, but a clip depends on the plan alone. Babble is made of the shard's other clips as they
    were spoken, drawn by key; a shard of few instructions borrows views of `crowd` (its split's plan), which are
    spoken for that and not yielded. A talker that cannot be spoken is left out. noise_files: what noise:folder draws
    from. `remote` speaks its voices by threads, worker processes speak all others. `read_back` hears the clips before
    their channel, and may hand a view to another voice.
    """
    own = {view.id: view for view in views}
    talkers = {view.id: _talkers(view, views, crowd) for view in views if needs_talkers(view.spec.channel)}
    heard_of = {talker.id: talker for several in talkers.values() for talker in several}
    clips: dict[str, np.ndarray] = {}
    waiting: list[tuple[View, np.ndarray]] = []
    speak = partial(_spoken, spoken=spoken, workers=workers, remote=remote or {})
    for view, clip in _said(own, own | heard_of, spoken, speak, read_back):
        if isinstance(clip, SpeakFailure):
            if view.id in own:
                yield view, clip
            continue
        if view.id in heard_of:
            clips[view.id] = clip
        if view.id in talkers:
            waiting.append((view, clip))
        elif view.id in own:
            yield _through_channel(view, clip, Surroundings(files=noise_files)), None
    for view, clip in waiting:
        around = [clips[talker.id] for talker in talkers[view.id] if talker.id in clips]
        if any(other.any() for other in around):
            yield _through_channel(view, clip, Surroundings(around, noise_files)), None
        else:
            yield view, SpeakFailure(SpeakJob.of(view, spoken), "no other clip to make babble of")


def _said(
    own: Mapping[str, View], every: Mapping[str, View], spoken: dict[str, str], speak: Speak, read_back: ReadBack | None
) -> Iterator[tuple[View, Clip]]:
    """Every view with its clip; of its `own`, read back if that is wanted."""
    if read_back is not None:
        yield from read_back.understood(every.values(), own, spoken, speak)
    else:
        yield from ((every[identity], clip) for identity, clip in speak(every.values()))


def _spoken(
    views: Iterable[View], spoken: dict[str, str], workers: int, remote: Mapping[str, EndpointSpeaker]
) -> Iterator[tuple[str, Clip]]:
    """Views that differ only in their channel are one job: what was said is the same."""
    jobs: dict[tuple[str, str, float], list[SpeakJob]] = {}
    for view in views:
        job = SpeakJob.of(view, spoken)
        jobs.setdefault((job.text, job.voice, job.speed), []).append(job)
    first = {own[0].id: own for own in jobs.values()}
    here = (own[0] for own in jobs.values() if own[0].voice not in remote)
    there = (own[0] for own in jobs.values() if own[0].voice in remote)
    for identity, clip in chain(speak_many(here, workers), speak_remote(there, remote)):
        for job in first[identity]:
            yield job.id, SpeakFailure(job, clip.reason) if isinstance(clip, SpeakFailure) else clip


def borrows_talkers(views: Sequence[View]) -> bool:
    """Whether babble in a shard of these views would take talkers from beside it."""
    return any(
        needs_talkers(view.spec.channel) and sum(other.example_id != view.example_id for other in views) < TALKERS[1]
        for view in views
    )


def _talkers(view: View, shard: Sequence[View], crowd: Sequence[View]) -> list[View]:
    """Three to seven views of other instructions, of other voices where there are some, drawn by key."""
    others = [other for other in shard if other.example_id != view.example_id]
    if len(others) < TALKERS[1]:
        here = {other.id for other in shard}
        others += [o for o in crowd if o.example_id != view.example_id and o.id not in here][: TALKERS[1]]
    strangers = [other for other in others if other.spec.voice != view.spec.voice] or others
    draw = Key(view.spec.seed, "talkers", example=view.example_id, view=view.index).generator()
    count = int(draw.integers(TALKERS[0], TALKERS[1] + 1))
    return [strangers[place] for place in draw.permutation(len(strangers))[:count]]


def _through_channel(view: View, clip: np.ndarray, around: Surroundings) -> View:
    """The view with its clip, keyed: (seed, "channel", example, view)."""
    generator = Key(view.spec.seed, "channel", example=view.example_id, view=view.index).generator()
    heard = transmit(clip, view.spec.channel, generator, RATE, around)
    return replace(view, seconds=len(heard) / RATE, flac=to_flac(heard, RATE))
