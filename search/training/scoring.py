"""Scoring images with a network: always fp32, so that a candidate's scores can be recomputed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.data.batches import Batch, Loader
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


def to_device(batch: Batch, runtime: Runtime, *, channels_last: bool = False) -> Batch:
    """Moves a batch to the device, and its images from uint8 to floats in [0, 1] if they are not
    floats yet."""
    images = batch.images.to(runtime.device, non_blocking=True)
    if not images.is_floating_point():
        images = images.to(torch.float32).div_(255.0)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    targets = batch.targets.to(runtime.device, non_blocking=True)
    return replace(batch, images=images, targets=targets)


class MemoryBackOff:
    """Runs forward passes in parts that fit into memory: half as large whenever it runs out.

    Attributes:
        largest: images of one part; None until memory has run out once.
    """

    def __init__(self) -> None:
        self.largest: int | None = None

    def __call__(self, forward: Callable[[Tensor], Output], images: Tensor) -> list[Output]:
        """What `forward` gives for the parts of images (N, 3, H, W), in their order.

        Raises:
            torch.OutOfMemoryError: if a single image does not fit.
        """
        size = min(len(images), self.largest or len(images))
        while True:
            try:
                return [forward(part) for part in images.split(size)]
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            # Outside the handler, whose traceback would keep the tensors of the failed try alive.
            self.largest = size = (size + 1) // 2
            if images.is_cuda:
                torch.cuda.empty_cache()


def predict(
    network: nn.Module,
    loader: Loader,
    runtime: Runtime,
    on_batch: Callable[[], None] = lambda: None,
) -> Predictions:
    """Scores every image of a loader, in its order.

    Args:
        network: maps (N, 3, H, W) RGB in [0, 1] to logits (N, 2); it is moved to the device and
            left in evaluation mode.
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
            logits = torch.cat(back_off(network, to_device(batch, runtime).images))
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
