"""What is added to views: off by default, each by itself, and a function of (image, seed)."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from search.errors import UserError
from search.pixels.augmentation.additions import NOTHING, Additions
from search.pixels.augmentation.augment import Augmentation, render
from search.pixels.augmentation.degradation import COMPRESS, compress
from search.pixels.augmentation.geometry import resize

SIDE, SIZE = 48, 32
ALL: dict[str, Any] = {"compression_quality": 60, "degradation_rounds": 2, "patch_masking": 0.3}
EACH = [*({name: value} for name, value in ALL.items()), ALL]


def canvases(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(small, SIDE, mode="bicubic").clamp(0, 1)
    return (255 * smooth).to(torch.uint8)


def prepared(augmentation: Augmentation, images: Tensor, seeds: Tensor) -> Tensor:
    pairs = zip(images, seeds.tolist(), strict=True)
    return torch.stack([augmentation.prepare(image, seed) for image, seed in pairs])


def test_nothing_is_added_until_it_is_asked_for() -> None:
    for policy in ("none", "light", "strong"):
        plain, same = Augmentation(policy, 0.7), Augmentation(policy, 0.7, Additions())
        assert [plain.draw(seed, SIDE) for seed in range(20)] == [
            same.draw(seed, SIDE) for seed in range(20)
        ]


@pytest.mark.parametrize("added", EACH)
@pytest.mark.parametrize("policy", ["none", "strong"])
def test_the_policy_draws_what_it_would_anyway(policy: str, added: dict[str, Any]) -> None:
    for seed in range(30):
        own = Augmentation(policy, 0.7).draw(seed, SIDE)
        for number in (seed, ~seed):
            view = Augmentation(policy, 0.7, Additions(**added)).draw(number, SIDE)
            assert view.box == own.box
            assert view.before[len(view.before) - len(own.before) :] == own.before
            assert view.after[: len(own.after)] == own.after


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("added", EACH)
@pytest.mark.parametrize("policy", ["none", "strong"])
def test_views_depend_on_no_batch(policy: str, added: dict[str, Any]) -> None:
    """Nor on whether a worker has done a part of them; half of them are blended."""
    augmentation = Augmentation(policy, 0.7, Additions(**added))
    augmentation = pickle.loads(pickle.dumps(augmentation))  # noqa: S301 - our own
    images, seeds = canvases(12), torch.arange(12)
    seeds[::2] = ~seeds[::2]
    before = images.clone()
    ready = prepared(augmentation, images, seeds)
    whole = render(ready, seeds, augmentation, SIZE)
    assert torch.equal(whole, render(images, seeds, augmentation, SIZE, prepared=False))
    for number in (11, 3, 0):
        one = slice(number, number + 1)
        assert torch.equal(render(ready[one], seeds[one], augmentation, SIZE), whole[one])
    assert torch.equal(images, before)


def test_every_image_is_compressed_alike_and_first() -> None:
    augmentation = Augmentation("none", 0.0, Additions(compression_quality=60))
    images = canvases(3)
    shown = render(images, torch.arange(3), augmentation, SIDE, prepared=False)
    assert torch.equal(shown, torch.stack([compress(image, 0, 60, 1) for image in images]))


def test_rounds_are_more_and_other_degradations() -> None:
    def steps(rounds: int) -> list[list[str]]:
        augmentation = Augmentation("none", 1.0, Additions(degradation_rounds=rounds))
        views = [augmentation.draw(seed, SIDE) for seed in range(300)]
        return [[name for name, _ in view.before] for view in views]

    one, three = steps(1), steps(3)
    assert sum(map(len, three)) == pytest.approx(3 * sum(map(len, one)), rel=0.1)
    assert any(names.count(COMPRESS) > 1 for names in three)
    assert all(names.count(COMPRESS) <= 1 for names in one)
    # In any order.
    assert {names[0] for names in one if names} == {"blur", "down_and_up", "noise", COMPRESS}


def test_a_negative_seed_shows_a_blend_before_anything_else() -> None:
    augmentation = Augmentation("none", 0.0, Additions(compression_quality=60))
    names = [name for name, _ in augmentation.draw(~5, SIDE).before]
    assert names == ["self_blend", COMPRESS]
    images, seeds = canvases(4), torch.tensor([~5, 5, ~6, 6])
    shown = render(images, seeds, Augmentation("none", 0.0), SIDE, prepared=False)
    differ = [
        not torch.equal(one, own) for one, own in zip(shown, resize(images, SIDE), strict=True)
    ]
    assert differ == [True, False, True, False]


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"compression_quality": 96}, "between 0, for none, and 95, found 96"),
        ({"compression_quality": -1}, "found -1"),
        ({"degradation_rounds": -1}, "must be 0 or more, found -1"),
        ({"patch_masking": 1.0}, "less than 1, found 1.0"),
        ({"patch_masking": float("nan")}, "found nan"),
    ],
)
def test_what_is_out_of_range_is_told(added: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Additions(**added)
    assert Additions() == NOTHING
