"""The views of each image that a patient student sees (arXiv:2106.05237), fixed beforehand.

A view is made from its seed alone, so teacher and student see the same pixels, whenever they look;
what the teacher says of each is computed once and kept on disk.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console

from ensemble.distill.teacher import Teacher, TeacherOutputs
from ensemble.network.training import Leftover
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
from search.files import drop_unfinished_writes, write_atomically, write_json_atomically
from search.interruption import Interrupted
from search.training.device import Runtime
from search.training.scoring import MemoryBackOff, to_device
from search.training.train import CHECKPOINT_MINUTES

MANIFEST = "manifest.json"
MARGINS, FEATURES = "margins", "features"

FEATURE_DTYPE = np.dtype(np.float16)
"""Normalised features lie within a few units of 0, where float16 is good to about 1e-3."""


class RecordedViews:
    """A TeacherSource that looks up what the teacher said."""

    def __init__(self, folder: Path, manifest: ViewManifest) -> None:
        """
        Args:
            folder: where `record_views` wrote.
            manifest: of its first `views` rounds.
        """
        self.folder = folder
        self.seeds = manifest.seeds()  # (V, N)
        rounds = range(manifest.views)
        self.margins: NDArray[np.float32] = np.stack(  # (V, N)
            [np.load(_round_file(folder, MARGINS, round_)) for round_ in rounds]
        )
        self.features: list[NDArray[np.float16]] | None = None  # V of (N, D)
        if manifest.with_features:
            self.features = [
                np.load(_round_file(folder, FEATURES, round_), mmap_mode="r") for round_ in rounds
            ]

    @property
    def feature_size(self) -> int:
        """D of the outputs' features; 0 if there are none."""
        return 0 if self.features is None else self.features[0].shape[1]

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
            found = np.stack([self.features[r][row] for r, row in zip(rounds, rows, strict=True)])
            features = torch.from_numpy(found).to(device).float()
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
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> RecordedViews:
    """Has the teacher look once at every view that is not recorded yet.

    Args:
        folder: where the outputs lie or shall lie; those of another manifest must be settled, see
            `other_views`.
        manifest: what they depend on.
        teacher: makes the teacher; called only if something is left to do.
        table: label table of the images, as many as the manifest says.
        batch_size: images of one forward pass.
        runtime: the device, and how many processes decode images.
        quarantine: is told of broken images, which get no outputs.
        console: is told of what a user should know.
        on_batch: told how many batches of how many are finished; what it raises ends the
            recording, and the next one goes on from there.
        checkpoint_minutes: longest time of work that a kill can cost.

    Raises:
        UserError: if the disk is too small, or the teacher says something that is no number.
    """
    _open_folder(folder, manifest, console)
    missing = [r for r in range(manifest.views) if not _round_file(folder, MARGINS, r).exists()]
    if missing:
        asked, back_off = teacher(), MemoryBackOff()
        _check_space(folder, manifest, asked.feature_size, len(missing))
        loader = round_loader(
            table, manifest, batch_size=batch_size, runtime=runtime, quarantine=quarantine
        )
        batches = len(loader)
        for round_ in missing:
            loader.set_epoch(round_)
            record = _Round(folder, round_, manifest, asked.feature_size, batch_size)
            saved = time.monotonic()
            for number, batch in loader.numbered(record.batches):
                outputs = _join(back_off(asked.ask, to_device(batch, runtime).images))
                _check_finite(outputs, manifest)
                record.add(number, batch.indices.numpy(), outputs)
                try:
                    on_batch(round_ * batches + number + 1, manifest.views * batches)
                except Interrupted:
                    record.save()
                    raise
                if time.monotonic() - saved >= 60 * checkpoint_minutes:
                    record.save()
                    saved = time.monotonic()
            record.finish()
    return RecordedViews(folder, manifest)


class _Round:
    """One view of each image: what is recorded of it so far."""

    def __init__(
        self,
        folder: Path,
        round_: int,
        manifest: ViewManifest,
        feature_size: int,
        batch_size: int,
    ) -> None:
        self.margins_file = _round_file(folder, MARGINS, round_)
        self.features_file = _round_file(folder, FEATURES, round_)
        self.begun_file = folder / f".begun_{round_:04d}.npz"
        self.begun_features = folder / f".{self.features_file.name}.begun"
        self.margins = np.full(manifest.images, np.nan, np.float32)
        self.features: np.memmap[Any, np.dtype[np.float16]] | None = None
        self.batch_size = batch_size
        self.batches = 0
        mode: Literal["r+", "w+"] = "w+"
        found = self._begun()
        if found is not None and (self.begun_features.exists() or not manifest.with_features):
            self.margins, self.batches = found
            mode = "r+"
        if manifest.with_features:
            self.features = np.lib.format.open_memmap(
                self.begun_features,
                mode=mode,
                dtype=FEATURE_DTYPE,
                shape=(manifest.images, feature_size),
            )

    def add(self, number: int, rows: NDArray[np.int64], outputs: TeacherOutputs) -> None:
        """Takes up what the teacher said of the images of a batch."""
        self.margins[rows] = outputs.margins.cpu().numpy()
        if self.features is not None and outputs.features is not None:
            self.features[rows] = outputs.features.cpu().numpy()
        self.batches = number + 1

    def save(self) -> None:
        """Keeps what is recorded so far, to go on from."""
        self._flush()
        margins, batches, of = self.margins, self.batches, self.batch_size
        _write(
            self.begun_file, lambda file: np.savez(file, margins=margins, batches=batches, of=of)
        )

    def finish(self) -> None:
        """Makes the round a whole one."""
        if self.features is not None:
            self._flush()
            self.begun_features.replace(self.features_file)
        # Last: a round with margins is whole.
        _write(self.margins_file, lambda file: np.save(file, self.margins))
        self.begun_file.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self.features is not None:
            self.features.flush()

    def _begun(self) -> tuple[NDArray[np.float32], int] | None:
        """What was saved of the round, if that can be gone on from."""
        try:
            with np.load(self.begun_file) as content:
                same = int(content["of"]) == self.batch_size
                return (content["margins"], int(content["batches"])) if same else None
        except (OSError, ValueError, KeyError):
            return None


def _round_file(folder: Path, kind: str, round_: int) -> Path:
    return folder / f"{kind}_{round_:04d}.npy"


def _write(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Replaces a file as a whole, by what NumPy writes into it."""

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            write(file)

    write_atomically(path, fill)


def _join(parts: list[TeacherOutputs]) -> TeacherOutputs:
    features = [part.features for part in parts if part.features is not None]
    return TeacherOutputs(
        margins=torch.cat([part.margins for part in parts]),
        features=torch.cat(features) if features else None,
    )


def other_views(folder: Path, manifest: ViewManifest) -> Leftover | None:
    """Recorded views that a manifest cannot use; how many there are does not matter."""
    found = _read_manifest(folder)
    if found is None:
        return None
    leftover = Leftover(folder, "recorded views", manifest.compared(), _compared(found))
    return leftover if leftover.changed else None


def _open_folder(folder: Path, manifest: ViewManifest, console: Console) -> None:
    """Leaves a folder with this manifest, or one of other patches of the libraries."""
    found = _read_manifest(folder)
    if found is None:
        if folder.exists():
            console.print(
                f"{folder / MANIFEST} cannot be read: its views are recorded anew",
                highlight=False,
                soft_wrap=True,
            )
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        # Last: without a manifest the folder counts as empty.
        write_json_atomically(folder / MANIFEST, manifest.to_json())
        return
    _drop_leftovers(folder)
    before, now = found["versions"], manifest.to_json()["versions"]
    patches = [f"{name} {before[name]}" for name in now if before.get(name) != now[name]]
    if patches:
        console.print(
            f"the recorded views were made with {', '.join(patches)}, another patch of what is "
            "installed: kept",
            highlight=False,
            soft_wrap=True,
        )


def _drop_leftovers(folder: Path) -> None:
    """Deletes what killed processes left half-written, and what was saved of rounds that are whole
    by now."""
    drop_unfinished_writes(folder)
    for begun in folder.glob(".begun_*.npz"):
        if _round_file(folder, MARGINS, int(begun.stem.removeprefix(".begun_"))).exists():
            begun.unlink()


def _check_space(folder: Path, manifest: ViewManifest, feature_size: int, rounds: int) -> None:
    size = rounds * manifest.images * feature_size * FEATURE_DTYPE.itemsize
    free = shutil.disk_usage(folder).free
    if manifest.with_features and size > free:
        raise UserError(
            f"the teacher's features need {size / 2**30:.1f} GiB in {folder}, found "
            f"{free / 2**30:.1f} GiB free; choose fewer --views, or --feature-weight 0"
        )


def _check_finite(outputs: TeacherOutputs, manifest: ViewManifest) -> None:
    if not outputs.margins.isfinite().all():
        names = ", ".join(entry.name for entry in manifest.teachers)
        raise UserError(
            f"a teacher's outputs must be finite numbers, found others among those of {names}; "
            "choose other --teachers"
        )


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the outputs in a folder depend on; None if that is absent or damaged."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(content, dict) and isinstance(content.get("versions"), dict)
    return content if known else None


def _compared(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree of a saved manifest: of a version the first two numbers."""
    content = {name: value for name, value in manifest.items() if name != "versions"}
    versions = {name: ".".join(v.split(".")[:2]) for name, v in manifest["versions"].items()}
    return content | versions


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
    image_size: int
    with_features: bool  # else margins only

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the versions of the libraries that make views, but without `views`."""
        libraries = ("torch", "torchvision", "timm", "numpy", "pillow")
        content = asdict(self) | {"versions": {name: version(name) for name in libraries}}
        del content["views"]
        plain: dict[str, Any] = json.loads(json.dumps(content))
        return plain

    def compared(self) -> dict[str, Any]:
        """What must agree with recorded outputs for them to be used."""
        return _compared(self.to_json())

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
