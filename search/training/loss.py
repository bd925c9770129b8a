"""A label table as a recipe is trained on it: its batches, and the recipe's loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from timm.data import Mixup
from torch import Tensor, nn
from torch.nn import functional as F

from search.data.augment import train_transform
from search.data.batches import Batch, Loader, train_loader
from search.data.quarantine import Quarantine
from search.training.device import Runtime
from search.training.network import NUM_CLASSES
from search.training.recipe import Recipe

Loss = Callable[[nn.Module, Batch], Tensor]
"""Maps a network and a batch, whose images are floats in [0, 1] on the network's device, to the
mean loss over the batch (a scalar)."""


class ClassificationLoss:
    """Cross entropy on two logits, as the recipe asks.

    Mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899) mix the whole micro-batch; with both
    set, each batch draws one of them.
    """

    def __init__(self, recipe: Recipe, class_counts: tuple[int, int]) -> None:
        """
        Args:
            recipe: its loss fields are used.
            class_counts: how many real and fake images are trained on.
        """
        self.label_smoothing = recipe.label_smoothing
        self.weight: Tensor | None = None
        if recipe.class_balance == "loss":
            counts = torch.tensor(class_counts, dtype=torch.float32)
            self.weight = counts.sum() / (NUM_CLASSES * counts)
        self.mixup: Mixup | None = None
        if recipe.mixup_alpha > 0 or recipe.cutmix_alpha > 0:
            self.mixup = Mixup(
                mixup_alpha=recipe.mixup_alpha,
                cutmix_alpha=recipe.cutmix_alpha,
                label_smoothing=0.0,
                num_classes=NUM_CLASSES,
            )

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        images, targets = batch.images, batch.targets
        if self.mixup is not None and len(images) > 1:
            even = len(images) - len(images) % 2  # timm mixes an image with its mirror in the batch
            images, soft_targets = self.mixup(images[:even], targets[:even])
        else:
            soft_targets = F.one_hot(targets, NUM_CLASSES).float()
        if self.weight is not None:
            # Moved once: a copy in every step would wait for the GPU.
            self.weight = self.weight.to(images.device)
        logits = network(images)
        return F.cross_entropy(
            logits.float(), soft_targets, weight=self.weight, label_smoothing=self.label_smoothing
        )


def training_batches(
    table: pd.DataFrame, recipe: Recipe, runtime: Runtime, quarantine: Quarantine | None
) -> Loader:
    """Batches of `recipe.batch_size` images, augmented, balanced and ordered as the recipe says.

    Args:
        table: label table.
        recipe: its image size is that of the batches.
        runtime: how many processes decode, and whether a GPU fetches the batches.
        quarantine: see `Loader`.

    Raises:
        UserError: as `train_loader` and `train_transform`.
    """
    return train_loader(
        table,
        train_transform(recipe.augmentation, recipe.augmentation_strength, recipe.image_size),
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        balance=recipe.class_balance == "sampler",
        workers=runtime.workers,
        quarantine=quarantine,
        pin_memory=runtime.on_cuda,
    )


def classification_loss(table: pd.DataFrame, recipe: Recipe) -> ClassificationLoss:
    """The recipe's loss, weighted by how many images of each class the label table has."""
    real, fake = np.bincount(table["target"], minlength=2)
    return ClassificationLoss(recipe, (int(real), int(fake)))
