"""Probe images, made from a seed alone: a model can be recognised by its scores of them, without
any image of the data set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.machine.device import describe_device, exact_float32
from search.training.network import margin

COUNT = 8
BLOCKS = (1, 4, 16, 64)
"""Probes are mosaics with stones of so many pixels: white noise alone would look the same to most
networks."""


@dataclass(frozen=True)
class Probes:
    """What probes.json records."""

    seed: int
    canvas: int
    margins: tuple[float, ...]  # logit of fake minus logit of real
    scores: tuple[float, ...]  # their sigmoids
    device: str  # what computed them


def probe_images(seed: int, canvas: int, count: int = COUNT) -> Tensor:
    """Probe images (count, 3, canvas, canvas), uint8 RGB.

    The bytes come from SHAKE-256, which no version of a library and no platform changes.
    """
    mosaics = [_mosaic(f"{seed}:{number}", number, canvas) for number in range(count)]
    return torch.from_numpy(np.stack(mosaics))


def score_probes(model: nn.Module, seed: int, canvas: int) -> Probes:
    """Scores the probe images, canvases, on the CPU in fp32, wherever the model was.

    One at a time: a model from elsewhere may ask for large ones, and for little memory at once.
    """
    model.cpu().eval()
    with torch.inference_mode(), exact_float32():
        margins = torch.cat(
            [
                margin(model(image.float().div_(255.0)).double())
                for image in probe_images(seed, canvas).split(1)
            ]
        )
    return Probes(
        seed,
        canvas,
        tuple(margins.tolist()),
        tuple(margins.sigmoid().tolist()),
        describe_device(margins.device),
    )


def _mosaic(key: str, number: int, canvas: int) -> NDArray[np.uint8]:
    """One image (3, S, S); every round through the sizes of stones has less contrast."""
    block, divisor = BLOCKS[number % len(BLOCKS)], 1 + number // len(BLOCKS)
    side = -(-canvas // block)
    content = hashlib.shake_256(key.encode()).digest(3 * side * side)
    stones = np.frombuffer(content, np.uint8).reshape(3, side, side)
    image = stones.repeat(block, axis=1).repeat(block, axis=2)[:, :canvas, :canvas]
    # Whole numbers throughout: floating point may round differently elsewhere.
    darkest = (255 - 255 // divisor) // 2
    return np.ascontiguousarray(image // divisor + np.uint8(darkest))
