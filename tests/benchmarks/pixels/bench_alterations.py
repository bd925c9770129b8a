"""Milliseconds of each operation on batches beside Pillow, torchvision and kornia, and images a
second of each policy.

    python tests/benchmarks/pixels/bench_alterations.py [--images FOLDER] [--threads 2] [--quick]

kornia is measured where it is installed (`pip install kornia==0.9.0`); onefold does not need it.
"""

from __future__ import annotations

import importlib.util
import io
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cyclopts import run
from PIL import Image, ImageFilter, ImageOps
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from search.pixels.augmentation.alterations import alter
from search.pixels.augmentation.augment import POLICIES, Augmentation, render
from search.pixels.augmentation.blending import draw_blend
from search.pixels.augmentation.geometry import crop_resize

SIDE, SIZE = 256, 224
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def canvases_of(folder: Path | None, count: int) -> Tensor:
    """(count, 3, SIDE, SIDE), uint8: of a folder, or smooth noise."""
    if folder is None:
        small = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        images = [Image.fromarray(pixels) for pixels in small]
    else:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        images = [Image.open(path).convert("RGB") for path in paths[:count]]
    resized = [np.array(image.resize((SIDE, SIDE))) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()


def milliseconds(work: Callable[[], object], images: int, repetitions: int) -> float:
    """The median of an image's."""
    work()
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds) / images


def operations(canvases: Tensor) -> list[tuple[str, dict[str, Callable[[], object]]]]:
    """Each operation of ours, Pillow's on images that are open, torchvision's on tensors image by
    image (it has no parameters of each image), kornia's on the batch of floats, drawing included.
    """
    count = len(canvases)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in canvases]
    boxes = torch.tensor([(10, 20, 200, 220)] * count)
    floats = canvases.float() / 255

    def ours(name: str, *parameters: float) -> Callable[[], object]:
        return lambda: alter(canvases, [[(name, parameters)]] * count)

    def pillow(change: Callable[[Image.Image], object]) -> Callable[[], object]:
        return lambda: [change(picture) for picture in pictures]

    def torchvision(change: Callable[[Tensor], object]) -> Callable[[], object]:
        return lambda: [change(image) for image in canvases]

    jitter = v2.ColorJitter(0.2, 0.2, 0.2, 0.05)
    rows: list[tuple[str, dict[str, Callable[[], object]]]] = [
        (
            "crop and resize",
            {
                "ours": lambda: crop_resize(canvases, boxes, SIZE),
                "pillow": pillow(lambda p: p.resize((SIZE, SIZE), 2, (20, 10, 240, 210))),
                "torchvision": torchvision(
                    lambda t: F.resized_crop(t, 10, 20, 200, 220, [SIZE, SIZE], antialias=True)
                ),
            },
        ),
        (
            "jitter",
            {
                "ours": ours("jitter", 1.2, 0.8, 1.2, 10 / 256, 0, 1, 2, 3),
                "pillow": pillow(jitter),
                "torchvision": torchvision(jitter),
            },
        ),
        (
            "blur, deviation 1.5",
            {
                "ours": ours("blur", 1.5),
                "pillow": pillow(lambda p: p.filter(ImageFilter.GaussianBlur(1.5))),
                "torchvision": torchvision(lambda t: F.gaussian_blur(t, [11, 11], [1.5, 1.5])),
            },
        ),
        (
            "affine, nearest",
            {
                "ours": ours("affine", 0.9, -0.1, 0.1, 0.1, 0.9, 0.1, 0),
                "pillow": pillow(lambda p: F.affine(p, 10, [5, 5], 1, [5, 0])),
                "torchvision": torchvision(lambda t: F.affine(t, 10, [5, 5], 1, [5, 0])),
            },
        ),
        (
            "equalize",
            {
                "ours": ours("equalize"),
                "pillow": pillow(ImageOps.equalize),
                "torchvision": torchvision(F.equalize),
            },
        ),
        (
            "noise",
            {
                "ours": ours("noise", 10.0, 3, 5, 6),
                "torchvision": lambda: [
                    F.gaussian_noise(image, sigma=10 / 255) for image in floats
                ],
            },
        ),
        (
            "erasing",
            {
                "ours": ours("erase", 0.2, 0.3, 0.4, 0.3),
                "torchvision": torchvision(
                    lambda t: F.erase(t, 50, 70, 100, 80, torch.zeros(3, 1, 1, dtype=torch.uint8))
                ),
            },
        ),
        ("hide patches", {"ours": ours("hide_patches", 0.2, 5, 6)}),
        (
            "self-blended fake",
            {"ours": lambda: alter(canvases, [draw_blend(random.Random(0))] * count)},
        ),
    ]
    if importlib.util.find_spec("kornia") is not None:
        import kornia.augmentation as K

        def kornia(operation: Any) -> Callable[[], object]:
            # It takes floats, and gives floats: the way there and back is part of it.
            return lambda: operation(canvases.float() / 255).mul_(255).to(torch.uint8)

        added = [
            K.RandomResizedCrop((SIZE, SIZE), (0.8, 1.0), cropping_mode="resample", p=1.0),
            K.ColorJitter(0.2, 0.2, 0.2, 0.05, p=1.0),
            K.RandomGaussianBlur((11, 11), (1.5, 1.5), p=1.0),
            K.RandomAffine(10, (0.1, 0.1), shear=5, resample="nearest", p=1.0),
            K.RandomEqualize(p=1.0),
            K.RandomGaussianNoise(std=10 / 255, p=1.0),
            K.RandomErasing(p=1.0),
        ]
        # What only onefold has comes after these.
        for (_, arms), operation in zip(rows, added, strict=False):
            arms["kornia"] = kornia(operation)
    return rows


def heavy() -> Callable[[Image.Image], Tensor]:
    """What a loader usually does image by image: blur, JPEG, jitter, flips and erasing."""

    def compress(image: Image.Image) -> Image.Image:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=60)
        return Image.open(stream).convert("RGB")

    steps = [
        v2.Resize((SIDE, SIDE)),
        v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], 0.5),
        v2.RandomApply([v2.Lambda(compress)], 0.5),
        v2.RandomResizedCrop(SIZE, (0.5, 1.0)),
        v2.ColorJitter(0.2, 0.2, 0.2, 0.05),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
        v2.RandomErasing(0.25),
    ]
    transform: Callable[[Image.Image], Tensor] = v2.Compose(steps)
    return transform


def main(*, images: Path | None = None, threads: int = 2, quick: bool = False) -> None:
    """Measures every operation and every policy, at strength 0.5, on 64 images.

    Args:
        images: a folder of them; smooth noise without it.
        threads: of torch.
        quick: a few images once, for the sake of running.
    """
    torch.set_num_threads(threads)
    count, repetitions = (4, 1) if quick else (64, 5)
    canvases = canvases_of(images, count)
    arms = ("ours", "pillow", "torchvision", "kornia")
    results = Table("operation", *arms, title=f"ms an image of {SIDE} px, {threads} threads")
    for name, works in operations(canvases):
        took = {arm: milliseconds(work, count, repetitions) for arm, work in works.items()}
        results.add_row(name, *(f"{took[arm]:.2f}" if arm in took else "" for arm in arms))
    Console().print(results)

    seeds = torch.arange(count)
    speeds = Table("policy", "prepare", "render", "both", title="images/s")
    for name in POLICIES:
        augmentation = Augmentation(name, 0.5)

        def prepare(augmentation: Augmentation = augmentation) -> Tensor:
            pairs = zip(canvases, seeds.tolist(), strict=True)
            return torch.stack([augmentation.prepare(canvas, seed) for canvas, seed in pairs])

        prepared = prepare()
        preparing = milliseconds(prepare, count, repetitions)
        rendering = milliseconds(
            lambda a=augmentation, p=prepared: render(p, seeds, a, SIZE), count, repetitions
        )
        rates = (1000 / ms for ms in (preparing, rendering, preparing + rendering))
        speeds.add_row(name, *(f"{rate:,.0f}" for rate in rates))
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in canvases]
    transform = heavy()
    taken = milliseconds(lambda: [transform(picture) for picture in pictures], count, repetitions)
    speeds.add_row("torchvision, heavy", "", "", f"{1000 / taken:,.0f}")
    Console().print(speeds)


if __name__ == "__main__":
    run(main)
