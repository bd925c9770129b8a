"""Operations on batches, each beside what Pillow, torchvision or timm make of one image."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from timm.data import auto_augment as timm_operations
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from search.machine.device import fast_float32, widest_float
from search.pixels.augmentation import colours
from search.pixels.augmentation.alterations import OPERATIONS, alter_one_by_one, alter_together
from search.pixels.augmentation.blending import REACH, blob, draw_blend
from search.pixels.augmentation.geometry import (
    PATCHES,
    Filter,
    crop_resize,
    crop_resize_together,
    resize,
    rotation,
)

SIDE = 72
BOXES = [(0, 0, 72, 72), (3, 10, 61, 50), (40, 0, 9, 30), (71, 71, 1, 1)]
PILLOW = {1: Image.Resampling.BILINEAR, 2: Image.Resampling.BICUBIC, 3: Image.Resampling.LANCZOS}


def canvas(seed: int, side: int = SIDE) -> Tensor:
    """Smooth colours, sharp edges, texture and a few extreme levels: (3, side, side)."""
    generator = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    waves = [
        np.sin(a * x + b) * np.cos(c * y) for a, b, c in generator.uniform(2, 9, (3, 3)).tolist()
    ]
    disc = np.hypot(x - generator.random(), y - generator.random()) < 0.3
    pixels = np.stack(waves) * 90 + 110 + disc * 40 + generator.normal(0, 6, (3, side, side))
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


def picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def furthest(image: Tensor, other: Tensor) -> int:
    return int((image.int() - other.int()).abs().max())


CANVASES = torch.stack([canvas(seed) for seed in range(len(BOXES))])


@pytest.mark.parametrize("size", [24, 72, 100])
def test_crops_are_resized_once_as_pillow_does(size: int) -> None:
    boxes = torch.tensor(BOXES)
    cropped = crop_resize(CANVASES, boxes, size)
    for image, own, (top, left, height, width) in zip(cropped, CANVASES, BOXES, strict=True):
        crop = picture(own).crop((left, top, left + width, top + height))
        assert furthest(image, pixels(crop.resize((size, size), PILLOW[1]))) <= 1


@pytest.mark.parametrize("size", [24, 72, 100])
def test_crops_of_a_whole_batch_are_alike(size: int) -> None:
    boxes = torch.tensor(BOXES)
    together = crop_resize_together(CANVASES, boxes, size)
    assert furthest(together, crop_resize(CANVASES, boxes, size)) <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU to crop on")
def test_crops_are_the_same_on_a_gpu_that_trains() -> None:
    """Its products are in TF32 then, which has half the digits."""
    boxes, device = torch.tensor(BOXES), torch.device("cuda")
    with fast_float32(device):
        found = crop_resize(CANVASES.to(device), boxes, 100)
    assert found.is_cuda
    assert furthest(found.cpu(), crop_resize_together(CANVASES, boxes, 100)) <= 1


def test_a_device_without_float64_alters_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    assert widest_float(torch.device("mps")) is torch.float32
    parameters = torch.tensor([(1.0, 0.6, 1.0, 0.0, 0, 1, 2, 3)] * len(CANVASES))
    expected = OPERATIONS["jitter"](CANVASES, parameters)
    monkeypatch.setattr(colours, "widest_float", lambda _: torch.float32)
    assert furthest(OPERATIONS["jitter"](CANVASES, parameters), expected) <= 1


@pytest.mark.parametrize("size", [24, 72, 100])
def test_whole_images_are_resized_as_pillow_does(size: int) -> None:
    for image, own in zip(resize(CANVASES, size), CANVASES, strict=True):
        assert furthest(image, pixels(picture(own).resize((size, size), PILLOW[1]))) <= 1


def down_and_up(small: int, down: int, up: int) -> Callable[[Image.Image], Image.Image]:
    def both(image: Image.Image) -> Image.Image:
        return image.resize((small, small), PILLOW[down]).resize(image.size, PILLOW[up])

    return both


def jitter(order: tuple[int, ...], *factors: float) -> Callable[[Image.Image], Image.Image]:
    names = ("brightness", "contrast", "saturation", "hue")

    def changed(image: Image.Image) -> Image.Image:
        for number in order:
            image = getattr(reference, f"adjust_{names[number]}")(image, factors[number])
        return image

    return changed


def timm(name: str, *amounts: float, **options: object) -> Callable[[Image.Image], Image.Image]:
    return lambda image: getattr(timm_operations, name)(image, *amounts, **options)


def affine(name: str, amount: float, kind: Filter) -> Callable[[Image.Image], Image.Image]:
    options = {"resample": PILLOW.get(kind, Image.Resampling.NEAREST)}
    return timm(name, amount, fillcolor=(128, 128, 128), **options)


def erase(image: Image.Image) -> Image.Image:
    out = image.copy()
    out.paste((0, 0, 0), (36, 18, 54, 63))
    return out


LINEAR, CUBIC = Filter.BILINEAR, Filter.BICUBIC
CASES: list[tuple[str, tuple[float, ...], Callable[[Image.Image], Image.Image], float, float]] = [
    # operation, parameters, reference, levels of difference at most and in the mean
    ("mirror", (-1,), ImageOps.mirror, 0, 0),
    ("mirror", (-2,), ImageOps.flip, 0, 0),
    ("jitter", (1.4, 1, 1, 0, 0, 1, 2, 3), jitter((0,), 1.4), 0, 0),
    ("jitter", (0.6, 1, 1, 0, 0, 1, 2, 3), jitter((0,), 0.6), 0, 0),
    ("jitter", (1, 1.5, 1, 0, 0, 1, 2, 3), jitter((1,), 0, 1.5), 0, 0),
    ("jitter", (1, 0.5, 1, 0, 0, 1, 2, 3), jitter((1,), 0, 0.5), 0, 0),
    ("jitter", (1, 1, 1.5, 0, 0, 1, 2, 3), jitter((2,), 0, 0, 1.5), 1, 0.3),
    ("jitter", (1, 1, 0.3, 0, 0, 1, 2, 3), jitter((2,), 0, 0, 0.3), 1, 0.3),
    ("jitter", (1, 1, 1, 25 / 256, 0, 1, 2, 3), jitter((3,), 0, 0, 0, 0.1), 6, 0.5),
    ("jitter", (1, 1, 1, -25 / 256, 0, 1, 2, 3), jitter((3,), 0, 0, 0, -0.1), 6, 0.5),
    ("jitter", (1.3, 0.6, 1.5, 0.0, 2, 0, 1, 3), jitter((2, 0, 1), 1.3, 0.6, 1.5), 3, 0.9),
    ("jitter", (1.3, 0.6, 1.5, 0.0, 1, 3, 0, 2), jitter((1, 0, 2), 1.3, 0.6, 1.5), 3, 0.9),
    ("grayscale", (), lambda image: image.convert("L").convert("RGB"), 0, 0),
    ("autocontrast", (), ImageOps.autocontrast, 0, 0),
    ("equalize", (), ImageOps.equalize, 0, 0),
    ("invert", (), ImageOps.invert, 0, 0),
    ("posterize", (3,), timm("posterize", 3), 0, 0),
    ("posterize", (1,), timm("posterize", 1), 0, 0),
    ("posterize", (8,), timm("posterize", 8), 0, 0),
    ("solarize", (100,), timm("solarize", 100), 0, 0),
    ("solarize", (256,), timm("solarize", 256), 0, 0),
    ("solarize_add", (60,), timm("solarize_add", 60), 0, 0),
    ("sharpen", (1.9,), lambda image: ImageEnhance.Sharpness(image).enhance(1.9), 0, 0),
    ("sharpen", (0.1,), lambda image: ImageEnhance.Sharpness(image).enhance(0.1), 0, 0),
    ("blur", (0.1,), lambda image: image.filter(ImageFilter.GaussianBlur(0.1)), 0, 0),
    ("blur", (0.8,), lambda image: image.filter(ImageFilter.GaussianBlur(0.8)), 2, 0.5),
    ("blur", (2.5,), lambda image: image.filter(ImageFilter.GaussianBlur(2.5)), 5, 0.3),
    ("down_and_up", (20, 1, 2), down_and_up(20, 1, 2), 2, 0.5),
    ("down_and_up", (50, 2, 1), down_and_up(50, 2, 1), 2, 0.5),
    ("down_and_up", (33, 3, 1), down_and_up(33, 3, 1), 2, 0.4),
    ("down_and_up", (71, 2, 3), down_and_up(71, 2, 3), 2, 0.4),
    ("down_and_up", (1, 1, 1), down_and_up(1, 1, 1), 0, 0),
    ("affine", (*rotation(17), LINEAR), affine("rotate", 17, LINEAR), 2, 0.3),
    ("affine", (*rotation(-30), CUBIC), affine("rotate", -30, CUBIC), 4, 0.4),
    ("affine", (1, 0.2, 0.2, 0, 1, 0, LINEAR), affine("shear_x", 0.2, LINEAR), 2, 0.3),
    ("affine", (1, 0, 0, 0.2, 1, 0.2, LINEAR), affine("shear_y", 0.2, LINEAR), 2, 0.3),
    ("affine", (1, 0, 0.5, 0, 1, 0, LINEAR), affine("translate_x_rel", 0.25, LINEAR), 2, 0.3),
    ("affine", (1, 0, 0, 0, 1, -0.5, CUBIC), affine("translate_y_rel", -0.25, CUBIC), 2, 0.3),
    ("erase", (0.25, 0.5, 0.625, 0.25), erase, 0, 0),
]


@pytest.mark.parametrize(("name", "parameters", "expected", "most", "mean"), CASES)
def test_operations_are_those_of_pillow(
    name: str,
    parameters: tuple[float, ...],
    expected: Callable[[Image.Image], Image.Image],
    most: float,
    mean: float,
) -> None:
    steps = [[(name, parameters)]] * len(CANVASES)
    before = CANVASES.clone()
    for alter in (alter_one_by_one, alter_together):
        for image, own in zip(alter(CANVASES, steps), CANVASES, strict=True):
            wanted = pixels(expected(picture(own)))
            differences = (image.float() - wanted.float()).abs()
            # Pillow counts a pixel on the edge of a turned image to one side or the other.
            assert (differences > most).float().mean() <= (0.01 if name == "affine" else 0)
            assert differences.mean() <= mean
    assert torch.equal(CANVASES, before)


def test_every_operation_has_a_case() -> None:
    elsewhere = {"noise", "hide_patches", "self_blend"}
    assert {name for name, *_ in CASES} | elsewhere == set(OPERATIONS)


def test_batches_alter_each_image_its_own_way() -> None:
    rng = random.Random(0)
    choices = [(name, parameters) for name, parameters, *_ in CASES]
    choices += [("noise", (20.0, channels, 7, 2**32 - 1)) for channels in (1, 3)]
    choices += [("hide_patches", (0.3, 7, key)) for key in (5, 2**32 - 1)]
    choices += [draw_blend(random.Random(seed))[0] for seed in range(3)]
    images = torch.stack([canvas(seed) for seed in range(40)])
    steps = [rng.sample(choices, rng.randint(0, 4)) for _ in images]
    alone, together = alter_one_by_one(images, steps), alter_together(images, steps)
    # Equal but for a level, which the next alterations may drive apart.
    assert ((alone.int() - together.int()).abs() > 1).float().mean() < 0.01
    assert any(torch.equal(image, own) for image, own in zip(images, alone, strict=True))


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "jitter", "sharpen", "blur"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (40, 40)])
def test_images_of_one_level_stay(name: str, shape: tuple[int, int]) -> None:
    image = torch.full((1, 3, *shape), 77, dtype=torch.uint8)
    parameters = {"jitter": (1, 1.5, 0.5, 0.1, 3, 2, 1, 0), "sharpen": (1.5,), "blur": (2.0,)}
    altered = alter_one_by_one(image, [[(name, parameters.get(name, ()))]])
    assert torch.equal(altered, image)


def grey(side: int = 128) -> Tensor:
    return torch.full((1, 3, side, side), 128, dtype=torch.uint8)


@pytest.mark.parametrize("deviation", [2.0, 20.0])
def test_noise_is_normal_and_has_its_deviation(deviation: float) -> None:
    values = OPERATIONS["noise"](grey(), torch.tensor([[deviation, 3, 5, 6]])).float() - 128
    assert abs(float(values.mean())) < 0.03 * deviation
    assert abs(float(values.std()) / deviation - 1) < 0.02
    within = [float((values.abs() <= k * deviation).float().mean()) for k in (1, 2, 3)]
    # Whole levels: half of one more is within.
    assert within == pytest.approx([0.683, 0.954, 0.997], abs=0.1 / deviation + 0.1)
    # No neighbour, channel or second half of the image tells of another.
    standard = (values / values.std())[0]
    for shifted in (standard.roll(1, 2), standard.roll(1, 1), standard.roll(1, 0)):
        assert abs(float((standard * shifted).mean())) < 0.02
    halves = standard.flatten()
    assert abs(float((halves[: len(halves) // 2] * halves[len(halves) // 2 :]).mean())) < 0.02


def test_noise_may_be_the_same_in_all_channels() -> None:
    values = OPERATIONS["noise"](grey(), torch.tensor([[20.0, 1, 5, 6]]))[0]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    assert values.float().std() > 15


def test_noise_differs_between_keys() -> None:
    keys = [(5, 6), (6, 5), (5, 7), (4, 6), (0, 0), (2**32 - 1, 2**32 - 1)]
    parameters = torch.tensor([(20.0, 3, *key) for key in keys], dtype=torch.float64)
    values = OPERATIONS["noise"](grey(64).expand(len(keys), -1, -1, -1), parameters).float()
    standard = (values - 128).flatten(1) / 20
    alike = (standard @ standard.T / standard.shape[1]).fill_diagonal_(0).abs()
    assert alike.max() < 0.05


def test_hidden_patches_are_whole_and_of_the_mean_colour() -> None:
    image = canvas(0, 64)[None]
    shown = OPERATIONS["hide_patches"](image, torch.tensor([[0.25, 5, 6]]))
    side = 64 // PATCHES
    changed = (shown != image).any(1)[0].view(PATCHES, side, PATCHES, side).transpose(1, 2)
    hidden = changed.flatten(2).any(2)
    # Binomial(256, 1/4) is within 40 of 64 with probability 1 - 1e-8.
    assert abs(int(hidden.sum()) - 64) < 40
    where = hidden.repeat_interleave(side, 0).repeat_interleave(side, 1)
    assert (image.float().mean((2, 3)).round().to(torch.uint8) == shown[0, :, where].T).all()
    assert torch.equal(shown[0, :, ~where], image[0, :, ~where])


def test_keys_hide_other_patches_and_none_is_hidden_of_a_share_of_0() -> None:
    image = canvas(0, 64)[None]
    shown = [
        OPERATIONS["hide_patches"](image, torch.tensor([[share, key, 6]], dtype=torch.float64))
        for share, key in ((0.3, 5), (0.3, 6), (0.0, 5))
    ]
    assert not torch.equal(shown[0], shown[1])
    assert torch.equal(shown[2], image)


@pytest.mark.parametrize("side", [1, 5, 17, 40])
def test_images_of_any_size_lose_patches_and_are_blended(side: int) -> None:
    image = canvas(0, side)[None]
    for step in (("hide_patches", (0.5, 1, 2)), draw_blend(random.Random(0))[0]):
        for alter in (alter_one_by_one, alter_together):
            assert alter(image, [[step]]).shape == image.shape


def blends(count: int) -> Tensor:
    return torch.tensor([draw_blend(random.Random(seed))[0][1] for seed in range(count)])


def test_a_self_blended_fake_differs_within_its_blob_alone() -> None:
    parameters = blends(60)
    images = canvas(0).expand(len(parameters), -1, -1, -1)
    shown = OPERATIONS["self_blend"](images, parameters)
    shares = blob(parameters[:, 15:], images.shape[-2:])
    changes = (shown.int() - images.int()).abs().amax(1, keepdim=True)
    assert (changes[shares == 0] == 0).all()
    # Each is a fake: a good part of it has visibly changed.
    seen = ((changes > 3) & (shares > 0.1)).float().mean((1, 2, 3))
    assert seen.min() > 0.01
    assert ((shares > 0).float().mean((1, 2, 3)) < 0.75).all()


def test_blobs_are_soft_and_stay_inside() -> None:
    parameters = blends(200)
    shares = blob(parameters[:, 15:], torch.Size((101, 101)))
    assert shares.min() == 0
    assert shares.amax((1, 2, 3)).allclose(parameters[:, -1], atol=0.02)
    border = round(101 * (1 - REACH) / 2) - 1
    inside = shares[..., border:-border, border:-border]
    assert inside.count_nonzero() == shares.count_nonzero()
    steps = shares.diff(dim=3).abs().amax((1, 2, 3)) / parameters[:, -1]
    # A thin edge is a few pixels wide, a wide one many.
    assert steps.max() < 1.0
    assert steps.median() < 0.3
    assert len(set(map(tuple, parameters.tolist()))) == len(parameters)


def test_what_comes_from_outside_of_the_image_is_never_blended_in() -> None:
    """It is grey, and would tell a fake by itself."""
    parameters = blends(300)
    images = torch.full((len(parameters), 3, 48, 48), 255, dtype=torch.uint8)
    # The copy is moved, not recoloured.
    parameters[:, 7:10], parameters[:, 10] = 1.0, 0.0
    assert (OPERATIONS["self_blend"](images, parameters) == 255).all()
