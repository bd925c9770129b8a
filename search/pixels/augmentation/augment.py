"""Augmentation policies by name: what a network sees of an image, never knowing its label.

A view is drawn from a seed: alterations of the canvas, a box that is cropped and brought to a
network's size in one step, alterations after that. Compression needs a codec, so whoever reads the
canvas does what comes up to it (`Augmentation.prepare`); the rest is done for a batch at once
(`render`): on a GPU that trains, or else by the workers of a CPU.
"""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from search.errors import UserError
from search.pixels.augmentation.additions import NOTHING, Additions
from search.pixels.augmentation.alterations import Step, Steps, alter
from search.pixels.augmentation.degradation import COMPRESS, between, compress, degradation
from search.pixels.augmentation.geometry import Filter, crop_resize, resize, rotation


@dataclass(frozen=True)
class View:
    """What a seed makes of a canvas; at any size the same view.

    Attributes:
        before: alterations of the canvas, in its pixels.
        box: top, left, height and width of what is seen of it, in its pixels; None for all, to the
            bit as images are scored, which takes five times as long on a CPU.
        after: alterations of what is seen, in shares of it.
    """

    before: Steps = ()
    box: tuple[int, int, int, int] | None = None
    after: Steps = ()

    @property
    def in_worker(self) -> int:
        """How many of `before` come up to the last compression and with it; 0 without any."""
        return max((n for n, (name, _) in enumerate(self.before, 1) if name == COMPRESS), default=0)


@dataclass(frozen=True)
class Policy:
    """A named way to alter training images."""

    name: str
    description: str  # one line
    draw: Callable[[random.Random, float, int], View]  # strength in [0, 1], canvas side in pixels
    has_strength: bool = True  # False: the same at any strength


@dataclass(frozen=True)
class Augmentation:
    """A policy of POLICIES at a strength, from 0, its mildest form, to 1, and what is added to it.

    Raises:
        UserError: if there is no such policy, or the strength is outside [0, 1].
    """

    policy: str
    strength: float
    additions: Additions = NOTHING

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            near = difflib.get_close_matches(self.policy, POLICIES, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            names = ", ".join(POLICIES)
            raise UserError(f"augmentation must be one of {names}, found '{self.policy}'{hint}")
        if not 0.0 <= self.strength <= 1.0:
            raise UserError(f"augmentation strength must be between 0 and 1, found {self.strength}")

    def draw(self, seed: int, side: int) -> View:
        """The view that a seed stands for, of a canvas of so many pixels a side; a negative seed
        stands for that of its complement, of a real that is shown as a self-blended fake."""
        own = ~seed if seed < 0 else seed
        view = POLICIES[self.policy].draw(random.Random(own), self.strength, side)
        if seed >= 0 and self.additions == NOTHING:
            return view
        before = self.additions.before(own, self.strength, side, blended=seed < 0)
        return replace(
            view, before=before + view.before, after=view.after + self.additions.after(own)
        )

    def prepare(self, canvas: Tensor, seed: int) -> Tensor:
        """What a worker does to a canvas before `render`: all up to the last compression.

        Args:
            canvas: (3, C, C), uint8, on the CPU; left as it is.
            seed: of the view.

        Returns:
            The same shape; the same tensor, where the view has no compression.
        """
        view = self.draw(seed, canvas.shape[-1])
        altered, waiting = canvas, list[Step]()
        for step in view.before[: view.in_worker]:
            if step[0] != COMPRESS:
                waiting.append(step)
                continue
            if waiting:
                altered = alter(altered[None], [waiting])[0]
            altered, waiting = compress(altered, *step[1]), []
        return altered


def render(
    canvases: Tensor,
    seeds: Tensor,
    augmentation: Augmentation | None,
    size: int,
    *,
    prepared: bool = True,
) -> Tensor:
    """The views of canvases that seeds stand for, uint8 (N, 3, S, S), where the canvases are.

    Args:
        canvases: (N, 3, C, C), uint8; left as they are.
        seeds: (N,), integers.
        augmentation: None shows the canvases as they are.
        size: S, in pixels.
        prepared: whether each canvas is what `Augmentation.prepare` made of it for its seed.
    """
    if augmentation is None:
        return resize(canvases, size)
    numbers = seeds.tolist()
    if not prepared:
        own = [
            augmentation.prepare(canvas, seed)
            for canvas, seed in zip(canvases.cpu(), numbers, strict=True)
        ]
        canvases = torch.stack(own).to(canvases.device) if own else canvases
    side = canvases.shape[-1]
    views = [augmentation.draw(seed, side) for seed in numbers]
    altered = alter(canvases, [view.before[view.in_worker :] for view in views])
    if all(view.box is None for view in views):
        shown = resize(altered, size)  # as images are scored
    else:
        boxes = torch.tensor([view.box or (0, 0, side, side) for view in views])
        shown = crop_resize(altered, boxes, size)
    return alter(shown, [view.after for view in views])


# What policies are made of


_ATTEMPTS = 10  # as torchvision and timm make, before they leave an image whole
_LARGEST_RATIO = math.log(1.25)


def _crop(rng: random.Random, smallest_area: float, side: int) -> tuple[int, int, int, int]:
    """A box of some area and ratio, as torchvision's RandomResizedCrop draws it."""
    for _ in range(_ATTEMPTS):
        area = rng.uniform(smallest_area, 1.0) * side * side
        ratio = math.exp(rng.uniform(-_LARGEST_RATIO, _LARGEST_RATIO))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= side and 0 < height <= side:
            return rng.randint(0, side - height), rng.randint(0, side - width), height, width
    return 0, 0, side, side


def _mirror(rng: random.Random, axis: int = -1) -> Steps:
    return (("mirror", (axis,)),) if rng.random() < 0.5 else ()


_IN_ORDER = (0, 1, 2, 3)


def _jitter(rng: random.Random, amount: float) -> Steps:
    factors = [rng.uniform(1 - amount, 1 + amount) for _ in range(3)]
    # Pillow turns hues by whole 256ths.
    turn = int(rng.uniform(-amount / 4, amount / 4) * 255) / 256
    return (("jitter", (*factors, turn, *rng.sample(_IN_ORDER, 4))),)


def _sometimes(rng: random.Random, probability: float, name: str) -> Steps:
    return ((name, ()),) if rng.random() < probability else ()


def _erase(rng: random.Random, probability: float, largest_area: float) -> Steps:
    """A box of at least a fiftieth of the image, as timm's RandomErasing draws it."""
    if rng.random() >= probability:
        return ()
    for _ in range(_ATTEMPTS):
        area = rng.uniform(0.02, largest_area)
        ratio = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        height, width = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if height < 1 and width < 1:
            return (
                ("erase", (rng.uniform(0, 1 - height), rng.uniform(0, 1 - width), height, width)),
            )
    return ()


_MAGNITUDES = 10.0
_COLOURS = ("brightness", "contrast", "color")  # in the order of `jitter`
_NAMES = (
    *("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add"),
    *(*_COLOURS, "sharpen", "shear_x", "shear_y", "translate_x", "translate_y"),
)


def _randaugment_step(rng: random.Random, magnitude: float) -> Steps:
    """One of timm's increasing RandAugment operations (timm 1.0.31), or with 0.5 none."""
    name = rng.choice(_NAMES)
    if rng.random() >= 0.5:
        return ()
    level = min(max(rng.gauss(magnitude, 0.5), 0.0), _MAGNITUDES) / _MAGNITUDES
    signed = level * rng.choice((-1, 1))
    if name in _COLOURS:
        factors = [1.0, 1.0, 1.0]
        factors[_COLOURS.index(name)] = max(0.1, 1 + 0.9 * signed)
        return (("jitter", (*factors, 0.0, *_IN_ORDER)),)
    interpolation = float(rng.choice((Filter.BILINEAR, Filter.BICUBIC)))
    maps: dict[str, tuple[float, ...]] = {
        "rotate": rotation(30 * signed),
        # About the upper left corner, which is at (-1, -1); 0.3 of the image is the most.
        "shear_x": (1, 0.3 * signed, 0.3 * signed, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * signed, 1, 0.3 * signed),
        "translate_x": (1, 0, 2 * 0.3 * signed, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 2 * 0.3 * signed),
    }
    if name in maps:
        return (("affine", (*maps[name], interpolation)),)
    amounts = {
        "posterize": max(1, 4 - int(4 * level)),  # of 0 bits Pillow 13 knows nothing either
        "solarize": 256 - int(256 * level),
        "solarize_add": int(110 * level),
        "sharpen": max(0.1, 1 + 0.9 * signed),
    }
    return ((name, (amounts[name],) if name in amounts else ()),)


# The policies


def _none(_rng: random.Random, _strength: float, _side: int) -> View:
    return View()


def _flip(rng: random.Random, _strength: float, side: int) -> View:
    return View((), (0, 0, side, side), _mirror(rng))


def _baseline(rng: random.Random, _strength: float, side: int) -> View:
    return View((), (0, 0, side, side), _mirror(rng) + _mirror(rng, -2))


def _light(rng: random.Random, strength: float, side: int) -> View:
    box = _crop(rng, between(strength, 0.9, 0.5), side)
    return View((), box, _mirror(rng) + _jitter(rng, between(strength, 0.05, 0.25)))


def _geometric(rng: random.Random, strength: float, side: int) -> View:
    box = _crop(rng, between(strength, 0.8, 0.25), side)
    after = _mirror(rng)
    if rng.random() < 0.5:
        degrees, most = between(strength, 5, 30), between(strength, 0.02, 0.1)
        slope = between(strength, 2, 15)
        angle = math.radians(rng.uniform(-degrees, degrees))
        shear = math.tan(math.radians(rng.uniform(-slope, slope)))
        x, y = rng.uniform(-most, most), rng.uniform(-most, most)
        # From a pixel to where it comes from, as torchvision's RandomAffine turns and shears.
        cos, sin = math.cos(angle), math.sin(angle)
        a, b, d, e = cos - shear * sin, sin + shear * cos, -sin, cos
        rows = (a, b, -2 * (a * x + b * y), d, e, -2 * (d * x + e * y))
        after += (("affine", (*rows, Filter.NEAREST)),)
    return View((), box, after)


def _colour(rng: random.Random, strength: float, side: int) -> View:
    after = (
        _mirror(rng)
        + _jitter(rng, between(strength, 0.1, 0.5))
        + _sometimes(rng, between(strength, 0.02, 0.2), "grayscale")
        + _sometimes(rng, between(strength, 0.05, 0.2), "autocontrast")
        + _sometimes(rng, between(strength, 0.02, 0.1), "equalize")
    )
    return View((), (0, 0, side, side), after)


def _degrade(rng: random.Random, strength: float, side: int) -> View:
    before = degradation(rng, strength, side)
    return View(before, _crop(rng, between(strength, 0.95, 0.7), side), _mirror(rng))


def _randaugment(rng: random.Random, strength: float, side: int) -> View:
    magnitude = round(between(strength, 2, 10))
    box, after = _crop(rng, 0.7, side), _mirror(rng)
    for _ in range(2):
        after += _randaugment_step(rng, magnitude)
    return View((), box, after)


def _erased(rng: random.Random, strength: float, side: int) -> View:
    box, after = _crop(rng, 0.8, side), _mirror(rng)
    erasing = _erase(rng, between(strength, 0.2, 0.8), between(strength, 0.1, 1 / 3))
    return View((), box, after + erasing)


def _strong(rng: random.Random, strength: float, side: int) -> View:
    before = degradation(rng, strength, side)
    box = _crop(rng, between(strength, 0.8, 0.3), side)
    after = (
        _mirror(rng)
        + _jitter(rng, between(strength, 0.1, 0.4))
        + _sometimes(rng, between(strength, 0.02, 0.1), "grayscale")
        + _erase(rng, between(strength, 0.1, 0.4), 0.2)
    )
    return View(before, box, after)


POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("none", "resized, nothing else", _none, has_strength=False),
        Policy("flip", "mirrored left to right", _flip, has_strength=False),
        Policy(
            "baseline",
            "mirrored in both directions, as the challenge's starting point does",
            _baseline,
            has_strength=False,
        ),
        Policy("light", "random resized crop, flip and a little colour", _light),
        Policy("geometric", "small crops, flip, rotation, shift and shear", _geometric),
        Policy("colour", "flip, colour jitter, grey, contrast and equalisation", _colour),
        Policy("degrade", "blur, resizing down and up, noise, JPEG and WebP", _degrade),
        Policy("randaugment", "timm's RandAugment (arXiv:1909.13719) on crops", _randaugment),
        Policy("erase", "crop, flip and random erasing (arXiv:1708.04896)", _erased),
        Policy("strong", "degrade, crop, flip, colour and erasing together", _strong),
    )
}
"""What the search may draw, by name."""
