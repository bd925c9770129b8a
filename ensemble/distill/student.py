"""A student and what it is taught by: `search.training.train` trains it like any network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ensemble.distill import losses
from ensemble.distill.outputs import TeacherSource
from search.pixels.loading.batches import Images, Shown
from search.training.network import Network


@dataclass(frozen=True)
class LossWeights:
    """How much each loss counts; see `ensemble.distill.losses`."""

    match: Literal["bce", "mse"]  # margins by margin_bce or by margin_mse
    temperature: float  # of margin_bce
    hard_label: float  # in [0, 1]; the match of margins gets the rest
    relation: float
    feature: float


class Student(nn.Module):
    """A network and, while it learns features, their projection into the teacher's.

    The projection is trained with the network and left behind: only `network` is kept.

    Attributes:
        network: what the student is when it has learned.
        image_sizes: of the views that it is trained on: its network's, and those of a teacher that
            is asked about the same batches.
        projection: (N, D of the student) -> (N, D of the teacher); None if no features are learned.
    """

    def __init__(
        self,
        network: Network,
        feature_size: int = 0,
        seed: int = 0,
        teacher_sizes: tuple[int, ...] = (),
    ) -> None:
        """
        Args:
            network: the student.
            feature_size: D of the teacher's features; 0 learns none.
            seed: of the projection's initialisation.
            teacher_sizes: `image_sizes` of a live teacher.
        """
        super().__init__()
        self.network = network
        self.image_sizes = tuple(sorted({*network.image_sizes, *teacher_sizes}))
        self.projection: nn.Linear | None = None
        if feature_size:
            size = network.image_size
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                features, _ = network.forward_with_features(torch.zeros(1, 3, size, size))
                self.projection = nn.Linear(features.shape[1], feature_size)

    def forward(self, images: Images) -> Tensor:
        """Logits (N, 2); see `Network`."""
        logits: Tensor = self.network(images)
        return logits

    def forward_with_projection(self, images: Images) -> tuple[Tensor, Tensor]:
        """Projected features (N, D) and logits (N, 2); there must be a projection."""
        assert self.projection is not None
        features, logits = self.network.forward_with_features(images)
        return self.projection(features), logits

    def parameter_groups(
        self, weight_decay: float, lowest_layer_scale: float
    ) -> list[dict[str, Any]]:
        """The network's groups; the projection, which is new, learns as fast as the head."""
        groups = self.network.parameter_groups(weight_decay, lowest_layer_scale)
        if self.projection is not None:
            groups.append(
                {
                    "params": list(self.projection.parameters()),
                    "weight_decay": weight_decay,
                    "lr_scale": 1.0,
                }
            )
        return groups


class DistillationLoss:
    """The weighted sum of the losses of `ensemble.distill.losses` on one batch: a `Loss`.

    (1 - h) match + h hard_label + r relation + f feature_matching
    """

    def __init__(self, teacher: TeacherSource, weights: LossWeights) -> None:
        self.teacher, self.weights = teacher, weights

    def __call__(self, network: nn.Module, batch: Shown) -> Tensor:
        """
        Args:
            network: a Student, if features are learned.
            batch: images and where they come from.
        """
        student: Any = network
        weights, taught = self.weights, self.teacher(batch)
        if weights.feature > 0:
            projected, logits = student.forward_with_projection(batch.images)
        else:
            projected, logits = None, student(batch.images)
        if weights.match == "bce":
            match = losses.margin_bce(logits, taught.margins, weights.temperature)
        else:
            match = losses.margin_mse(logits, taught.margins)
        label = losses.hard_label(logits, batch.targets)
        loss = (1 - weights.hard_label) * match + weights.hard_label * label
        if weights.relation > 0:
            loss = loss + weights.relation * losses.relation(logits, taught.margins)
        if projected is not None:
            assert taught.features is not None
            loss = loss + weights.feature * losses.feature_matching(projected, taught.features)
        return loss
