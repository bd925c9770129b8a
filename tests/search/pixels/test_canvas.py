"""The canvas: one definition of how an image file becomes pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from search.pixels.augmentation.geometry import resize
from search.pixels.canvas import choose_side, explain, read_canvas, resample, sample_sizes


def photograph(folder: Path, width: int = 90, height: int = 60, orientation: int = 1) -> Path:
    """A JPEG of noise, turned on its side by its EXIF if asked."""
    levels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / f"{width}x{height}-{orientation}.jpg"
    Image.fromarray(levels).save(path, quality=95, exif=exif)
    return path


@pytest.mark.parametrize("side", [32, 60, 200])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_plain_function_of_pillow_makes_the_same_canvas(
    side: int, orientation: int, tmp_path: Path
) -> None:
    """The one that model cards print."""
    path = photograph(tmp_path, orientation=orientation)
    found: dict[str, Any] = {}
    exec(explain(side), found)  # noqa: S102 - our own text
    expected = np.asarray(found["canvas"](path))
    canvas = read_canvas(path, side)
    assert (canvas.shape, canvas.dtype) == ((3, side, side), torch.uint8)
    assert canvas.is_contiguous()
    assert np.array_equal(canvas.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("size", [16, 48, 64, 100])
def test_canvases_are_resized_as_pillow_would(size: int, tmp_path: Path) -> None:
    canvas = read_canvas(photograph(tmp_path), 64)
    expected = Image.fromarray(canvas.permute(1, 2, 0).numpy()).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    found = resize(canvas[None], size)[0].permute(1, 2, 0).numpy()
    # Pillow rounds between the two directions, and torch does not.
    assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_resizing_bytes_and_floats_is_the_same(tmp_path: Path) -> None:
    canvases = torch.stack([read_canvas(photograph(tmp_path, width), 64) for width in (70, 90)])
    assert torch.equal(resize(canvases, 40).float(), resample(canvases.float(), 40))
    assert resize(canvases, 64) is canvases


@pytest.mark.parametrize(
    ("sizes", "largest", "side"),
    [
        ([(512, 512)] * 3, 256, 256),
        ([(512, 512)] * 3, 768, 512),
        # Of each image the smaller side counts, and of all the one that half of them reach.
        ([(640, 480), (200, 300), (900, 900)], 768, 480),
        ([(100, 100), (100, 100), (400, 400), (400, 400)], 384, 100),
        ([(8, 8)], 224, 16),
        ([], 224, 224),
    ],
)
def test_the_side_is_the_pools_but_no_larger_than_most_images(
    sizes: list[tuple[int, int]], largest: int, side: int
) -> None:
    assert choose_side(sizes, largest) == side


def test_sizes_are_sampled_over_the_whole_list(tmp_path: Path) -> None:
    paths = [str(photograph(tmp_path, 20 + number, 20)) for number in range(9)]
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    paths[4] = str(tmp_path / "broken.jpg")
    paths[6] = str(tmp_path / "absent.jpg")
    assert sample_sizes(paths, 3) == [(20, 20), (28, 20)]
    assert len(sample_sizes(paths)) == 7
    assert sample_sizes([]) == []
