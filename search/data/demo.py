"""The embedded demo set: a real forensic task made from the photographs inside scikit-learn.

A real image is a crop of one of the two photographs. A fake is such a crop with a region forged by
one of several methods, see `search.data.forging`, which the group file names. Real crops and donors
go through one and the same steps, so neither colours nor sharpness of a whole image tell a fake;
only the disagreement between the region and what surrounds it does. Training and validation images
come from different parts of the photographs.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image
from sklearn.datasets import load_sample_image

from search.data.forging import METHODS, Pixels, forge, levels

VERSION = "5"
"""Part of the folder's name: a new recipe never mixes with images of an old one."""

SEED = 0

SIDE = 64
"""Side of an image in pixels: 96 costs two CPU cores 2.3 times as long and teaches no more."""

TRAIN_REALS = 600
VAL_REALS = 300
"""Each real crop has one fake made from it, and both are a group. The methods take turns."""

SOURCE_SIDE = (56, 112)
"""Side in pixels of the square of the photograph that becomes a crop: some are enlarged a little,
some are reduced, so that being resampled is no sign of a fake."""

SMALLEST_CONTRAST = 12.0
"""Smallest standard deviation of a crop, in levels of 255; in plain sky nothing could disagree."""

GAIN_SPREAD = 0.12
"""Standard deviation of the logarithm of each channel's gain: another white balance for each crop,
so that a colour that the photographs do not have is no sign of a fake."""

JPEG_QUALITY = 95
"""With full colour resolution, to keep the seam."""


@dataclass(frozen=True)
class Part:
    """Columns of a photograph that one split may show, over the whole height."""

    photograph: str
    left: int
    right: int


# Both splits see roof, trees and water, petals and leaves. The 16 columns between two parts are two
# blocks of the photographs' own JPEG compression: no block is shared.
PARTS: dict[str, tuple[Part, ...]] = {
    "trainset": (Part("china.jpg", 224, 640), Part("flower.jpg", 0, 344)),
    "valset": (Part("china.jpg", 0, 208), Part("flower.jpg", 360, 640)),
}

CREDITS = """\
china.jpg is by danielbuechele, https://www.flickr.com/photos/danielbuechele/6061409035/
flower.jpg is at https://www.flickr.com/photos/vultilion/6056698931/
Both are under the Creative Commons Attribution 2.0 licence,
https://creativecommons.org/licenses/by/2.0/, and come with scikit-learn, whose file
datasets/images/README.txt says so. They were cropped, resized, coloured and blended here.
"""


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

    It is built beside its place and renamed when complete, so an interrupted build leaves nothing
    that looks finished. Two builds with the same Pillow and NumPy are equal to the byte.

    Args:
        folder: where to put it; made if absent.
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
                # Another process was faster; its images are the same.
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


def draw_crop(photograph: Image.Image, part: Part, generator: np.random.Generator) -> Pixels:
    """A (SIDE, SIDE, 3) crop of a part: resized, mirrored every other time, in another light."""
    while True:
        square = draw_square(part, photograph.height, generator)
        # Cropped first: resizing must not look over the border of the part.
        crop = photograph.crop(square).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pixels = np.asarray(crop, dtype=np.float64)
        if generator.random() < 0.5:
            pixels = pixels[:, ::-1]
        channels = np.ascontiguousarray(pixels.reshape(-1, 3).T)  # 20 times as fast to sum
        if channels.std(axis=1).mean() >= SMALLEST_CONTRAST:
            gain = np.exp(generator.normal(0.0, GAIN_SPREAD, 3))
            return np.clip(pixels * gain, 0.0, 255.0)


def draw_square(
    part: Part, height: int, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """A square inside a part of a photograph so high, as (left, top, right, bottom)."""
    side = int(generator.integers(SOURCE_SIDE[0], SOURCE_SIDE[1] + 1))
    left = int(generator.integers(part.left, part.right - side + 1))
    top = int(generator.integers(0, height - side + 1))
    return left, top, left + side, top + side


def _build(folder: Path) -> None:
    names = {part.photograph for parts in PARTS.values() for part in parts}
    photographs = {name: Image.fromarray(load_sample_image(name)) for name in names}
    for number, (split, reals) in enumerate((("trainset", TRAIN_REALS), ("valset", VAL_REALS))):
        generator = np.random.default_rng((SEED, number))
        (folder / split).mkdir(parents=True)
        rows: list[tuple[str, str, str, str]] = []
        for index in range(reals):
            group, method = f"{split}-{index:04d}", METHODS[index % len(METHODS)]
            pair = _draw_pair(photographs, split, method, generator)
            for target, pixels in enumerate(pair):
                # The version: a run on the images of an old one must not go on with others.
                token = f"v{VERSION}-{group}-{target}"
                name = f"{hashlib.md5(token.encode(), usedforsecurity=False).hexdigest()}.jpg"
                rows.append((name, str(target), group, method if target else "real"))
                path = folder / split / name
                Image.fromarray(levels(pixels)).save(path, quality=JPEG_QUALITY, subsampling=0)
        # By name, which mixes the classes.
        rows.sort()
        _write(folder / f"{split}_label.txt", "img_name,target", [row[:2] for row in rows])
        groups = [(name, group, method) for name, _, group, method in rows]
        _write(folder / f"{split}_group.csv", "img_name,group,method", groups)
    (folder / "README.txt").write_text(
        f"Demo set of onefold, version {VERSION}, seed {SEED}, made with Pillow {PIL.__version__} "
        f"and NumPy {np.__version__}.\n"
        "0 = real: a crop of a photograph. 1 = fake: the same crop with a region forged by one of\n"
        f"{len(METHODS)} methods ({', '.join(METHODS)}); both are one group.\n"
        "Training and validation images show different parts of the photographs; crops of one\n"
        "part overlap, so intervals are for new crops of these photographs, not for new ones.\n\n"
        + CREDITS,
        encoding="utf-8",
    )


def _draw_pair(
    photographs: dict[str, Image.Image], split: str, method: str, generator: np.random.Generator
) -> tuple[Pixels, Pixels]:
    """A real crop and a fake made from it."""
    while True:
        part = PARTS[split][int(generator.integers(len(PARTS[split])))]
        photograph = photographs[part.photograph]
        real, donor = (draw_crop(photograph, part, generator) for _ in range(2))
        # Another crop, not only another donor: some methods change nothing without detail.
        fake = forge(method, real, donor, generator)
        if fake is not None:
            return real, fake


def _write(path: Path, header: str, rows: Sequence[tuple[str, ...]]) -> None:
    lines = [header, *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
