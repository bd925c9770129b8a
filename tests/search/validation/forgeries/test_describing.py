"""Descriptions beside plain references, and blind to what is not a trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from search.machine.device import Runtime
from search.pixels.loading.batches import Batch
from search.training.network import build_network
from search.training.recipe import Recipe
from search.validation.forgeries.describing import (
    BLOCK,
    LUMINANCE,
    SMALLEST_LEVEL,
    SMALLEST_SPREAD,
    STRIDE,
    EarlyMaps,
    Frequencies,
    describe,
)
from search.validation.forgeries.finding import changes_of

RECIPE = Recipe(
    backbone="test_resnet.r160_in1k",
    architecture="test_resnet",
    image_size=32,
    canvas=32,
    weights="none",
)


def noise(count: int, side: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def test_frequencies_are_what_scipy_computes() -> None:
    image = noise(1)
    found = Frequencies()(image.float() / 255)[0].numpy()
    grey = np.tensordot(LUMINANCE, image[0].numpy().astype(np.float64), 1)
    places = range(0, 32 - BLOCK + 1, STRIDE)
    blocks = np.array([[grey[y : y + BLOCK, x : x + BLOCK] for x in places] for y in places])
    amplitudes = np.abs(dctn(blocks, axes=(2, 3), norm="ortho")).mean(axis=(0, 1)).ravel()
    np.testing.assert_allclose(found, np.log(amplitudes + SMALLEST_LEVEL), rtol=1e-4)


def test_early_maps_are_described_by_their_channels() -> None:
    network = build_network(RECIPE)
    images = noise(5).float() / 255
    found = EarlyMaps(network, "a backbone")(images).detach().numpy()
    trunk: Any = network.trunk
    first, second = trunk.forward_intermediates(network.preprocess(images))[1][:2]
    expected = []
    for maps in (first.detach().numpy(), second.detach().numpy()):
        expected += [maps.mean((2, 3)), np.log(maps.std((2, 3), ddof=1) + SMALLEST_SPREAD)]
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), rtol=1e-3, atol=1e-4)


def test_images_that_cannot_be_read_are_nan() -> None:
    batch = Batch(noise(2), torch.tensor([0, 1]), torch.tensor([0, 2]), torch.zeros(2))
    seen: list[int] = []
    found = describe(Frequencies(), [batch], 3, Runtime(torch.device("cpu")), seen.append)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()
    assert seen == [2]


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        # Its own group's real images, their mean; without one, that of all.
        ([1.0, 3.0, 10.0, 20.0, 4.0], [8.0, 20.0 - 8.0 / 3]),
        ([np.nan, 3.0, 10.0, 20.0, 4.0], [7.0, 16.5]),
        ([np.nan, np.nan, 10.0, 20.0, 4.0], [6.0, 16.0]),
        ([np.nan, np.nan, 10.0, 20.0, np.nan], [-5.0, 5.0]),
        ([1.0, 3.0, np.nan, 20.0, 4.0], [np.nan, 20.0 - 8.0 / 3]),
    ],
)
def test_changes_are_counted_from_the_real_image_of_the_group(
    described: list[float], expected: list[float]
) -> None:
    table = pd.DataFrame({"target": [0, 0, 1, 1, 0], "group": ["a", "a", "a", "b", "c"]})
    found = changes_of(np.array(described)[:, None], table)
    np.testing.assert_allclose(found[:, 0], expected)
