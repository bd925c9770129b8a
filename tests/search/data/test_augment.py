"""Augmentation policies: shape, determinism, strength; and each degradation alone."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image

from search.data.augment import (
    POLICIES,
    Blur,
    DownAndUp,
    Noise,
    Recompress,
    Shrink,
    eval_transform,
    train_transform,
)
from search.data.images import view
from search.errors import UserError

WITH_STRENGTH = [name for name, policy in POLICIES.items() if policy.has_strength]
WITHOUT_STRENGTH = [name for name, policy in POLICIES.items() if not policy.has_strength]


def picture(width: int = 96, height: int = 80) -> Image.Image:
    """Smooth shapes and edges in many colours, as photographs have."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    channels = [np.sin(9 * x) * np.cos(7 * y), np.hypot(x - 0.4, y - 0.5) < 0.3, x * y]
    return Image.fromarray((np.stack(channels, -1) * 110 + 120).clip(0, 255).astype(np.uint8))


def views(
    policy: str, strength: float, count: int, image: Image.Image | None = None
) -> torch.Tensor:
    transform = train_transform(policy, strength, 32)
    return torch.stack([view(image or picture(), transform, seed) for seed in range(count)])


def test_policies_are_described() -> None:
    assert {"none", "flip", "baseline", "degrade", "randaugment", "strong"} <= set(POLICIES)
    for name, policy in POLICIES.items():
        assert policy.name == name
        assert policy.description
        assert "\n" not in policy.description


@pytest.mark.parametrize("size", [(96, 80), (32, 32), (37, 19), (1, 1), (3, 200)])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_squares_of_bytes(policy: str, size: tuple[int, int]) -> None:
    image = picture(*size)
    before = image.tobytes()
    for strength in (0.0, 1.0):
        images = views(policy, strength, 4, image)
        assert (images.shape, images.dtype) == ((4, 3, 32, 32), torch.uint8)
    assert image.tobytes() == before


@pytest.mark.parametrize("policy", POLICIES)
def test_seeds_and_pickles_give_the_same_views(policy: str) -> None:
    transform = train_transform(policy, 0.7, 32)
    copied = pickle.loads(pickle.dumps(transform))  # noqa: S301 - our own bytes
    images = [view(picture(), transform, seed) for seed in range(12)]
    random.seed(99)
    assert all(
        torch.equal(image, view(picture(), copied, seed)) for seed, image in enumerate(images)
    )
    different = len(torch.stack(images).flatten(1).unique(dim=0))
    assert different == {"none": 1, "flip": 2, "baseline": 4}.get(policy, 12)


@pytest.mark.parametrize("policy", WITH_STRENGTH)
def test_strength_moves_views_away_from_the_image(policy: str) -> None:
    plain = eval_transform(32)(picture()).float()
    flipped = plain.flip(-1)

    def distance(strength: float) -> float:
        images = views(policy, strength, 40).float()
        from_plain, from_flipped = ((images - p).abs().mean((1, 2, 3)) for p in (plain, flipped))
        return torch.minimum(from_plain, from_flipped).mean().item()

    mildest, strongest = distance(0.0), distance(1.0)
    assert strongest > 1.2 * mildest
    assert mildest > 0.2  # of 255: the mildest form is one


@pytest.mark.parametrize("policy", WITHOUT_STRENGTH)
def test_strength_does_nothing_where_it_says_so(policy: str) -> None:
    assert torch.equal(views(policy, 0.0, 6), views(policy, 1.0, 6))


def test_flips_are_flips() -> None:
    plain = eval_transform(32)(picture())
    seen = {image.numpy().tobytes() for image in views("baseline", 0.5, 40)}
    assert seen == {plain.flip(dims).numpy().tobytes() for dims in ([], [-1], [-2], [-1, -2])}


def test_eval_transform_only_resizes() -> None:
    image = picture()
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(eval_transform(32)(image).permute(1, 2, 0).numpy(), expected)
    assert torch.equal(views("none", 0.5, 1)[0], eval_transform(32)(image))


@pytest.mark.parametrize("strength", [-0.01, 1.5, float("nan"), float("inf")])
def test_strength_outside_is_refused(strength: float) -> None:
    with pytest.raises(UserError, match=f"between 0 and 1, found {strength}"):
        train_transform("light", strength, 32)


def test_unknown_policies_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"found 'degarde'; did you mean 'degrade'\?"):
        train_transform("degarde", 0.5, 32)
    with pytest.raises(UserError, match=r"must be one of none, flip, .* found 'xyz'$"):
        train_transform("xyz", 0.5, 32)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(float)


def sharpness(image: Image.Image) -> float:
    return float(np.abs(np.diff(pixels(image), axis=1)).mean())


@pytest.mark.parametrize("step", [Blur(2.5), DownAndUp(4.0)])
def test_blur_and_resizing_take_detail_away(step: Blur | DownAndUp) -> None:
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8))
    random.seed(0)
    softened = [step(image) for _ in range(20)]
    assert all(soft.size == image.size for soft in softened)
    assert np.mean([sharpness(soft) for soft in softened]) < 0.7 * sharpness(image)


def test_noise_has_the_deviation_it_says() -> None:
    random.seed(0)
    torch.manual_seed(0)
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    noisy = [pixels(Noise(20.0)(grey)) - 128 for _ in range(60)]
    deviations = [noise.std() for noise in noisy]
    assert 0.9 < min(deviations) < 5 < 16 < max(deviations) < 21  # uniform between 1 and 20
    alike = [np.ptp(noise, axis=-1).max() == 0 for noise in noisy]
    assert 10 < sum(alike) < 50


def test_recompression_costs_quality() -> None:
    image = picture()

    def loss(lowest: int, most: int) -> float:
        random.seed(0)
        step = Recompress(lowest, most)
        return float(
            np.mean([np.abs(pixels(step(image)) - pixels(image)).mean() for _ in range(30)])
        )

    assert 0 < loss(95, 1) < loss(30, 1) < loss(30, 4)


def test_recompression_uses_both_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    save = Image.Image.save

    def spy(image: Image.Image, stream: object, kind: str, **options: object) -> None:
        used.append((kind, options.get("subsampling")))
        save(image, stream, kind, **options)

    monkeypatch.setattr(Image.Image, "save", spy)
    random.seed(0)
    for _ in range(20):
        Recompress(50, 1)(picture())
    assert set(used) == {("JPEG", 0), ("JPEG", 2), ("WEBP", None)}


def test_shrink_bounds_the_longest_side() -> None:
    image = picture(96, 80)
    assert Shrink(96)(image) is image
    assert Shrink(48)(image).size == (48, 40)
    assert image.size == (96, 80)
