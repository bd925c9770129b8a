"""What happens to images on their way through the world: blur, resizing, noise, recompression.

Each is a picklable callable on RGB images that draws its severity from the global generators.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter

_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Shrink:
    """Brings images down to `longest_side` pixels, which bounds the cost of what follows."""

    longest_side: int

    def __call__(self, image: Image.Image) -> Image.Image:
        if max(image.size) <= self.longest_side:
            return image
        smaller = image.copy()
        smaller.thumbnail((self.longest_side, self.longest_side))
        return smaller


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with a standard deviation of up to `most` pixels."""

    most: float

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, self.most)))


@dataclass(frozen=True)
class DownAndUp:
    """Resizes down by a factor of up to `most` and back again, with filters drawn at random."""

    most: float

    def __call__(self, image: Image.Image) -> Image.Image:
        factor = random.uniform(1.0, self.most)
        small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
        down, up = random.choice(_FILTERS), random.choice(_FILTERS)
        return image.resize(small, down).resize(image.size, up)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise, the same in all channels or not, with a deviation of up to `most` of 255."""

    most: float

    def __call__(self, image: Image.Image) -> Image.Image:
        channels = random.choice((1, 3))
        noise = torch.randn(image.height, image.width, channels).numpy()
        noisy = np.asarray(image, np.float32) + noise * random.uniform(1.0, self.most)
        return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Recompress:
    """Saves and reads the image as JPEG or WebP, up to `most` times in a row, as sharing does."""

    lowest_quality: int  # of 95, the highest that is drawn
    most: int

    def __call__(self, image: Image.Image) -> Image.Image:
        for _ in range(random.randint(1, self.most)):
            quality = random.randint(self.lowest_quality, 95)
            stream = io.BytesIO()
            if random.random() < 0.5:
                image.save(stream, "JPEG", quality=quality, subsampling=random.choice((0, 2)))
            else:
                # 9 ms for 512 x 512 pixels on one core; the default, method 4, takes 16 ms.
                image.save(stream, "WEBP", quality=quality, method=1)
            with Image.open(stream) as decoded:
                image = decoded.convert("RGB")
        return image
