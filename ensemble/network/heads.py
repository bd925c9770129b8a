"""Heads of a fused network: how the trunks' answers become one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.training.network import NUM_CLASSES

HeadKind = Literal["mean", "weights", "mlp"]

DROPOUT = 0.2
"""Share of the MLP head's hidden units that are left out in training."""


class Head(nn.Module):
    """Maps what K trunks say of N images to logits (N, 2).

    Attributes:
        needs_features: whether `forward` wants the trunks' pooled features.
    """

    needs_features = False

    def forward(self, logits: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
        """
        Args:
            logits: K tensors (N, 2).
            features: K tensors (N, D of the trunk); nothing where they are not needed.

        Returns:
            (N, 2).
        """
        raise NotImplementedError


class MeanHead(Head):
    """The mean of the trunks' probabilities.

    Its logits are log(mean_k softmax(z_k)), so that their softmax is that mean, computed in log
    space: finite where a probability rounds to 0.
    """

    def forward(self, logits: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        log_probabilities = F.log_softmax(torch.stack(list(logits)).float(), dim=-1)
        return log_probabilities.logsumexp(dim=0) - math.log(len(logits))


class WeightsHead(Head):
    """sum_k w_k z_k with learned weights w = softmax(raw): convex, whatever is learned.

    thop does not see its K parameters; the exact count does.
    """

    def __init__(self, trunks: int) -> None:
        """
        Args:
            trunks: K; the weights start equal.
        """
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(trunks))

    @property
    def weights(self) -> Tensor:
        """(K,) positive, summing to 1."""
        return self.raw.softmax(dim=0)

    def forward(self, logits: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:  # noqa: ARG002
        # No matrix product, which autocast would compute in 16 bits.
        return (self.weights[:, None, None] * torch.stack(list(logits)).float()).sum(dim=0)


class MlpHead(Head):
    """The mean of the probabilities, corrected by a small MLP on the concatenated features.

    The features of each trunk are normalised to mean 0 and variance 1 an image, so that trunks of
    any scale weigh alike. The MLP's last layer starts at zero: untrained, it is a MeanHead.
    """

    needs_features = True

    def __init__(self, feature_sizes: Sequence[int], hidden_size: int) -> None:
        """
        Args:
            feature_sizes: D of each trunk.
            hidden_size: units of the hidden layer.
        """
        super().__init__()
        self.mean = MeanHead()
        self.norms = nn.ModuleList(
            nn.LayerNorm(size, elementwise_affine=False) for size in feature_sizes
        )
        self.hidden = nn.Linear(sum(feature_sizes), hidden_size)
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(DROPOUT)
        self.output = nn.Linear(hidden_size, NUM_CLASSES)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, logits: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
        normalised = [
            norm(feature.float()) for norm, feature in zip(self.norms, features, strict=True)
        ]
        hidden = self.activation(self.hidden(torch.cat(normalised, dim=1)))
        correction: Tensor = self.output(self.dropout(hidden))
        mean: Tensor = self.mean(logits, features)
        return mean + correction.float()


def build_head(
    kind: HeadKind, feature_sizes: Sequence[int], hidden_size: int, seed: int = 0
) -> Head:
    """An untrained head: as it is, each of them weighs all trunks alike.

    Args:
        kind: "mean", "weights" or "mlp".
        feature_sizes: D of each trunk.
        hidden_size: units of the MLP's hidden layer.
        seed: of the MLP's initialisation.
    """
    if kind == "mean":
        return MeanHead()
    if kind == "weights":
        return WeightsHead(len(feature_sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MlpHead(feature_sizes, hidden_size)


def head_cost(kind: HeadKind, feature_size: int, hidden_size: int) -> int:
    """Parameters that a head has for one trunk with D = `feature_size`."""
    return {"mean": 0, "weights": 1, "mlp": feature_size * hidden_size}[kind]


def head_overhead(kind: HeadKind, hidden_size: int) -> int:
    """Parameters that a head has however many trunks there are."""
    return hidden_size + (hidden_size + 1) * NUM_CLASSES if kind == "mlp" else 0
