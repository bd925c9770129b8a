"""The views of each image that a patient student sees (arXiv:2106.05237), fixed beforehand.

A view is made from its seed alone, so teacher and student see the same pixels, whenever they look;
what the teacher says of each is computed once and kept on disk.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console

from ensemble.distill.teacher import Teacher, TeacherOutputs
from ensemble.teachers import TeacherEntry
from search.data.augment import train_transform
from search.data.batches import (
    SMALLEST_TRAINING_BATCH,
    Batch,
    BatchPlan,
    Loader,
    balanced,
    shuffled,
    view_seeds,
)
from search.data.quarantine import Quarantine
from search.errors import UserError
from search.files import write_json_atomically
from search.training.device import Runtime
from search.training.scoring import MemoryBackOff, to_device

MANIFEST = "manifest.json"
FINISHED = "finished_rounds.json"
SEEDS, MARGINS, FEATURES = "seeds.npy", "margins.npy", "features.npy"

FEATURE_DTYPE = np.dtype(np.float16)
"""Normalised features lie within a few units of 0, where float16 is good to about 1e-3."""


class RecordedViews:
    """A TeacherSource that looks up what the teacher said."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: where `record_views` wrote.
        """
        self.folder = folder
        self.seeds: NDArray[np.int64] = np.load(folder / SEEDS)  # (V, N)
        self.margins: NDArray[np.float32] = np.load(folder / MARGINS, mmap_mode="r")  # (V, N)
        self.features: NDArray[np.float16] | None = None  # (V, N, D)
        if (folder / FEATURES).exists():
            self.features = np.load(folder / FEATURES, mmap_mode="r")

    @property
    def feature_size(self) -> int:
        """D of the outputs' features; 0 if there are none."""
        return 0 if self.features is None else self.features.shape[2]

    def __call__(self, batch: Batch) -> TeacherOutputs:
        """
        Raises:
            ValueError: if the batch holds a view that was not recorded.
            UserError: if an image could not be read when the views were recorded.
        """
        rows = batch.indices.cpu().numpy()
        is_view = self.seeds[:, rows] == batch.seeds.cpu().numpy()
        if not is_view.any(axis=0).all():
            raise ValueError(f"only recorded views have teacher outputs; {self.folder} lacks some")
        rounds = is_view.argmax(axis=0)
        margins = self.margins[rounds, rows]
        if not np.isfinite(margins).all():
            raise UserError(
                f"{self.folder} must hold the teacher's outputs for every image, but some images "
                "could not be read when they were recorded; delete the folder to record anew"
            )
        device = batch.images.device
        features = None
        if self.features is not None:
            features = torch.from_numpy(self.features[rounds, rows]).to(device).float()
        return TeacherOutputs(torch.from_numpy(margins).to(device), features)


def record_views(
    folder: Path,
    manifest: ViewManifest,
    teacher: Callable[[], Teacher],
    table: pd.DataFrame,
    *,
    batch_size: int,
    runtime: Runtime,
    quarantine: Quarantine | None,
    console: Console,
    on_batch: Callable[[int, int], None] = lambda _finished, _batches: None,
) -> RecordedViews:
    """Has the teacher look at every view once; goes on after the last finished round of views.

    Args:
        folder: where the outputs lie or shall lie.
        manifest: what they depend on; outputs of another manifest are replaced.
        teacher: makes the teacher; called only if something is left to do.
        table: label table of the images, as many as the manifest says.
        batch_size: images of one forward pass.
        runtime: the device, and how many processes decode images.
        quarantine: is told of broken images, which get no outputs.
        console: is told why outputs are replaced.
        on_batch: told how many batches of how many are finished; what it raises ends the
            recording, and the next one repeats the round of views that was begun.

    Raises:
        UserError: if the disk is too small, or the teacher says something that is no number.
    """
    _prepare(folder, manifest, console)
    finished = _finished_rounds(folder)
    if finished < manifest.views:
        asked, back_off = teacher(), MemoryBackOff()
        loader = round_loader(
            table, manifest, batch_size=batch_size, runtime=runtime, quarantine=quarantine
        )
        margins = np.load(folder / MARGINS, mmap_mode="r+")
        features = _open_features(folder, manifest, asked.feature_size)
        for round_ in range(finished, manifest.views):
            loader.set_epoch(round_)
            margins[round_] = np.nan
            for number, batch in enumerate(loader, start=1):
                outputs = _join(back_off(asked.ask, to_device(batch, runtime).images))
                _check_finite(outputs, manifest)
                rows = batch.indices.numpy()
                margins[round_, rows] = outputs.margins.cpu().numpy()
                if features is not None and outputs.features is not None:
                    features[round_, rows] = outputs.features.cpu().numpy()
                on_batch(round_ * len(loader) + number, manifest.views * len(loader))
            margins.flush()
            if features is not None:
                features.flush()
            write_json_atomically(folder / FINISHED, round_ + 1)
    return RecordedViews(folder)


def _join(parts: list[TeacherOutputs]) -> TeacherOutputs:
    features = [part.features for part in parts if part.features is not None]
    return TeacherOutputs(
        margins=torch.cat([part.margins for part in parts]),
        features=torch.cat(features) if features else None,
    )


def _prepare(folder: Path, manifest: ViewManifest, console: Console) -> None:
    """Leaves in the folder the files of this manifest, begun or new."""
    wanted, found = manifest.to_json(), _read_json(folder / MANIFEST)
    if found == wanted:
        return
    if isinstance(found, dict):
        changed = ", ".join(key for key in wanted if found.get(key) != wanted[key])
        console.print(f"recorded views are of other {changed}: recording anew", highlight=False)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    np.save(folder / SEEDS, manifest.seeds())
    shape = (manifest.views, manifest.images)
    np.lib.format.open_memmap(folder / MARGINS, mode="w+", dtype=np.float32, shape=shape).flush()
    # Last: without a manifest the folder counts as empty.
    write_json_atomically(folder / MANIFEST, wanted)


def _open_features(
    folder: Path, manifest: ViewManifest, feature_size: int
) -> np.memmap[Any, np.dtype[np.float16]] | None:
    """The array (views, images, D) to write features into; None if there are none."""
    if not manifest.with_features:
        return None
    path = folder / FEATURES
    shape = (manifest.views, manifest.images, feature_size)
    if path.exists():
        opened: np.memmap[Any, np.dtype[np.float16]] = np.load(path, mmap_mode="r+")
        return opened
    size = math.prod(shape) * FEATURE_DTYPE.itemsize
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"the teacher's features need {size / 2**30:.1f} GiB in {folder}, found "
            f"{free / 2**30:.1f} GiB free; choose fewer --views, or --feature-weight 0"
        )
    return np.lib.format.open_memmap(path, mode="w+", dtype=FEATURE_DTYPE, shape=shape)


def _finished_rounds(folder: Path) -> int:
    content = _read_json(folder / FINISHED)
    return content if isinstance(content, int) else 0


def _check_finite(outputs: TeacherOutputs, manifest: ViewManifest) -> None:
    if not outputs.margins.isfinite().all():
        names = ", ".join(entry.name for entry in manifest.teachers)
        raise UserError(
            f"a teacher's outputs must be finite numbers, found others among those of {names}; "
            "choose other --teachers"
        )


def _read_json(path: Path) -> Any:
    """The content of a file; None if it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class ViewManifest:
    """All that a teacher's recorded outputs depend on: if any of it changes, they are void."""

    teachers: tuple[TeacherEntry, ...]
    split_fingerprint: str
    images: int
    views: int
    seed: int
    augmentation: str
    augmentation_strength: float
    image_size: int
    with_features: bool  # else margins only

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the versions of the libraries that make views."""
        libraries = ("torch", "torchvision", "timm", "numpy", "pillow")
        content = asdict(self) | {"versions": {name: version(name) for name in libraries}}
        plain: dict[str, Any] = json.loads(json.dumps(content))
        return plain

    def seeds(self) -> NDArray[np.int64]:
        """View seeds (views, images): those of the first epochs of `train_loader`."""
        rows = np.arange(self.images)
        return np.stack(
            [
                view_seeds(self.seed, round_, rows, np.zeros_like(rows))
                for round_ in range(self.views)
            ]
        )


def view_loader(
    table: pd.DataFrame,
    manifest: ViewManifest,
    *,
    batch_size: int,
    seed: int,
    balance: bool = False,
    workers: int = 0,
    quarantine: Quarantine | None = None,
    pin_memory: bool = False,
) -> Loader:
    """Batches of recorded views in the order of `train_loader`: epoch e shows view e mod V of each
    image; an image that a balanced epoch repeats comes in its next views.

    Args:
        table, batch_size, seed, balance, workers, quarantine, pin_memory: see `train_loader`.
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
    return Loader(
        table,
        _transform(manifest),
        plan,
        workers=workers,
        quarantine=quarantine,
        pin_memory=pin_memory,
    )


def round_loader(
    table: pd.DataFrame,
    manifest: ViewManifest,
    *,
    batch_size: int,
    runtime: Runtime,
    quarantine: Quarantine | None = None,
) -> Loader:
    """All images in the table's order; epoch r shows view r of each."""
    rows, seeds = np.arange(len(table)), manifest.seeds()
    plan = BatchPlan(
        lambda round_: (rows, seeds[round_]),
        len(table),
        batch_size=batch_size,
        smallest_batch=1,
        drop_last=False,
    )
    return Loader(
        table,
        _transform(manifest),
        plan,
        workers=runtime.workers,
        quarantine=quarantine,
        pin_memory=runtime.on_cuda,
    )


def _transform(manifest: ViewManifest) -> Any:
    strength = manifest.augmentation_strength
    return train_transform(manifest.augmentation, strength, manifest.image_size)
