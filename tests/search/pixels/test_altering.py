from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from search.pixels.altering import (
    ALTERATIONS,
    CLEAN,
    KINDS,
    SUBSET,
    Alteration,
    AlterationKind,
    seed_of,
)

CASES = [pytest.param(kind, id=kind.name) for kind in KINDS.values()]


def picture(width: int = 384, height: int = 256) -> Image.Image:
    """Smooth colours with some detail."""
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (8, 12, 3), dtype=np.uint8))
    levels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    levels += generator.normal(0, 6, levels.shape)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def distance(altered: Image.Image, image: Image.Image) -> float:
    """Mean change of a level, seen at the size of the image."""
    seen = altered.resize(image.size, Image.Resampling.BILINEAR)
    return float(np.abs(np.asarray(seen, np.float64) - np.asarray(image, np.float64)).mean())


def altered(kind: AlterationKind, strength: float, name: str = "a.png") -> Image.Image:
    return Alteration(kind.name, strength).apply(picture(), name)


@pytest.mark.parametrize("kind", CASES)
def test_a_stronger_one_alters_more(kind: AlterationKind) -> None:
    image = picture()
    distances = [distance(altered(kind, strength), image) for strength in kind.strengths]
    assert distances[0] > 0.1
    assert distances == sorted(distances)
    assert len(set(distances)) == len(distances)


@pytest.mark.parametrize("kind", CASES)
def test_images_stay_rgb_and_keep_their_size_where_that_is_said(kind: AlterationKind) -> None:
    image = picture()
    for strength in kind.strengths:
        found = Alteration(kind.name, strength).apply(image, "a.png")
        assert found.mode == "RGB"
        assert (found.size == image.size) == kind.keeps_size
    assert image.tobytes() == picture().tobytes()  # left as it was


@pytest.mark.parametrize("kind", CASES)
def test_one_pixel_is_enough(kind: AlterationKind) -> None:
    pixel = Image.new("RGB", (1, 1), (10, 200, 90))
    for strength in kind.strengths:
        assert Alteration(kind.name, strength).apply(pixel, "a.png").size == (1, 1)


@pytest.mark.parametrize("kind", CASES)
def test_only_the_name_decides(kind: AlterationKind) -> None:
    strongest = kind.strengths[-1]
    first, other = altered(kind, strongest), altered(kind, strongest, "b.png")
    assert first.tobytes() == altered(kind, strongest).tobytes()
    assert (first.tobytes() == other.tobytes()) == (kind.name not in ("noise", "crop"))


def test_a_seed_never_changes() -> None:
    """Else figures of before could not be compared with those of now."""
    assert seed_of("folder/ä.png", "noise") == 11228345604515554698


def test_the_subset_is_among_them_and_clean_alters_nothing() -> None:
    assert set(SUBSET) < set(ALTERATIONS)
    image = picture()
    assert CLEAN.apply(image, "a.png") is image


def test_grey_is_grey_and_twice_is_not_once() -> None:
    red, green, blue = altered(KINDS["grey"], 1.0).split()
    assert red.tobytes() == green.tobytes() == blue.tobytes()
    once, twice = (altered(KINDS[name], 50.0) for name in ("jpeg", "jpeg-twice"))
    assert once.tobytes() != twice.tobytes()
