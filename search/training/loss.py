"""A label table as a recipe is trained on it: its batches, and the recipe's loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from search.pixels.loading.batches import Shown
from search.pixels.loading.epochs import Loader, train_batches
from search.pixels.loading.reading import Reader
from search.training.network import NUM_CLASSES
from search.training.recipe import Recipe

Loss = Callable[[nn.Module, Shown], Tensor]
"""Maps a network and a batch on its device to the mean loss over the batch (a scalar)."""


class Mixing:
    """Mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899) of a whole batch, each image with its
    neighbour; with both set, each batch draws one of them.

    Parameters come from torch's global generator.
    """

    def __init__(self, recipe: Recipe) -> None:
        """
        Args:
            recipe: one of its two alphas is above 0.
        """
        alphas = {v2.MixUp: recipe.mixup_alpha, v2.CutMix: recipe.cutmix_alpha}
        chosen = [
            kind(alpha=alpha, num_classes=NUM_CLASSES) for kind, alpha in alphas.items() if alpha
        ]
        self._mix = v2.RandomChoice(chosen) if len(chosen) > 1 else chosen[0]

    def __call__(self, batch: Shown) -> Shown:
        """The mixed batch: targets become shares of the classes (N, 2).

        Args:
            batch: images are floats (N, 3, S, S), targets whole numbers, of any N.
        """
        images, targets = self._mix(batch.images, batch.targets)
        return replace(batch, images=images, targets=targets)


def mixing(recipe: Recipe) -> Mixing | None:
    """What mixes a recipe's batches; None if nothing does."""
    return Mixing(recipe) if recipe.mixup_alpha > 0 or recipe.cutmix_alpha > 0 else None


class ClassificationLoss:
    """Cross entropy on two logits, as the recipe asks."""

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

    def __call__(self, network: nn.Module, batch: Shown) -> Tensor:
        """
        Args:
            network: gives logits (N, 2).
            batch: targets are classes (N,), or shares of them (N, 2) if it was mixed.
        """
        targets = batch.targets
        if targets.ndim == 1:
            targets = F.one_hot(targets, NUM_CLASSES).float()
        if self.weight is not None:
            # Moved once: a copy in every step would wait for the GPU.
            self.weight = self.weight.to(targets.device)
        return F.cross_entropy(
            network(batch.images).float(),
            targets,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
        )


def training_batches(table: pd.DataFrame, recipe: Recipe, reader: Reader) -> Loader:
    """Batches of `recipe.batch_size` images, augmented, balanced and ordered as the recipe says.

    Args:
        table: label table.
        recipe: its size is that of the network, not of the batches, which are canvases.
        reader: reads them, at the recipe's canvas.

    Raises:
        UserError: as `train_batches` and `Recipe.views`.
    """
    assert reader.side == recipe.canvas
    return train_batches(
        reader,
        table,
        recipe.views,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        balance=recipe.class_balance == "sampler",
        batch_order=recipe.batch_order,
        blended=recipe.self_blended,
        mixed=recipe.mixed_with_real,
    )


def classification_loss(table: pd.DataFrame, recipe: Recipe) -> ClassificationLoss:
    """The recipe's loss, weighted by how many images of each class are shown of the label table."""
    real, fake = (int(count) for count in np.bincount(table["target"], minlength=2))
    blended = round(recipe.self_blended * real)
    return ClassificationLoss(recipe, (real - blended, fake + blended))
