"""Making one clip sound like many, keyed: the same item in the same epoch is always treated alike."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from rbalign.audio.signal import add_noise, change_gain, change_speed, room, telephone
from rbalign.keys import Key

NOISE_SHARE, NOISE_SNR_DB = 0.5, (5.0, 30.0)
ROOM_SHARE = 0.25
TELEPHONE_SHARE = 0.05
GAIN_DB = (-15.0, 3.0)
FREQUENCY_MASKS, WIDEST_FREQUENCY_MASK = 2, 16
"""Mel bands of 80."""
FRAMES_PER_TIME_MASK, LONGEST_TIME_MASK = 200, 25
"""One mask every 2 s, each up to 0.25 s: shorter than most words, so that context can fill it in."""


def augment_samples(samples: np.ndarray, speed: float, key: Key) -> np.ndarray:
    """Speed with pitch (a longer or shorter throat, too), room, telephone, noise, gain: (n,) float32 -> (n/speed,)."""
    generator = key.at(view=1).generator()
    samples = change_speed(samples, speed)
    if generator.random() < ROOM_SHARE:
        samples = room(samples, generator)
    if generator.random() < TELEPHONE_SHARE:
        samples = telephone(samples)
    if generator.random() < NOISE_SHARE:
        samples = add_noise(samples, float(generator.uniform(*NOISE_SNR_DB)), generator)
    return change_gain(samples, float(generator.uniform(*GAIN_DB)))


def mask_features(features: Tensor, key: Key) -> Tensor:
    """SpecAugment (Park et al. 2019) on log-mel features (80,F): bands and moments replaced by the clip's mean."""
    generator = key.at(view=2).generator()
    bands, frames = features.shape
    masked, mean = features.clone(), features.mean()
    for _ in range(FREQUENCY_MASKS):
        width = int(generator.integers(0, WIDEST_FREQUENCY_MASK + 1))
        start = int(generator.integers(0, bands - width + 1))
        masked[start : start + width] = mean
    for _ in range(max(1, frames // FRAMES_PER_TIME_MASK)):
        width = int(generator.integers(0, min(LONGEST_TIME_MASK, frames // 4) + 1))
        start = int(generator.integers(0, frames - width + 1))
        masked[:, start : start + width] = mean
    return masked
