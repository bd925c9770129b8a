"""The embedded demo set: a real forensic task made from the photographs inside scikit-learn.

A real image is a crop of one of the two photographs. A fake is such a crop with a region blended
in that comes from another crop of the same photograph, after resampling and a shift of its colours:
what a face swap does. Real crops and donors go through one and the same steps, so neither colours
nor sharpness tell a fake; only the disagreement between the region and what surrounds it does.
Training and validation images come from different parts of the photographs.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_sample_image

VERSION = "3"
"""Part of the folder's name: a new recipe never mixes with images of an old one."""

SEED = 0

SIDE = 64
"""Side of an image in pixels: 96 costs two CPU cores 2.3 times as long and teaches no more."""

TRAIN_REALS = 600
VAL_REALS = 300
"""Each real crop has one fake made from it, and both are a group."""

SOURCE_SIDE = (56, 112)
"""Side in pixels of the square of the photograph that becomes a crop: some are enlarged a little,
some are reduced, so that being resampled is no sign of a fake."""

SMALLEST_CONTRAST = 12.0
"""Smallest standard deviation of a crop, in levels of 255; in plain sky nothing could disagree."""

GAIN_SPREAD = 0.12
"""Standard deviation of the logarithm of each channel's gain: another white balance for each crop,
so that a colour that the photographs do not have is no sign of a fake."""

REGION_AREA = (0.2, 0.45)
"""Share of the image that the blended region covers."""

REGION_OFFSET = 0.5
"""How far from the middle the region may lie, as a share of what fits: like a face, it is rather
in the middle (test_resnet learns that faster: AUC 0.97 against 0.94 where it may lie anywhere)."""

REGION_SCALE = (1.3, 2.0)
"""Enlargement of the region before blending; interpolation smooths its finest detail."""

COLOUR_MATCH = 0.7
"""Share of the difference in mean colour to its surroundings that the region is corrected by, as
tools for face swaps do. Without it the colours of a whole image tell a fake (AUC 0.69)."""

COLOUR_SHIFT = 20.0
"""Standard deviation of the shift of each channel that remains, in levels of 255."""

SMALLEST_CHANGE = 14.0
"""Mean change inside the region, in levels of 255, below which another donor is drawn: a fake that
equals the real crop would be a wrong label."""

FEATHER = (0.3, 0.7)
"""Radius in pixels over which the region is blended into its surroundings."""

JPEG_QUALITY = 95
"""With full colour resolution, to keep the seam."""

Pixels = NDArray[np.float64]  # (height, width, 3), 0 to 255


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
        if pixels.std(axis=(0, 1)).mean() >= SMALLEST_CONTRAST:
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


def forge(real: Pixels, donor: Pixels, generator: np.random.Generator) -> Pixels | None:
    """Blends a region of a donor into a real crop.

    Args:
        real: (SIDE, SIDE, 3) crop.
        donor: (SIDE, SIDE, 3) crop from elsewhere in the same part of the photographs.
        generator: draws size, place, scale and colours.

    Returns:
        (SIDE, SIDE, 3) forged image; None where hardly anything would have changed.
    """
    kept = round(SIDE / generator.uniform(*REGION_SCALE))
    left, top = (int(edge) for edge in generator.integers(0, SIDE - kept + 1, 2))
    whole = Image.fromarray(_levels(donor)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + kept, top + kept)
    )
    region = np.asarray(whole, dtype=np.float64)
    mask = draw_mask(generator)[:, :, None]
    difference = ((real - region) * mask).sum(axis=(0, 1)) / mask.sum()
    region = region + COLOUR_MATCH * difference + generator.normal(0.0, COLOUR_SHIFT, 3)
    region = np.clip(region, 0.0, 255.0)
    change = (np.abs(region - real) * mask).sum() / mask.sum() / 3
    return None if change < SMALLEST_CHANGE else mask * region + (1.0 - mask) * real


def draw_mask(generator: np.random.Generator) -> Pixels:
    """(SIDE, SIDE) weights in [0, 1]: an ellipse with soft edges, clear of the image's border."""
    fine = 4 * SIDE  # drawn larger, because Pillow draws without anti-aliasing
    margin = 0.04 * fine
    area = generator.uniform(*REGION_AREA) * fine**2
    aspect = np.exp(generator.uniform(-0.4, 0.4))
    size = 2 * np.sqrt(area * np.array([aspect, 1 / aspect]) / np.pi)
    size = np.minimum(size, fine - 2 * margin)
    room = (fine - size) / 2 - margin
    start = (fine - size) / 2 + REGION_OFFSET * generator.uniform(-1, 1, 2) * room
    mask = Image.new("L", (fine, fine))
    ImageDraw.Draw(mask).ellipse((*start, *(start + size)), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(4 * generator.uniform(*FEATHER)))
    return np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64) / 255.0


def _build(folder: Path) -> None:
    names = {part.photograph for parts in PARTS.values() for part in parts}
    photographs = {name: Image.fromarray(load_sample_image(name)) for name in names}
    for number, (split, reals) in enumerate((("trainset", TRAIN_REALS), ("valset", VAL_REALS))):
        generator = np.random.default_rng((SEED, number))
        (folder / split).mkdir(parents=True)
        rows: list[tuple[str, str, str]] = []
        for index in range(reals):
            group = f"{split}-{index:04d}"
            for target, pixels in enumerate(_draw_pair(photographs, split, generator)):
                name = hashlib.md5(f"{group}-{target}".encode(), usedforsecurity=False).hexdigest()
                rows.append((f"{name}.jpg", str(target), group))
                path = folder / split / f"{name}.jpg"
                Image.fromarray(_levels(pixels)).save(path, quality=JPEG_QUALITY, subsampling=0)
        # By name, which mixes the classes.
        rows.sort()
        _write(folder / f"{split}_label.txt", "target", [(name, row) for name, row, _ in rows])
        _write(folder / f"{split}_group.csv", "group", [(name, group) for name, _, group in rows])
    (folder / "README.txt").write_text(
        f"Demo set of onefold, version {VERSION}, seed {SEED}, made with Pillow {PIL.__version__} "
        f"and NumPy {np.__version__}.\n"
        "0 = real: a crop of a photograph. 1 = fake: the same crop with a region blended in from\n"
        "elsewhere in the photograph, resampled and shifted in colour; both are one group.\n"
        "Training and validation images show different parts of the photographs; crops of one\n"
        "part overlap, so intervals are for new crops of these photographs, not for new ones.\n\n"
        + CREDITS,
        encoding="utf-8",
    )


def _draw_pair(
    photographs: dict[str, Image.Image], split: str, generator: np.random.Generator
) -> tuple[Pixels, Pixels]:
    """A real crop and a fake made from it."""
    part = PARTS[split][int(generator.integers(len(PARTS[split])))]
    photograph = photographs[part.photograph]
    real = draw_crop(photograph, part, generator)
    while True:
        fake = forge(real, draw_crop(photograph, part, generator), generator)
        if fake is not None:
            return real, fake


def _levels(pixels: Pixels) -> NDArray[np.uint8]:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _write(path: Path, column: str, rows: list[tuple[str, str]]) -> None:
    lines = [f"img_name,{column}", *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
