"""Scoring images with a network: always fp32, so that a candidate's scores can be recomputed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.data.batches import Batch, Images, Shown, count_images, split_images
from search.data.reading import Loader
from search.training.device import Runtime, exact_float32, is_out_of_memory
from search.training.metrics import Metrics, measure
from search.training.network import margin

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Output = TypeVar("Output")

SCORING_BATCH = 64
"""Images of one forward pass, where nothing is trained."""


@dataclass(frozen=True)
class Predictions:
    """Scores of the images that could be read."""

    indices: Integers  # (N,) - rows of the table that was scored
    scores: Floats  # (N,) - probability of fake
    targets: Integers  # (N,) - 1 = fake


@dataclass(frozen=True)
class Evaluation:
    """Predictions of one network on one split, and what they are worth."""

    predictions: Predictions
    metrics: Metrics


def to_device(batch: Batch, runtime: Runtime) -> Tensor:
    """The canvases of a batch on the device, as floats in [0, 1]: what every network takes."""
    return batch.canvases.to(runtime.device, non_blocking=True).to(torch.float32).div_(255.0)


def show(
    batch: Batch, sizes: Collection[int], runtime: Runtime, *, channels_last: bool = False
) -> Shown:
    """The views of a batch on the device, as networks of some sizes see them.

    Args:
        batch: see `Batch.show`.
        sizes: of one, the images are a tensor; of several, tensors by size.
        runtime: the device.
        channels_last: lay out the images so.
    """
    moved = replace(batch, canvases=batch.canvases.to(runtime.device, non_blocking=True))
    images = {}
    for size, pixels in moved.show(sizes).items():
        images[size] = pixels.to(torch.float32).div_(255.0)
        if channels_last:
            images[size] = images[size].contiguous(memory_format=torch.channels_last)
    return Shown(
        images=images if len(images) > 1 else next(iter(images.values())),
        targets=batch.targets.to(runtime.device, non_blocking=True),
        indices=batch.indices,
        seeds=batch.seeds,
    )


class MemoryBackOff:
    """Runs forward passes in parts that fit into memory: half as large whenever it runs out.

    Attributes:
        largest: images of one part; None until memory has run out once.
    """

    def __init__(self) -> None:
        self.largest: int | None = None

    def __call__(self, forward: Callable[[Any], Output], images: Images) -> list[Output]:
        """What `forward` gives for the parts of some images, in their order.

        Raises:
            torch.OutOfMemoryError: if a single image does not fit.
        """
        count = count_images(images)
        size = min(count, self.largest or count)
        while True:
            try:
                return [forward(part) for part in split_images(images, size)]
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            # Outside the handler, whose traceback would keep the tensors of the failed try alive.
            self.largest = size = (size + 1) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def predict(
    network: nn.Module,
    loader: Loader,
    runtime: Runtime,
    on_batch: Callable[[], None] = lambda: None,
) -> Predictions:
    """Scores every image of a loader, in its order.

    Args:
        network: maps canvases, RGB in [0, 1], to logits (N, 2); it is moved to the device and left
            in evaluation mode.
        loader: images that cannot be read are left out.
        runtime: the device to compute on.
        on_batch: called after every batch; what it raises ends the scoring.

    Raises:
        FloatingPointError: if a score is not a finite number.
    """
    network.to(runtime.device).eval()
    indices, scores, targets = [], [], []
    back_off = MemoryBackOff()
    with torch.inference_mode(), exact_float32():
        for batch in loader:
            logits = torch.cat(back_off(network, to_device(batch, runtime)))
            # The sigmoid in double precision, which MPS lacks, keeps scores apart that float32
            # would round to 1.
            scores.append(margin(logits.cpu().double()).sigmoid().numpy())
            # Copies: what a worker sent lies in shared memory, a file descriptor a tensor, and
            # thousands of batches would hold more than a process may have.
            indices.append(batch.indices.numpy().copy())
            targets.append(batch.targets.numpy().copy())
            on_batch()
    joined = Predictions(
        indices=np.concatenate(indices) if indices else np.empty(0, np.int64),
        scores=np.concatenate(scores) if scores else np.empty(0, np.float64),
        targets=np.concatenate(targets) if targets else np.empty(0, np.int64),
    )
    if not np.isfinite(joined.scores).all():
        broken = int((~np.isfinite(joined.scores)).sum())
        raise FloatingPointError(f"{broken} of {len(joined.scores)} scores are not finite")
    return joined


def evaluate(
    network: nn.Module,
    loader: Loader,
    runtime: Runtime,
    on_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Scores every image of a loader and measures the scores; arguments as for `predict`."""
    predictions = predict(network, loader, runtime, on_batch)
    return Evaluation(predictions, measure(predictions.scores, predictions.targets))
