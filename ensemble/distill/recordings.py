"""What teachers say of each view of each image, computed once and kept on disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from ensemble.distill.outputs import Teacher, TeacherOutputs
from ensemble.distill.views import ViewManifest, compared, round_loader
from ensemble.network.training import Leftover
from search.errors import UserError
from search.machine.device import Runtime
from search.machine.files import (
    drop_unfinished_writes,
    read_json,
    write_atomically,
    write_json_atomically,
)
from search.machine.interruption import Interrupted
from search.machine.progress import tell_line
from search.pixels.images import BrokenImage, read_image
from search.pixels.loading.batches import Batch, Shown
from search.pixels.loading.reading import Reader
from search.training.scoring import MemoryBackOff, show
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

    def __call__(self, batch: Shown) -> TeacherOutputs:
        """
        Raises:
            ValueError: if the batch holds a view that was not recorded.
        """
        rows = batch.indices.cpu().numpy()
        is_view = self.seeds[:, rows] == batch.seeds.cpu().numpy()
        rounds = is_view.argmax(axis=0)
        margins = self.margins[rounds, rows]
        # Images that could not be read have NaN.
        if not is_view.any(axis=0).all() or not np.isfinite(margins).all():
            raise ValueError(f"only recorded views have teacher outputs; {self.folder} lacks some")
        device = batch.targets.device
        features = None
        if self.features is not None:
            found = np.stack([self.features[r][row] for r, row in zip(rounds, rows, strict=True)])
            features = _on_device(found, device).float()
        return TeacherOutputs(_on_device(margins, device), features)


def _on_device(values: NDArray[Any], device: torch.device) -> Tensor:
    found = torch.from_numpy(values)
    if device.type == "cuda":
        # From other memory each micro-batch would wait for the GPU.
        return found.pin_memory().to(device, non_blocking=True)
    return found.to(device)


def record_views(
    folder: Path,
    manifest: ViewManifest,
    teacher: Callable[[], Teacher],
    table: pd.DataFrame,
    *,
    batch_size: int,
    runtime: Runtime,
    reader: Reader,
    console: Console,
    on_batch: Callable[[int, int], None] = lambda _finished, _batches: None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> RecordedViews:
    """Has the teacher look once at every view that is not recorded yet; at those of an image that
    was broken then, and is mended, as soon as it is.

    Args:
        folder: where the outputs lie or shall lie; those of another manifest must be settled, see
            `other_views`.
        manifest: what they depend on.
        teacher: makes the teacher; called only if something is left to do.
        table: label table of the images, as many as the manifest says.
        batch_size: images of one forward pass.
        runtime: the device.
        reader: reads the images; broken ones get no outputs.
        console: is told of what a user should know.
        on_batch: told how many batches of how many are finished; what it raises ends the
            recording, and the next one goes on from there.
        checkpoint_minutes: longest time of work that a kill can cost.

    Raises:
        UserError: if the disk is too small, or the teacher says something that is no number.
    """
    _open_folder(folder, manifest, console)
    asked, back_off = cache(teacher), MemoryBackOff()

    def ask(batch: Batch) -> TeacherOutputs:
        shown = show(batch, asked().image_sizes, runtime)
        outputs = _join(back_off(asked().ask, shown.images))
        _check_finite(outputs, manifest)
        return outputs

    loader_of = partial(round_loader, *(reader, table, manifest), batch_size=batch_size)
    missing = _missing_rounds(folder, manifest)
    batches = -(-len(table) // batch_size)
    if missing:
        check_space(folder, manifest, asked().feature_size)
        loader = loader_of()
        for round_ in missing:
            loader.set_epoch(round_)
            record = _Round(folder, round_, manifest, asked().feature_size, batch_size)
            saved = time.monotonic()
            for number, batch in loader.numbered(record.batches, asked().image_sizes):
                try:
                    record.add(number, batch.indices.numpy(), ask(batch))
                    on_batch(round_ * batches + number + 1, manifest.views * batches)
                except Interrupted:
                    record.save()
                    raise
                if time.monotonic() - saved >= 60 * checkpoint_minutes:
                    record.save()
                    saved = time.monotonic()
            record.finish()
    for round_ in range(manifest.views):
        rows = _mended(folder, round_, table, reader.quarantine.paths)
        if len(rows):
            loader = loader_of(rows)
            loader.set_epoch(round_)
            said = []
            for _, batch in loader.numbered(sizes=asked().image_sizes):
                said.append((batch.indices.numpy().copy(), ask(batch)))
                on_batch(manifest.views * batches, manifest.views * batches)
            _add_to_round(folder, round_, said)
    return RecordedViews(folder, manifest)


def _mended(folder: Path, round_: int, table: pd.DataFrame, known: set[str]) -> NDArray[np.int64]:
    """Rows of images that could not be read when a round was recorded, and may be read now."""
    lacking = np.isnan(np.load(_round_file(folder, MARGINS, round_)))
    rows = np.flatnonzero(lacking & ~table["path"].isin(known).to_numpy())
    # Read beforehand: a loader refuses a set of which nothing is left.
    return np.array([row for row in rows if _is_readable(table["path"].iloc[row])], np.int64)


def _is_readable(path: str) -> bool:
    try:
        read_image(path)
    except BrokenImage:
        return False
    return True


def _add_to_round(
    folder: Path, round_: int, said: list[tuple[NDArray[np.int64], TeacherOutputs]]
) -> None:
    """Adds what the teacher said of some images to a round that is whole but for them."""
    margins_file, features_file = (_round_file(folder, k, round_) for k in (MARGINS, FEATURES))
    margins = np.load(margins_file)
    for rows, outputs in said:
        margins[rows] = outputs.margins.cpu().numpy()
        if outputs.features is not None:
            features = np.load(features_file, mmap_mode="r+")
            features[rows] = outputs.features.cpu().numpy()
            features.flush()
    # Last: it says which images are recorded.
    _write(margins_file, lambda file: np.save(file, margins))


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


def _missing_rounds(folder: Path, manifest: ViewManifest) -> list[int]:
    rounds = range(manifest.views)
    return [round_ for round_ in rounds if not _round_file(folder, MARGINS, round_).exists()]


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
    """Recorded views that a manifest cannot use, or of which none can be read; how many there are
    does not matter."""
    found = _read_manifest(folder)
    if found is None and not any(folder.glob("*.np*")):
        return None  # A kill came before anything was recorded.
    if found is None:
        what = f"recorded views whose {MANIFEST} cannot be read"
        return Leftover(folder, what, manifest.compared(), None)
    leftover = Leftover(folder, "recorded views", manifest.compared(), compared(found))
    return leftover if leftover.changed else None


def _open_folder(folder: Path, manifest: ViewManifest, console: Console) -> None:
    """Leaves a folder with this manifest, or one of other patches of the libraries."""
    assert other_views(folder, manifest) is None
    found = _read_manifest(folder)
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json_atomically(folder / MANIFEST, manifest.to_json())
        return
    _drop_leftovers(folder)
    before, now = found["versions"], manifest.to_json()["versions"]
    patches = [f"{name} {before[name]}" for name in now if before.get(name) != now[name]]
    if patches:
        tell_line(
            console,
            f"the recorded views were made with {', '.join(patches)}, another patch of what is "
            "installed: kept",
        )


def _drop_leftovers(folder: Path) -> None:
    """Deletes what killed processes left half-written, and what was saved of rounds that are whole
    by now."""
    drop_unfinished_writes(folder)
    for begun in folder.glob(".begun_*.npz"):
        if _round_file(folder, MARGINS, int(begun.stem.removeprefix(".begun_"))).exists():
            begun.unlink()


def check_space(folder: Path, manifest: ViewManifest, feature_size: int) -> None:
    """
    Args:
        folder: of the recorded views, or where they shall lie.
        manifest: of them.
        feature_size: D of the teacher's features.

    Raises:
        UserError: if the disk is too small for what is not recorded yet.
    """
    rounds = len(_missing_rounds(folder, manifest))
    size = rounds * manifest.images * feature_size * FEATURE_DTYPE.itemsize
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if manifest.with_features and size > free:
        raise UserError(
            f"the teacher's features need {size / 2**30:.1f} GiB in {folder}, found "
            f"{free / 2**30:.1f} GiB free; choose fewer --views, or --feature-weight 0"
        )


def _check_finite(outputs: TeacherOutputs, manifest: ViewManifest) -> None:
    if not outputs.margins.isfinite().all():
        names = ", ".join(entry.name for entry in manifest.teachers)
        exact = "" if manifest.precision == "fp32" else "use --teacher-precision fp32, or "
        raise UserError(
            f"a teacher's outputs must be finite numbers, found others among those of {names} in "
            f"{manifest.precision}; {exact}choose other --teachers"
        )


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """What the outputs in a folder depend on; None if that is absent or damaged."""
    try:
        content = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return None
    return content if isinstance(content.get("versions"), dict) else None
