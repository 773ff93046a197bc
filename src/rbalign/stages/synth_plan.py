"""What `rba synth` has to do and how long that takes, from the recipe alone."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from rbalign.config.recipe import Recipe
from rbalign.config.synth import SynthConfig
from rbalign.stages.base import Plan, PlanRow
from rbalign.stages.endpoints import tagger_config
from rbalign.stages.voices import bank_of
from rbalign.synth.accept import quotas
from rbalign.synth.speak import plan_views
from rbalign.synth.vocabulary import SOURCE
from rbalign.types import Example, Split
from rbalign.voices.bank import ENDPOINT

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
SECONDS_PER_RECORDING = 0.05
"""To decode, resample and write a recording of some seconds as FLAC."""
SECONDS_PER_TRANSLATION = 1.0
"""Gemma 3 270M on one core, in batches, of 13 words: measured on 120 sentences."""
SECONDS_PER_LABEL = 0.3
"""SmolLM2-135M on one core: topic and difficulty, 13 options in two passes."""
BYTES_PER_CLIP = 65_000


def plan_of(recipe: Recipe, config: SynthConfig) -> Plan:
    """What is to write and to speak. Estimates for two cores and the embedded teacher."""
    wanted = [(split, size) for split, size in quotas(config)]
    if config.labels and config.labels.test_per_topic:
        wanted[0] = (Split.TEST, config.size(Split.TEST))
    texts = sum(size for _, size in wanted)
    if config.recordings is not None:
        return _recorded_plan(recipe, config, texts)
    bank = bank_of(config)
    views: Counter[str] = Counter()
    made: list[tuple[Split, int, dict[str, Any]]] = [(split, size, {}) for split, size in wanted]
    for split, size, labels in [*made, (Split.TRAIN, config.vocabulary, {"source": SOURCE})]:
        probe = [Example(f"plan-{i}", split, "", "", labels=labels) for i in range(min(size, 200))]
        for example in probe:
            for view in plan_views(example, config.views, bank, recipe.seed):
                views[bank.voice(view.spec.voice).engine] += size / len(probe)  # type: ignore[assignment]
    rows = [PlanRow("write and answer instructions", texts, texts * _seconds_per_accepted(config, recipe))]
    if config.labels:
        rows.append(PlanRow("label instructions", texts, texts * _seconds_per_label(recipe)))
    for engine, number in sorted(views.items()):
        clips, seconds = round(number), _seconds_per_clip(engine, config)
        rows.append(PlanRow(f"speak views with {engine}", clips, clips * seconds, clips * BYTES_PER_CLIP))
    if config.read_back.share:
        heard = round(config.read_back.share * sum(views.values()))
        rows.append(PlanRow("hear clips back", heard, heard * SECONDS_PER_HEARD / _workers(config)))
    return Plan(tuple(rows))


def _recorded_plan(recipe: Recipe, config: SynthConfig, texts: int) -> Plan:
    """At most: the recordings may be fewer. One clip is counted for each."""
    endpoint, cap = recipe.teacher.endpoint, config.answer.max_new_tokens
    each = SECONDS_PER_REQUEST / endpoint.concurrency if endpoint else 0.5 * cap / TOKENS_PER_SECOND
    if config.translator:
        each = SECONDS_PER_TRANSLATION
    rows = (
        PlanRow("translate transcripts", texts, texts * each),
        PlanRow(
            "take over recordings", texts, texts * SECONDS_PER_RECORDING / _workers(config), texts * BYTES_PER_CLIP
        ),
    )
    return Plan(rows)


def _seconds_per_label(recipe: Recipe) -> float:
    """Of a server: its requests stand beside each other. Here: one process scores, whatever the cores."""
    endpoint = tagger_config(recipe).endpoint
    return SECONDS_PER_REQUEST / endpoint.concurrency if endpoint else SECONDS_PER_LABEL


def _seconds_per_clip(engine: str, config: SynthConfig) -> float:
    """Wall seconds, with all workers at it."""
    if engine == ENDPOINT:
        return SECONDS_PER_REQUEST / sum(endpoint.concurrency for endpoint in config.endpoint_voices)
    return SECONDS_PER_CLIP[engine] / _workers(config)


def _seconds_per_accepted(config: SynthConfig, recipe: Recipe) -> float:
    """Wall seconds, from what the embedded teacher was seen to do on one core, with all workers at it."""
    if config.translator:
        alone = config.model_copy(update={"answers": False, "kind": "instructions"})
        return _seconds_per_accepted(alone, recipe) + SECONDS_PER_TRANSLATION / _workers(config)
    if recipe.teacher.endpoint is not None:
        requests = (1.0 + SHARE_SPEAKABLE * config.answers) / SHARE_SPEAKABLE
        return requests * SECONDS_PER_REQUEST / recipe.teacher.endpoint.concurrency
    cap = config.answer.max_new_tokens
    answered = SHARE_SPEAKABLE * 0.8 * cap if config.answers else 0.0
    complete = max((share for tokens, share in SHARE_COMPLETE.items() if tokens <= cap), default=0.01)
    accepted = SENTENCES_PER_CANDIDATE if config.sentences else SHARE_SPEAKABLE * (complete if config.answers else 1.0)
    return (TOKENS_PER_CANDIDATE + answered) / TOKENS_PER_SECOND / accepted / _workers(config)


def _workers(config: SynthConfig) -> int:
    return config.workers or os.cpu_count() or 1
