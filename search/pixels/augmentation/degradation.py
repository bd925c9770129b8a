"""What images suffer on their way: blur, resizing, noise and compression."""

from __future__ import annotations

import io
import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from search.pixels.augmentation.alterations import Steps
from search.pixels.augmentation.geometry import Filter

COMPRESS = "compress"
"""The one alteration that is no operation on batches; parameters: 1 for WebP, 0 for JPEG; quality;
1 for chroma at half the resolution."""


def between(strength: float, mildest: float, strongest: float) -> float:
    """What a strength from 0 to 1 means, of a parameter with these ends."""
    return mildest + (strongest - mildest) * strength


def compress(canvas: Tensor, webp: float, quality: float, subsampled: float) -> Tensor:
    """An image (3, C, C) written to memory and read back."""
    stream = io.BytesIO()
    # By way of single channels: a seventh of the time of turning (3, C, C) to (C, C, 3) and back.
    image = Image.merge("RGB", [Image.fromarray(channel) for channel in canvas.numpy()])
    if webp:
        # Method 0: 2.5 ms for 256 x 256 pixels on one core, where JPEG takes 0.8.
        image.save(stream, "WEBP", quality=int(quality), method=0)
    else:
        image.save(stream, "JPEG", quality=int(quality), subsampling=2 if subsampled else 0)
    with Image.open(stream) as decoded:
        channels = decoded.convert("RGB").split()
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in channels]))


def compression(rng: random.Random, lowest_quality: int, most: int) -> Steps:
    """One pass for a chain of up to `most`, JPEG or WebP each, as sharing compresses images.

    What remains of an image is decided by the chain's worst pass, and each other costs about as
    much as 4 points of quality: over 60 faces at 256 px, chains of up to 4 passes down to quality
    30 differ from their image by 2.24 levels in the mean, and this one pass by 2.15; chains of up
    to 2 down to 55 by 1.62 and 1.57.
    """
    passes = [
        (rng.randint(lowest_quality, 95), rng.randrange(2), rng.randrange(2))
        for _ in range(rng.randint(1, most))
    ]
    quality, webp, subsampled = min(passes)
    return ((COMPRESS, (webp, quality - 4 * (len(passes) - 1), subsampled)),)


def degradation(rng: random.Random, strength: float, side: int) -> Steps:
    """Before the crop: compression blocks lie on the grid of the file, not of the crop."""
    probability = between(strength, 0.2, 0.5)
    filters = (Filter.BILINEAR, Filter.BICUBIC, Filter.LANCZOS)
    steps: list[Steps] = []
    if rng.random() < probability:
        steps.append((("blur", (rng.uniform(0.1, between(strength, 0.5, 2.5)),)),))
    if rng.random() < probability:
        small = max(1, round(side / rng.uniform(1.0, between(strength, 1.3, 4.0))))
        steps.append((("down_and_up", (small, rng.choice(filters), rng.choice(filters))),))
    if rng.random() < probability:
        deviation = rng.uniform(1.0, between(strength, 3.0, 20.0))
        key = (rng.getrandbits(32), rng.getrandbits(32))
        steps.append((("noise", (deviation, rng.choice((1, 3)), *key)),))
    if rng.random() < probability + 0.3:
        lowest, most = round(between(strength, 80, 30)), round(between(strength, 1, 4))
        steps.append(compression(rng, lowest, most))
    rng.shuffle(steps)
    return sum(steps, ())
