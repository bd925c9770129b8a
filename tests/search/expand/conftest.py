"""Eight groups of a real and a fake, and two reals alone; small, and made here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from search.expand.expand import run_expand
from search.settings.subcommands import ExpandSettings

SIDE = 64
PAIRS, ALONE = 14, 4


def photograph(seed: int, side: int = SIDE) -> Image.Image:
    """Something with structure at several scales, as a photograph has."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8))
    fine = generator.normal(0, 12, (side, side, 3))
    pixels = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)) + fine
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def forged(real: Image.Image, seed: int) -> Image.Image:
    """A square of another image in the middle."""
    pixels = np.array(real)
    pixels[16:48, 16:48] = np.asarray(photograph(1000 + seed))[16:48, 16:48]
    return Image.fromarray(pixels)


def make_images(folder: Path) -> ExpandSettings:
    """Images, their label and group file; and settings that name them, --out beside them."""
    (folder / "images" / "in").mkdir(parents=True)
    labels, groups = ["img_name,target"], ["img_name,group"]
    for number in range(PAIRS + ALONE):
        real = photograph(number)
        found = [(f"in/r{number}.jpg", real, 0)]
        if number < PAIRS:
            found.append((f"f{number}.png", forged(real, number), 1))
        for name, image, target in found:
            image.save(folder / "images" / name)
            labels.append(f"{name},{target}")
            groups.append(f"{name},g{number}")
    (folder / "labels.txt").write_text("\n".join([*labels, ""]), encoding="utf-8")
    (folder / "groups.csv").write_text("\n".join([*groups, ""]), encoding="utf-8")
    return ExpandSettings(
        train_labels=folder / "labels.txt",
        train_images=folder / "images",
        train_groups=folder / "groups.csv",
        kinds="self-blended,mixed,recompressed",
        count=12,
        out=folder / "generated",
    )


@pytest.fixture
def settings(tmp_path: Path) -> ExpandSettings:
    return make_images(tmp_path)


@pytest.fixture
def made(settings: ExpandSettings) -> Path:
    """A complete set."""
    return run_expand(replace(settings, workers=1), Console(quiet=True))
