"""What a connector hears: WER on held-out sentences x every test voice, on splices of 20 to 30 s, and on people.

A ctc adapter gives what the LLM that reads along makes of it, and "greedy" what it hears alone; a model with another
adapter is asked to repeat the words.

    python benchmarks/hearing.py [--connector FOLDER] [--out quality.json]

Whisper tiny.en, whose encoder the connector uses, hears the same recordings with its own decoder.
"""

import argparse
import json
import os
import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from rbalign import assets
from rbalign.asr.whisper import Transcriber
from rbalign.audio.io import read_audio, to_flac
from rbalign.config.recipe import Recipe
from rbalign.config.sections import AlignConfig
from rbalign.data.dataset import Dataset
from rbalign.data.shards import RATE
from rbalign.eval.stats import Bootstrap
from rbalign.keys import Key
from rbalign.rundir.files import atomic_write
from rbalign.rundir.run import RunDir
from rbalign.stages.policy import open_policy
from rbalign.synth.heldout import SHIPPED, heldout_folder
from rbalign.text.normalise import word_errors
from rbalign.train.connect_plan import MAX_SECONDS
from rbalign.types import View, ViewSpec

SPLICE_SECONDS = (20.0, 29.0)
FEWEST_WORDS = 5
"""Of a telephone prompt: shorter ones are single words without context, and their WER is noise."""


def rate(references, heard, groups=None):
    """Corpus WER in percent, its 95 % bootstrap interval over `groups` (default: clips), and the words."""
    groups = list(groups if groups is not None else range(len(references)))
    sums = defaultdict(lambda: [0, 0])
    for group, reference, words in zip(groups, references, heard, strict=True):
        errors, count = word_errors(reference, words)
        sums[group][0] += errors
        sums[group][1] += count
    errors, words = np.array(list(sums.values()), dtype=float).T
    estimate = Bootstrap(len(errors), 2000, Key(0, "hearing").generator()).ratio(errors, words)
    percent = [round(100 * value, 2) for value in (estimate.value, estimate.low, estimate.high)]
    return {"wer": percent[0], "ci": percent[1:], "clips": len(references), "words": int(words.sum())}


def transcripts(policy, views):
    """What the adapter hears in each clip, 32 clips of alike length at a time."""
    order = sorted(range(len(views)), key=lambda i: views[i].seconds)
    heard = {}
    for start in range(0, len(order), 32):
        batch = order[start : start + 32]
        heard.update(zip(batch, policy.heard([views[i] for i in batch]), strict=True))
    return [heard[i] for i in range(len(views))]


def heldout(policy):
    """Every clip of the shipped set: overall, by voice."""
    data = Dataset.open(heldout_folder(SHIPPED))
    said = {example.id: example.spoken for example in data.examples("test")}
    views = data.views("test")
    heard = transcripts(policy, views)
    texts = [said[view.example_id] for view in views]
    out = rate(texts, heard, [view.example_id for view in views]) | {"sentences": len(said), "voices": {}}
    for voice in sorted({view.spec.voice for view in views}):
        own = [i for i, view in enumerate(views) if view.spec.voice == voice]
        out["voices"][voice] = rate([texts[i] for i in own], [heard[i] for i in own])
    worst = max(out["voices"], key=lambda name: out["voices"][name]["wer"])
    return out | {"worst_voice": worst}, [(view, said[view.example_id]) for view in views]


def splices(spoken):
    """Clips of one voice, one after the other with short pauses, until 20 to 29 s are full: (view, text)."""
    made = []
    for voice in sorted({view.spec.voice for view, _ in spoken}):
        draw, queue = Key(0, "splice", example=voice).generator(), [one for one in spoken if one[0].spec.voice == voice]
        parts, texts, seconds = [], [], 0.0
        for view, text in queue:
            if seconds and seconds + 0.6 + view.seconds > SPLICE_SECONDS[1]:
                if seconds >= SPLICE_SECONDS[0]:
                    flac = to_flac(np.concatenate(parts))
                    name = f"splice-{voice}-{len(made)}"
                    made.append((View(name, 0, "test", ViewSpec(voice), seconds, flac), " ".join(texts)))
                parts, texts, seconds = [], [], 0.0
            gap = np.zeros(int(RATE * draw.uniform(0.1, 0.6)), np.float32) if parts else np.zeros(0, np.float32)
            clip = read_audio(view.flac)
            parts += [gap, clip]
            texts.append(text)
            seconds += (len(gap) + len(clip)) / RATE
    return made


def people():
    """Recordings by people with what they say: {set: [(clip, text)]}. For reports only: nothing is tuned on them."""
    folder = assets.folder("asterisk-sounds")
    rows = [json.loads(row) for row in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = [(folder / row["file"], row["text"]) for row in rows if len(row["text"].split()) >= FEWEST_WORDS]
    tests = assets.folder("pocketsphinx-testdata")
    sets = {
        "telephone prompts (one speaker, 8 kHz)": prompts,
        "LibriVox (one reader)": transcribed(tests / "librivox" / "transcription"),
        "playing cards, named (one speaker)": transcribed(tests / "cards" / "cards.transcription"),
    }
    clips = {name: [(read_audio(path), text) for path, text in pairs] for name, pairs in sets.items()}
    return {name: [one for one in own if len(one[0]) / RATE < MAX_SECONDS] for name, own in clips.items()}


def transcribed(listing):
    """Sphinx's lines "<s> words </s> (NAME)" as (path of the clip beside them, words)."""
    pairs = [re.fullmatch(r"<s> (.*?) *</s> \((.*)\)", line) for line in listing.read_text("utf-8").splitlines()]
    # The transcription has one slip: "a more a amiable".
    return [(listing.parent / f"{m[2]}.wav", m[1].replace("a more a amiable", "a more amiable")) for m in pairs if m]


def as_view(identity, samples):
    """A recording as a clip. Ids must differ between sets: encoder outputs are kept by them."""
    return View(identity, 0, "test-only", ViewSpec("human"), len(samples) / RATE, to_flac(samples))


def measured(policy, recordings):
    """The three measures for what this policy hears."""
    found, spoken = heldout(policy)
    long = splices(spoken)
    spliced = rate([text for _, text in long], transcripts(policy, [view for view, _ in long]))
    spliced |= {"seconds": round(float(np.mean([view.seconds for view, _ in long])), 1)}
    out = {"heldout": found, "spliced": spliced | {"ratio": round(spliced["wer"] / found["wer"], 3)}, "people": {}}
    for name, pairs in recordings.items():
        views = [as_view(f"{name}-{i}", clip) for i, (clip, _) in enumerate(pairs)]
        out["people"][name] = {"ours": rate([text for _, text in pairs], transcripts(policy, views))}
    return out


def add_whisper(out, recordings):
    """What Whisper tiny.en hears of one voice of each held-out sentence, and of people."""
    tiny = Transcriber("whisper-tiny.en-ct2", workers=os.cpu_count() or 1)
    data = Dataset.open(heldout_folder(SHIPPED))
    said = {example.id: example.spoken for example in data.examples("test")}
    one_each = {view.example_id: view for view in data.views("test")}
    heard = list(tiny.transcribe_many(read_audio(view.flac) for view in one_each.values()))
    out["heldout"]["whisper tiny.en, one voice each"] = rate([said[name] for name in one_each], heard)
    for name, pairs in recordings.items():
        heard = list(tiny.transcribe_many(clip for clip, _ in pairs))
        out["people"][name]["whisper tiny.en"] = rate([text for _, text in pairs], heard)


def main():
    """Measure, print, and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--connector", default="default")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    recipe = Recipe(name="hearing", align=AlignConfig(connector=options.connector))
    policy = open_policy(recipe, RunDir.look(Path("runs"), recipe))
    recordings = people()
    out = measured(policy, recordings)
    if policy.speech.fusion is not None:
        policy.speech.config.fusion = None
        policy.cache.drop("paths")
        out["greedy"] = measured(policy, recordings)
    add_whisper(out, recordings)
    counts = Path(options.connector) / "counts.json"
    if counts.is_file():
        out["connector"] = json.loads(counts.read_text(encoding="utf-8"))
    text = json.dumps(out, indent=1) + "\n"
    sys.stdout.write(text)
    if options.out:
        atomic_write(options.out, text)


if __name__ == "__main__":
    main()
