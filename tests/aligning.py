"""What alignment tests share: a tiny speech policy and a tiny spoken dataset."""

from __future__ import annotations

from tiny import TEXTS, tiny_clip, tiny_processor, tiny_speech_model

from rbalign.audio.io import to_flac
from rbalign.speechlm.policy import SpeechPolicy
from rbalign.train.rollout import Item
from rbalign.types import Example, View, ViewSpec

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
VOICES = ("anna", "ben", "carla")


def tiny_policy(lora=LORA, seed=0, adapter="ctc", **options) -> SpeechPolicy:
    """A random model hardly ever draws the one end token: here 80 others end a sample too, so that some samples end."""
    speech = tiny_speech_model(adapter, seed)
    policy = SpeechPolicy(speech, tiny_processor(), system="Be brief.", lora=lora, seed=seed, **options)
    policy.end_ids = (*policy.end_ids, *range(100, 180))
    return policy


def tiny_view(example: str, index: int, seconds: float, seed: int) -> View:
    spec = ViewSpec(VOICES[index % len(VOICES)])
    return View(example, index, "train", spec, seconds, to_flac(tiny_clip(seconds, seed), 16_000))


def tiny_items(policy: SpeechPolicy, count: int = 6, views: int = 2, cap: int = 8) -> list[Item]:
    """`count` instructions with answers of 2 to `cap` tokens, each spoken by `views` voices for different times."""
    items = []
    for number in range(count):
        name, text = f"e{number}", TEXTS[number % len(TEXTS)]
        answer = TEXTS[(number + 2) % len(TEXTS)][: 4 + number]
        ids = policy.completion_ids(answer)[-cap:]
        example = Example(name, "train", f"{text} {number}", text, answer)
        clips = [tiny_view(name, i, 0.6 + 0.15 * ((number + i) % 4), 10 * number + i) for i in range(views)]
        items.append(Item(example, tuple(clips), ids))
    return items
