"""Fakes mixed with a real: what is fake lies within a soft blob, and enough of it is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from search.pixels.augmentation.blending import SMALLEST_SHARE, mix

SIDE = 64


def pair(seed: int = 0, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """A fake and a real, dark and bright enough for each pixel to tell its share of both."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, side, side)
    fake = torch.randint(0, 50, shape, generator=generator, dtype=torch.uint8)
    return fake, torch.randint(200, 256, shape, generator=generator, dtype=torch.uint8)


def shares_of(mixed: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """How much of each pixel is the fake's, (H, W)."""
    return ((real.float() - mixed.float()) / (real.float() - fake.float())).mean(0)


def test_the_fake_is_seen_within_a_soft_blob_and_the_real_around_it() -> None:
    fake, real = pair()
    found = [mix(fake, real, seed) for seed in range(150)]
    mixed = [one for one in found if not torch.equal(one, fake)]
    assert len(mixed) > 75
    middles = []
    for one in mixed:
        shares = shares_of(one, fake, real)
        # All three channels and both images agree on one share: rounding moves it by 1 / 300.
        expected = torch.lerp(real.float(), fake.float(), shares)
        assert (one.float() - expected).abs().max() < 1.5
        # Much is only the real's, and it lies around.
        assert 0.2 < (shares < 0.01).float().mean() < 0.9
        rows, columns = torch.nonzero(shares > 0.5 * shares.max(), as_tuple=True)
        middles.append([float(rows.float().mean()), float(columns.float().mean())])
        # A soft edge: next to a pixel are pixels of nearly the same share.
        assert shares.diff(dim=1).abs().max() < 0.8
    assert np.abs(np.array(middles) / (SIDE - 1) - 0.5).max() < 0.25
    assert len({one.numpy().tobytes() for one in mixed}) == len(mixed)


def test_a_mix_keeps_enough_of_the_fake_or_the_fake_stays() -> None:
    """A blob beside the forged region would make a real that is called fake."""
    _, real = pair()
    fake, stayed = real.clone(), 0
    fake[:, 12:32, 6:26] = 0
    for seed in range(200):
        found = mix(fake, real, seed)
        kept, whole = ((one.int() - real.int()).abs().sum() for one in (found, fake))
        assert kept >= SMALLEST_SHARE * whole
        stayed += torch.equal(found, fake)
    assert 10 < stayed < 150


def test_a_mix_is_a_function_of_both_images_and_the_seed() -> None:
    fake, real = pair()
    before = fake.clone(), real.clone()
    threads = torch.get_num_threads()
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        torch.manual_seed(number)
        found.append([mix(fake, real, seed) for seed in range(10)])
    torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert torch.equal(fake, before[0])
    assert torch.equal(real, before[1])


@pytest.mark.parametrize("side", [1, 2, 17])
def test_images_of_any_size_are_mixed(side: int) -> None:
    fake, real = pair(side=side)
    assert {mix(fake, real, seed).shape for seed in range(20)} == {fake.shape}


def test_a_fake_that_is_its_real_stays() -> None:
    fake, _ = pair()
    assert all(torch.equal(mix(fake, fake.clone(), seed), fake) for seed in range(20))
