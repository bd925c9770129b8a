"""The embedded demo set: a real forensic task made from the photographs inside scikit-learn.

Real images are crops of the two photographs. A fake is one of these crops into which a region from
elsewhere was blended, after resampling and a shift of its colours: what a face swap does. Training
and validation images come from different parts of the photographs, with a gap between them, so
that nothing but the traces of blending carries over.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_sample_images

VERSION = "2"
SEED = 20_240_601
SIDE = 64
"""Side of an image in pixels: small enough for two CPU cores."""

TRAIN_REALS = 800
VAL_REALS = 300
"""Each real crop has one fake made from it, and both are a group."""

TRAIN_END = 0.60
VAL_START = 0.64
"""Shares of a photograph's width: left of the first is for training, right of the second for
validation; the gap keeps textures that cross the border out of both."""

MASK_AREA = (0.2, 0.5)
"""Share of the image that the blended region covers."""

SCALE = (2.5, 4.0)
"""Enlargement of the region before blending; interpolation smooths its noise."""

COLOUR_SHIFT = 10.0
"""Standard deviation of the shift of each channel, in levels of 255."""

LARGEST_GAIN = 3.0
"""Of the contrast; more would amplify a smooth region's noise."""

FEATHER = 2.5
"""Radius in pixels over which the region is blended into its surroundings."""

JPEG_QUALITY = 95

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class DemoSet:
    """Paths of the demo set, in the challenge's format."""

    train_labels: Path
    train_images: Path
    train_groups: Path
    val_labels: Path
    val_images: Path
    val_groups: Path


def make_demo(folder: Path) -> DemoSet:
    """Makes the demo set in a folder, unless this version of it is there already.

    It is built beside the folder and renamed when complete, so an interrupted build leaves nothing
    that looks finished.

    Args:
        folder: where to put it; its parent is made if absent.
    """
    target = folder / f"v{VERSION}"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            building = Path(temporary) / "set"
            _build(building)
            try:
                building.rename(target)
            except OSError:
                # Another process was faster; a set that is complete is never replaced.
                if not target.exists():
                    raise
    return DemoSet(
        train_labels=target / "trainset_label.txt",
        train_images=target / "trainset",
        train_groups=target / "trainset_group.csv",
        val_labels=target / "valset_label.txt",
        val_images=target / "valset",
        val_groups=target / "valset_group.csv",
    )


def part_of(width: int, height: int, split: str) -> Box:
    """The part of a photograph, as (left, top, right, bottom), that a split may show."""
    if split == "trainset":
        return 0, 0, int(TRAIN_END * width), height
    return int(VAL_START * width), 0, width, height


def forge(real: Pixels, donor: Pixels, generator: np.random.Generator) -> Pixels:
    """Blends a region of a donor into a real crop.

    Args:
        real: (SIDE, SIDE, 3) crop.
        donor: (SIDE, SIDE, 3) crop from elsewhere in the same part of the photographs.
        generator: draws size, place, scale and colours.

    Returns:
        (SIDE, SIDE, 3) forged image.
    """
    side = len(real)
    scale = generator.uniform(*SCALE)
    kept = round(side / scale)
    left, top = generator.integers(0, side - kept + 1, 2)
    region = Image.fromarray(donor[top : top + kept, left : left + kept])
    pixels = np.asarray(region.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)
    mask = _mask(side, generator)[:, :, None]
    pixels = _match(pixels, real, mask) + generator.normal(0.0, COLOUR_SHIFT, 3)
    blended = mask * pixels + (1.0 - mask) * real
    return np.clip(np.rint(blended), 0, 255).astype(np.uint8)


def _match(
    pixels: NDArray[np.float64], real: Pixels, mask: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Gives the region the mean and the contrast of what it covers, as a face swap does; without
    it, the statistics of a whole image would tell many fakes."""
    weights = np.broadcast_to(mask, real.shape)
    statistics = []
    for image in (pixels, real.astype(np.float64)):
        mean = np.average(image, axis=(0, 1), weights=weights)
        deviation = np.sqrt(np.average((image - mean) ** 2, axis=(0, 1), weights=weights))
        statistics.append((mean, deviation))
    (mean, deviation), (wanted_mean, wanted_deviation) = statistics
    gain = np.clip(wanted_deviation / np.maximum(deviation, 1.0), 1 / LARGEST_GAIN, LARGEST_GAIN)
    return (pixels - mean) * gain + wanted_mean


def _mask(side: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """(side, side) weights in [0, 1]: an ellipse with soft edges, wholly inside."""
    area = generator.uniform(*MASK_AREA) * side * side
    aspect = generator.uniform(0.7, 1.4)
    width = min(side - 4.0, 2 * np.sqrt(area * aspect / np.pi))
    height = min(side - 4.0, 2 * np.sqrt(area / aspect / np.pi))
    left, top = generator.uniform(2, side - width - 2), generator.uniform(2, side - height - 2)
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).ellipse((left, top, left + width, top + height), fill=255)
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(FEATHER)), dtype=np.float64) / 255.0


def _build(folder: Path) -> None:
    photographs: list[Pixels] = load_sample_images().images
    for number, (split, reals) in enumerate((("trainset", TRAIN_REALS), ("valset", VAL_REALS))):
        generator = np.random.default_rng((SEED, number))
        (folder / split).mkdir(parents=True)
        rows: list[tuple[str, int, str]] = []
        for index in range(reals):
            real = _crop(photographs, split, generator)
            fake = forge(real, _crop(photographs, split, generator), generator)
            group = f"{split}-{index:04d}"
            for target, pixels in ((0, real), (1, fake)):
                name = hashlib.md5(f"{group}-{target}".encode(), usedforsecurity=False).hexdigest()
                rows.append((f"{name}.jpg", target, group))
                path = folder / split / f"{name}.jpg"
                Image.fromarray(pixels).save(path, quality=JPEG_QUALITY, subsampling=0)
        rows.sort()
        _write(folder / f"{split}_label.txt", "target", [(name, str(t)) for name, t, _ in rows])
        _write(folder / f"{split}_group.csv", "group", [(name, group) for name, _, group in rows])
    (folder / "README.txt").write_text(
        "Demo set of onefold: crops of the photographs china.jpg and flower.jpg that ship with\n"
        "scikit-learn (Creative Commons attribution licences, see its\n"
        "datasets/images/README.txt), half of them with a region blended in from elsewhere.\n"
        "1 = fake, 0 = real.\n",
        encoding="utf-8",
    )


def _crop(photographs: list[Pixels], split: str, generator: np.random.Generator) -> Pixels:
    """A crop at full resolution of the split's part of a photograph, mirrored every other time."""
    photograph = photographs[generator.integers(len(photographs))]
    height, width = photograph.shape[:2]
    left, top, right, bottom = part_of(width, height, split)
    x = int(generator.integers(left, right - SIDE + 1))
    y = int(generator.integers(top, bottom - SIDE + 1))
    crop = photograph[y : y + SIDE, x : x + SIDE]
    return crop[:, ::-1] if generator.random() < 0.5 else crop


def _write(path: Path, column: str, rows: list[tuple[str, str]]) -> None:
    lines = [f"img_name,{column}", *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
