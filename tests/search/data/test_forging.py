"""Forgeries: each changes its region, clearly and in its own way, and nothing outside."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from search.data import forging
from search.data.demo import PARTS, SIDE, draw_crop
from search.data.forging import FEATHER, METHODS, SMALLEST_CHANGE, Pixels, draw_mask, forge

INSIDE = slice(3 * SIDE // 8, -3 * SIDE // 8), slice(3 * SIDE // 8, -3 * SIDE // 8)


def test_there_are_several_methods() -> None:
    assert len(METHODS) >= 5
    assert set(SMALLEST_CHANGE) == set(METHODS)


def test_a_mask_covers_what_it_should_and_leaves_the_border_alone() -> None:
    generator = np.random.default_rng(0)
    masks = [draw_mask(SIDE, FEATHER, generator) for _ in range(200)]
    low, high = forging.REGION_AREA
    for mask in masks:
        assert low - 0.02 < mask.mean() < high + 0.02
        edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert edge.max() < 0.1
    grid = np.indices((SIDE, SIDE))
    middles = [(mask * grid).sum(axis=(1, 2)) / mask.sum() for mask in masks]
    assert np.std(middles, axis=0).min() > 0.3, "the region is always in one place"


def forged(method: str, count: int) -> list[tuple[Pixels, Pixels]]:
    """Crops and what was made of them, where something could be."""
    generator = np.random.default_rng(0)
    photograph = Image.fromarray(load_sample_image("china.jpg"))
    part = PARTS["trainset"][0]
    pairs = []
    for _ in range(count):
        real, donor = (draw_crop(photograph, part, generator) for _ in range(2))
        fake = forge(method, real, donor, generator)
        if fake is not None:
            pairs.append((real, fake))
    return pairs


@pytest.mark.parametrize("method", METHODS)
def test_a_forgery_changes_its_region_clearly_and_nothing_outside(method: str) -> None:
    pairs = forged(method, 50)
    assert len(pairs) > 25
    for real, fake in pairs:
        change = np.abs(fake - real).mean(axis=2)
        assert fake.min() >= 0
        assert fake.max() <= 255 + 1e-9  # a weighted mean, rounded
        assert change[[0, -1]].max() < 20
        # A fifth of the smallest region: pixels may agree here and there.
        assert (change > SMALLEST_CHANGE[method] / 2).mean() > forging.REGION_AREA[0] / 5
        assert (change > 1.0).mean() < forging.REGION_AREA[1] + 0.25


def test_methods_leave_different_traces() -> None:
    """Beside the real crop, inside the region: how much fine detail there is, and how much the
    colours are others."""

    def detail(pixels: Pixels) -> float:
        return 1.0 + float(np.abs(np.diff(pixels[INSIDE], 2, axis=1)).mean())

    finer, recoloured = {}, {}
    for method in METHODS:
        pairs = forged(method, 30)
        finer[method] = np.mean([np.log(detail(fake) / detail(real)) for real, fake in pairs])
        shifts = [(fake[INSIDE] - real[INSIDE]).mean((0, 1)) for real, fake in pairs]
        recoloured[method] = np.abs(shifts).mean()
    foreign = {"splice", "blend", "copy-move"}
    alike = max(recoloured[method] for method in set(METHODS) - foreign)
    assert min(recoloured[method] for method in foreign) > 2 * alike
    assert max(finer["resample"], finer["smooth"]) < finer["copy-move"]


@pytest.mark.parametrize("method", METHODS)
def test_what_would_change_nothing_is_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for shift in ("COLOUR_SHIFT", "WIDE_COLOUR_SHIFT", "LIGHT_SHIFT"):
        monkeypatch.setattr(forging, shift, 0.0)
    flat = np.full((SIDE, SIDE, 3), 100.0)
    assert forge(method, flat, flat, np.random.default_rng(0)) is None
