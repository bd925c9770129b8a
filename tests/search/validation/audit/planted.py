"""Small label files and images with one leak planted, or none."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from search.data.generated import GENERATED, Generated
from search.data.splits import Splits
from search.settings.subcommands import AuditSettings

CLASS_IMAGES = {"trainset": 60, "valset": 30}

IN_HEADERS = ("format", "dimensions", "compression", "bytes", "time", "name", "camera")
CONFLICTS = ("conflict", "near conflict")
IN_COPIES = ("duplicates", "near duplicates", *CONFLICTS)
PLANTS = (*IN_HEADERS, *IN_COPIES)

CARRIERS = {
    "camera": "EXIF and header entries",
    "near duplicates": "duplicates",
    "near conflict": "conflict",
}
"""How findings call them, where it is not the same."""


@dataclass(frozen=True)
class Writing:
    """How one image is written."""

    name: str
    side: int = 64
    quality: int = 90
    format: str = "JPEG"
    camera: str = ""


def draw(generator: np.random.Generator, side: int) -> Image.Image:
    """Blobs and a little noise; no two alike."""
    coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    blobs = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    noise = generator.normal(0.0, 6.0, (side, side, 3))
    return Image.fromarray(np.clip(np.asarray(blobs) + noise, 0, 255).astype(np.uint8))


def make_set(folder: Path, plant: str | None, seed: int = 0) -> AuditSettings:
    """Writes a training and a validation set in which names, sizes, qualities and times have
    nothing to do with labels, but for what is planted."""
    generator = np.random.default_rng(seed)
    copies_lie_in = "trainset" if plant in CONFLICTS else "valset"
    train: dict[str, int] = {}
    for split, images in CLASS_IMAGES.items():
        (folder / split).mkdir(parents=True)
        rows: dict[str, int] = {}
        for number in range(2 * images):
            target = number % 2
            writing = _writing(split, number, target, plant, seed, generator)
            path = folder / split / writing.name
            _write(draw(generator, writing.side), path, writing)
            late = plant == "time" and target == 1
            age = float(generator.uniform(0, 1e6)) + 2e6 * late
            os.utime(path, (1.7e9 + age, 1.7e9 + age))
            rows[writing.name] = target
        train = train or rows
        if plant in IN_COPIES and split == copies_lie_in:
            rows = rows | _copies(folder, split, plant, train)
        lines = ["img_name,target", *(f"{name},{target}" for name, target in rows.items())]
        (folder / f"{split}_label.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return AuditSettings(
        train_labels=folder / "trainset_label.txt",
        train_images=folder / "trainset",
        val_labels=folder / "valset_label.txt",
        val_images=folder / "valset",
        workers=1,
        out=folder / "out",
    )


def add_samples(splits: Splits, folder: Path, count: int = 20) -> Splits:
    """Splits with generated samples as `search expand` adds them: BMP files, all fake, of which the
    last two are equal."""
    generator = np.random.default_rng(0)
    images = [draw(generator, 64) for _ in range(count - 1)]
    folder.mkdir()
    paths = [folder / f"{number}.bmp" for number in range(count)]
    for path, image in zip(paths, [*images, images[-1]], strict=True):
        image.save(path)
    rows = splits.fit.sample(count, random_state=0).assign(
        img_name=[f"{GENERATED}/{path.name}" for path in paths],
        path=list(map(str, paths)),
        target=1,
    )
    generated = Generated("0" * 64, "1.0", 0, {"self-blended": count})
    fit = pd.concat([splits.fit, rows], ignore_index=True)
    return replace(splits, fit=fit, generated=generated)


def _writing(
    split: str,
    number: int,
    target: int,
    plant: str | None,
    seed: int,
    generator: np.random.Generator,
) -> Writing:
    """What is drawn for one image, and what is planted in it."""
    stem = hashlib.md5(f"{split} {number} {seed}".encode(), usedforsecurity=False).hexdigest()[:16]
    quality = int(generator.integers(80, 96))
    side = int(generator.integers(60, 69))
    name, form, camera = f"{stem}.jpg", "JPEG", ""
    if plant == "format" and target:
        form = "PNG"  # under the name of a JPEG
    if plant == "dimensions":
        side += 6 * target
    if plant == "compression":
        quality -= 16 * target
    if plant == "bytes":
        form, quality = "WEBP", 95 - 60 * target
    if plant == "name":
        name = f"{'fake' if target else 'photo'}_{stem[:6]}.jpg"
    if plant == "camera" and not target:
        camera = "Reflex 5"
    return Writing(name, side, quality, form, camera)


def _write(image: Image.Image, path: Path, writing: Writing) -> None:
    exif = Image.Exif()
    if writing.camera:
        exif[0x0110] = writing.camera
    image.save(path, writing.format, quality=writing.quality, exif=exif)


def _copies(folder: Path, split: str, plant: str, train: dict[str, int]) -> dict[str, int]:
    """More images of a split and their labels: copies of training images, as they are or
    compressed anew; as conflicts they have the other label."""
    found = {}
    for name, target in list(train.items())[:20]:
        source = folder / "trainset" / name
        copied = folder / split / f"{source.stem[::-1]}.jpg"
        if plant.startswith("near"):
            with Image.open(source) as image:
                smaller = image.resize((image.width * 3 // 4, image.height * 3 // 4))
                smaller.save(copied, quality=70)
            shutil.copystat(source, copied)
        else:
            shutil.copy2(source, copied)
        found[copied.name] = 1 - target if plant in CONFLICTS else target
    return found
