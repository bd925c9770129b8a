"""The canvas: the square of uint8 RGB that an image file is to every network.

The filter is Pillow's antialiased bilinear one, here and wherever a network's input is made from a
canvas: its weights are not negative, so nothing leaves [0, 255] and nothing is clipped, and Pillow,
torch and ONNX agree on it without a coefficient that each chooses for itself, as bicubic has.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from search.pixels.images import FORMATS, read_image

FILTER = "bilinear"
DECODER = f"Pillow {PIL.__version__}"

SMALLEST_SIDE, LARGEST_SIDE = 16, 1024
"""In pixels. Nothing in timm is pretrained at more (timm 1.0.31)."""

SIZES_SAMPLED = 500
"""Images whose headers are read to choose a side: of so many the median is good to a few percent of
the images."""


def to_canvas(image: Image.Image, side: int) -> Tensor:
    """An RGB image as its canvas, uint8 (3, side, side), without regard to the aspect ratio."""
    resized = image.resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def read_canvas(path: str | Path, side: int) -> Tensor:
    """The canvas of an image file; raises as `read_image`."""
    return to_canvas(read_image(path), side)


def describe_canvas(side: int) -> dict[str, Any]:
    """What data.yaml says of a run's canvas of a side in pixels."""
    return {"side": side, "filter": FILTER, "decoder": DECODER}


def explain(side: int) -> str:
    """Python that makes the canvas of a usual image file, for those who have only an exported
    model. (16-bit grey is scaled to 8 bits before, and transparency laid over black.)"""
    return (
        "from PIL import Image, ImageOps\n"
        "\n"
        "def canvas(path):\n"
        "    with Image.open(path) as image:\n"
        '        upright = ImageOps.exif_transpose(image).convert("RGB")\n'
        f"    return upright.resize(({side}, {side}), Image.Resampling.{FILTER.upper()})\n"
    )


def resample(levels: Tensor, size: int) -> Tensor:
    """Squares (N, 3, C, C) of float levels in [0, 255] at another size, rounded to whole levels.

    Rounded, because a network's input is bytes: the same whether it was resized beforehand, on its
    way to several networks, or inside one of them.
    """
    if levels.shape[-2:] == (size, size):
        return levels
    resized = F.interpolate(
        levels, size=(size, size), mode=FILTER, align_corners=False, antialias=True
    )
    return resized.round()


def choose_side(sizes: Sequence[tuple[int, int]], largest: int) -> int:
    """The side of a run's canvas: the largest input of its pool, but no larger than most images
    are, because enlarging first and shrinking later only blurs.

    Args:
        sizes: width and height of some of the images, in pixels; of each the smaller counts.
        largest: input size of the pool, in pixels.
    """
    if not sizes:
        return largest
    # At least half of the images have so many pixels in both directions.
    most = int(np.quantile([min(size) for size in sizes], 0.5, method="lower"))
    return max(SMALLEST_SIDE, min(largest, most))


def sample_sizes(paths: Sequence[str], count: int = SIZES_SAMPLED) -> list[tuple[int, int]]:
    """Width and height of some of the images, evenly spread over the list; only headers are read,
    and images that cannot be read are left out."""
    chosen: Iterable[int] = np.linspace(0, len(paths) - 1, min(count, len(paths))).round()
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of huge images, which are read later or not at all
        for index in chosen:
            # Why an image cannot be read, the quarantine tells.
            with suppress(Exception), Image.open(paths[int(index)], formats=FORMATS) as image:
                found.append(image.size)
    return found
