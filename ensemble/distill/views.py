"""The views of each image that a patient student sees (arXiv:2106.05237), fixed beforehand.

A view is made from its seed alone, so teacher and student see the same pixels, whenever they look.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ensemble.teachers import TeacherEntry
from search.machine.device import Precision
from search.pixels.augmentation.augment import Augmentation
from search.pixels.loading.epochs import (
    SMALLEST_TRAINING_BATCH,
    BatchPlan,
    Loader,
    balanced,
    shuffled,
    view_seeds,
)
from search.pixels.loading.reading import Reader


@dataclass(frozen=True)
class ViewManifest:
    """All that a teacher's recorded outputs depend on, and how many rounds of views are asked for.

    A round's views depend on its number alone: more rounds need only the missing ones.
    """

    teachers: tuple[TeacherEntry, ...]
    split_fingerprint: str
    images: int
    views: int
    seed: int
    augmentation: str
    augmentation_strength: float
    canvas: int
    with_features: bool  # else margins only
    precision: Precision = "fp32"  # of the teachers' forward passes

    @property
    def policy(self) -> Augmentation:
        """What makes the views."""
        return Augmentation(self.augmentation, self.augmentation_strength)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the versions of the libraries that make views, but without `views`."""
        libraries = ("torch", "torchvision", "timm", "numpy", "pillow")
        content = asdict(self) | {"versions": {name: version(name) for name in libraries}}
        del content["views"]
        plain: dict[str, Any] = json.loads(json.dumps(content))
        return plain

    def compared(self) -> dict[str, Any]:
        """What must agree with recorded outputs for them to be used."""
        return compared(self.to_json())

    def seeds(self) -> NDArray[np.int64]:
        """View seeds (views, images): those of the first epochs of `train_batches`."""
        rows = np.arange(self.images)
        return np.stack(
            [
                view_seeds(self.seed, round_, rows, np.zeros_like(rows))
                for round_ in range(self.views)
            ]
        )


def view_loader(
    reader: Reader,
    table: pd.DataFrame,
    manifest: ViewManifest,
    *,
    batch_size: int,
    seed: int,
    balance: bool = False,
) -> Loader:
    """Batches of recorded views in the order of `train_batches`: epoch e shows view e mod V of each
    image; an image that a balanced epoch repeats comes in its next views.

    Args:
        reader, table, batch_size, seed, balance: see `train_batches`.
        manifest: of the recorded views.
    """
    seeds, targets = manifest.seeds(), table["target"].to_numpy()

    def draw(epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = balanced(targets, seed, epoch) if balance else shuffled(len(table), seed, epoch)
        repeats = pd.Series(order).groupby(order).cumcount().to_numpy()
        return order, seeds[(epoch + repeats) % manifest.views, order]

    plan = BatchPlan(
        draw,
        len(table),
        batch_size=batch_size,
        smallest_batch=SMALLEST_TRAINING_BATCH,
        drop_last=True,
    )
    return Loader(reader, table, plan, manifest.policy)


def round_loader(
    reader: Reader,
    table: pd.DataFrame,
    manifest: ViewManifest,
    rows: NDArray[np.int64] | None = None,
    *,
    batch_size: int,
) -> Loader:
    """Images in the table's order, all or those of some rows; epoch r shows view r of each."""
    seeds = manifest.seeds()
    shown = np.arange(len(table)) if rows is None else rows
    plan = BatchPlan(
        lambda round_: (shown, seeds[round_, shown]),
        len(shown),
        batch_size=batch_size,
        smallest_batch=1,
        drop_last=False,
    )
    return Loader(reader, table, plan, manifest.policy)


def compared(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree of a saved manifest: of a version the first two numbers."""
    content = {name: value for name, value in manifest.items() if name != "versions"}
    versions = {name: ".".join(v.split(".")[:2]) for name, v in manifest["versions"].items()}
    return content | versions
