"""A label table as a recipe is trained on it: its batches, and its loss."""

from __future__ import annotations

import numpy as np
import pandas as pd

from search.data.augment import train_transform
from search.data.loaders import Loader, train_loader
from search.data.quarantine import Quarantine
from search.training.loss import ClassificationLoss
from search.training.recipe import Recipe
from search.training.runtime import Runtime


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
