"""What teachers say of a batch: several networks as one, asked about what a student is taught."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ensemble.distill.losses import normalise_features
from search.machine.device import Precision, Runtime, exact_float32
from search.pixels.loading.batches import Images, Shown
from search.training.network import margin
from search.training.scoring import autocast


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher says of one batch."""

    margins: Tensor  # (N,) float32 - log-odds of fake
    features: Tensor | None  # (N, D) float32 - normalised, those of all networks side by side


TeacherSource = Callable[[Shown], TeacherOutputs]
"""Maps a batch on the device to outputs on that device."""


class Teacher:
    """Networks whose probabilities are averaged; asked live, it is a TeacherSource.

    Attributes:
        image_sizes: of the views that it is asked about: those of its networks.
        feature_size: D of the outputs' features; 0 if they are not asked for.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        weights: Sequence[float],
        runtime: Runtime,
        *,
        with_features: bool = False,
        precision: Precision = "fp32",
    ) -> None:
        """
        Args:
            networks: map views at their `image_sizes`, RGB in [0, 1], to logits (N, 2), and have
                `forward_with_features` if features are asked for; moved to the device.
            weights: of their probabilities; they sum to 1.
            runtime: the device.
            with_features: give features too.
            precision: of the forward passes, whatever the student's is.
        """
        self.networks: list[Any] = [
            network.to(runtime.device).eval().requires_grad_(False) for network in networks
        ]
        self.log_weights = torch.tensor(weights, dtype=torch.float64, device="cpu").log()
        self.runtime = runtime
        self.with_features, self.precision = with_features, precision
        sizes = {size for network in self.networks for size in network.image_sizes}
        self.image_sizes: tuple[int, ...] = tuple(sorted(sizes))
        self.feature_size = self._measure_features() if with_features else 0

    def __call__(self, batch: Shown) -> TeacherOutputs:
        return self.ask(batch.images)

    def ask(self, images: Images) -> TeacherOutputs:
        """What the networks together say of images in [0, 1] on the device."""
        # Not inference mode: autograd saves the outputs for the student's backward pass.
        with torch.no_grad(), exact_float32(), autocast(self.runtime, self.precision):
            given = [self._ask(network, images) for network in self.networks]
        margins = torch.stack([margins for margins, _ in given])
        features = [features for _, features in given if features is not None]
        return TeacherOutputs(
            margins=ensemble_margin(margins, self.log_weights.to(margins.device, margins.dtype)),
            features=torch.cat(features, dim=1) if features else None,
        )

    def _ask(self, network: Any, images: Images) -> tuple[Tensor, Tensor | None]:
        if not self.with_features:
            return margin(network(images).float()), None
        features, logits = network.forward_with_features(images)
        return margin(logits.float()), normalise_features(features.float())

    def _measure_features(self) -> int:
        device = self.runtime.device
        blank: Images = {s: torch.zeros(1, 3, s, s, device=device) for s in self.image_sizes}
        features = self.ask(blank).features
        assert features is not None
        return features.shape[1]


def ensemble_margin(margins: Tensor, log_weights: Tensor) -> Tensor:
    """Log-odds of the weighted mean of the probabilities that margins stand for.

    log(p / (1 - p)) with p = sum_k w_k sigmoid(m_k), in log space: finite where p rounds to 0 or 1.

    Args:
        margins: (K, N) log-odds of fake of K networks.
        log_weights: (K,) logarithms of weights that sum to 1.

    Returns:
        (N,).
    """
    weights = log_weights[:, None]
    fake = torch.logsumexp(weights + F.logsigmoid(margins), dim=0)
    real = torch.logsumexp(weights + F.logsigmoid(-margins), dim=0)
    return fake - real
