"""What is measured of an image to tell how it was forged: traces, not who is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from search.machine.device import Runtime, exact_float32
from search.pixels.loading.batches import Batch

BLOCK, STRIDE = 8, 4
"""Side in pixels of the blocks of the discrete cosine transform, as in JPEG, and from one to the
next."""

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of RGB."""

SMALLEST_LEVEL = 0.1
"""Added to amplitudes before their logarithm, in levels of 255."""

EARLY_BLOCKS = (0, 1)
"""Maps of a backbone that are taken: of its first stages, or of a transformer's first blocks."""

SMALLEST_SPREAD = 1e-6
"""Added to the spread of a channel before its logarithm: a channel may be dead."""


class Frequencies(nn.Module):
    """How strong each frequency is over an image's blocks: needs no weights. (Noise residuals
    beside it made clusters less pure on a draft of the demo set.)"""

    name = "frequencies"

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("waves", _cosine_waves(BLOCK)[:, None], persistent=False)
        self.register_buffer("luminance", torch.tensor(LUMINANCE), persistent=False)
        self.waves: Tensor  # (64, 1, 8, 8)
        self.luminance: Tensor  # (3,)

    def forward(self, images: Tensor) -> Tensor:
        """Descriptions (N, 64) of RGB (N, 3, S, S) in [0, 1]."""
        grey = torch.einsum("nchw,c->nhw", 255 * images, self.luminance)[:, None]
        amplitudes = F.conv2d(grey, self.waves, stride=STRIDE).abs().flatten(2)
        return (amplitudes.mean(2) + SMALLEST_LEVEL).log()


def _cosine_waves(side: int) -> Tensor:
    """(side^2, side, side) basis of the two-dimensional discrete cosine transform."""
    places = torch.arange(side, dtype=torch.float32)
    waves = torch.cos((2 * places + 1) * places[:, None] * torch.pi / (2 * side))
    waves *= (2 / side) ** 0.5
    waves[0] *= 0.5**0.5
    return torch.einsum("ux,vy->uvxy", waves, waves).reshape(side * side, side, side)


class EarlyMaps(nn.Module):
    """Mean and spread of each channel in a backbone's first maps: an image's style
    (arXiv:1703.06868)."""

    def __init__(self, network: nn.Module, name: str) -> None:
        """
        Args:
            network: see `search.training.network.Network`; its trunk gives its intermediate maps.
            name: of the backbone.
        """
        super().__init__()
        self.network = network
        self.name = f"the first maps of {name}"

    def forward(self, images: Tensor) -> Tensor:
        """Descriptions (N, D) of RGB (N, 3, S, S) in [0, 1]."""
        network: Any = self.network
        maps = network.trunk.forward_intermediates(
            network.preprocess(images),
            indices=list(EARLY_BLOCKS),
            stop_early=True,
            intermediates_only=True,
        )
        flat = [one.flatten(2) for one in maps]
        statistics = [(one.mean(2), (one.std(2) + SMALLEST_SPREAD).log()) for one in flat]
        return torch.cat([part for pair in statistics for part in pair], dim=1)


class Together(nn.Module):
    """Several descriptions as one."""

    def __init__(self, parts: Sequence[EarlyMaps | Frequencies]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.name = " and ".join(part.name for part in parts)

    def forward(self, images: Tensor) -> Tensor:
        """Descriptions (N, D) of RGB (N, 3, S, S) in [0, 1]."""
        return torch.cat([part(images) for part in self.parts], dim=1)


def describe(
    descriptor: nn.Module,
    batches: Iterable[Batch],
    rows: int,
    runtime: Runtime,
    on_batch: Callable[[int], None] = lambda _: None,
) -> NDArray[np.float64]:
    """Descriptions of a table's images, (rows, D); NaN for images that cannot be read.

    Args:
        descriptor: RGB (N, 3, S, S) in [0, 1] -> (N, D).
        batches: of the table.
        rows: of the table.
        runtime: the device to compute on.
        on_batch: given how many images are described, after every batch.
    """
    descriptor.to(runtime.device).eval()
    described: NDArray[np.float64] | None = None
    done = 0
    for batch in batches:
        with torch.inference_mode(), exact_float32():
            images = batch.canvases.to(runtime.device).float() / 255
            found = descriptor(images).cpu().double().numpy()
        if described is None:
            described = np.full((rows, found.shape[1]), np.nan)
        described[batch.indices.numpy()] = found
        done += len(found)
        on_batch(done)
    assert described is not None  # a loader that has no batch says so itself
    return described
