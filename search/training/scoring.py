"""Scoring images with a network: in fp32, so that a candidate's scores can be recomputed; the looks
that a training takes at itself after each epoch may be cheaper."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.data.labels import check_two_classes
from search.data.splits import Splits, draw_part
from search.errors import UserError
from search.machine.device import (
    AUTOCAST_DTYPES,
    Precision,
    Runtime,
    exact_float32,
    is_out_of_memory,
)
from search.pixels.altered import drawn_part
from search.pixels.loading.batches import Batch, Images, Shown, count_images, split_images
from search.training.metrics import Metrics, mean_auc_of_alterations, measure
from search.training.network import margin
from search.training.recipe import SelectLimit

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Output = TypeVar("Output")

SCORING_BATCH = 64
"""Images of one forward pass, where nothing is trained."""


@dataclass(frozen=True)
class Predictions:
    """Scores of the images that could be read."""

    indices: Integers  # (N,) - rows of the table that was scored
    scores: Floats  # (N,) - probability of fake
    targets: Integers  # (N,) - 1 = fake
    groups: Integers | None = None  # (N,) - equal where images are of one source
    unseen: NDArray[np.bool_] | None = None  # (N,) - fakes of methods that fit lacks
    alterations: Integers | None = None  # (N,) - which one; -1: the image as it is

    @staticmethod
    def none() -> Predictions:
        """Of no image."""
        return Predictions(np.empty(0, np.int64), np.empty(0, np.float64), np.empty(0, np.int64))

    def of(self, rows: NDArray[np.bool_]) -> Predictions:
        """Those of some of the images, (N,)."""
        kept: dict[str, Any] = {
            name: None if values is None else values[rows] for name, values in vars(self).items()
        }
        return Predictions(**kept)


@dataclass(frozen=True)
class Evaluation:
    """Predictions of one network on one split, or a part of it, and what they are worth."""

    predictions: Predictions
    metrics: Metrics
    precision: Precision = "fp32"


def to_device(batch: Batch, runtime: Runtime) -> Tensor:
    """The canvases of a batch on the device, as floats in [0, 1]: what every network takes."""
    return batch.canvases.to(runtime.device, non_blocking=True).to(torch.float32).div_(255.0)


def show(
    batch: Batch, sizes: Collection[int], runtime: Runtime, *, channels_last: bool = False
) -> Shown:
    """The views of a batch on the device, as networks of some sizes see them.

    Args:
        batch: see `Batch.show`.
        sizes: of one, the images are a tensor; of several, tensors by size.
        runtime: the device.
        channels_last: lay out the images so.
    """
    images = {}
    for size, pixels in batch.to(runtime.device).show(sizes).items():
        images[size] = pixels.to(torch.float32).div_(255.0)
        if channels_last:
            images[size] = images[size].contiguous(memory_format=torch.channels_last)
    return Shown(
        images=images if len(images) > 1 else next(iter(images.values())),
        targets=batch.targets.to(runtime.device, non_blocking=True),
        indices=batch.indices,
        seeds=batch.seeds,
    )


def autocast(runtime: Runtime, precision: Precision) -> torch.autocast:
    """The context in which forward passes are computed in a precision."""
    return torch.autocast(
        runtime.device.type,
        dtype=AUTOCAST_DTYPES.get(precision),
        enabled=precision != "fp32",
    )


class MemoryBackOff:
    """Runs forward passes in parts that fit into memory: half as large whenever it runs out.

    Attributes:
        largest: images of one part; None until memory has run out once.
    """

    def __init__(self) -> None:
        self.largest: int | None = None

    def __call__(self, forward: Callable[[Any], Output], images: Images) -> list[Output]:
        """What `forward` gives for the parts of some images, in their order.

        Raises:
            torch.OutOfMemoryError: if a single image does not fit.
        """
        count = count_images(images)
        size = min(count, self.largest or count)
        while True:
            try:
                return [forward(part) for part in split_images(images, size)]
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            # Outside the handler, whose traceback would keep the tensors of the failed try alive.
            self.largest = size = (size + 1) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def predict(
    network: nn.Module,
    loader: Iterable[Batch],
    runtime: Runtime,
    on_batch: Callable[[], None] = lambda: None,
    precision: Precision = "fp32",
) -> Predictions:
    """Scores every image of a loader, in its order.

    Args:
        network: maps canvases, RGB in [0, 1], to logits (N, 2); it is moved to the device and left
            in evaluation mode.
        loader: images that cannot be read are left out.
        runtime: the device to compute on.
        on_batch: called after every batch; what it raises ends the scoring.
        precision: of the forward passes; fp32 is computed without TF32.

    Raises:
        FloatingPointError: if a score is not a finite number.
    """
    parts: list[Predictions] = []
    for part in predict_batches(network, loader, runtime, precision):
        parts.append(part)
        on_batch()
    parts.append(Predictions.none())
    joined = Predictions(
        indices=np.concatenate([part.indices for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        targets=np.concatenate([part.targets for part in parts]),
    )
    check_finite(joined.scores)
    return joined


def predict_batches(
    network: nn.Module, loader: Iterable[Batch], runtime: Runtime, precision: Precision = "fp32"
) -> Iterator[Predictions]:
    """The predictions of each batch as it is scored; arguments as for `predict`."""
    network.to(runtime.device).eval()
    back_off = MemoryBackOff()
    for batch in loader:
        # Left before each batch is handed on: modes are the thread's, whoever computes in it.
        with torch.inference_mode(), exact_float32(), autocast(runtime, precision):
            logits = torch.cat(back_off(network, to_device(batch, runtime)))
            # The sigmoid in double precision, which MPS lacks, keeps scores apart that float32
            # would round to 1.
            scores = margin(logits.cpu().double()).sigmoid().numpy()
        # Copies: what a worker sent lies in shared memory, a file descriptor a tensor, and
        # thousands of batches would hold more than a process may have.
        yield Predictions(batch.indices.numpy().copy(), scores, batch.targets.numpy().copy())


def check_finite(scores: Floats) -> None:
    """
    Raises:
        FloatingPointError: if a score is not a finite number.
    """
    broken = int((~np.isfinite(scores)).sum())
    if broken:
        raise FloatingPointError(f"{broken} of {len(scores)} scores are not finite")


def evaluate(
    network: nn.Module,
    loader: Iterable[Batch],
    runtime: Runtime,
    on_batch: Callable[[], None] = lambda: None,
    precision: Precision = "fp32",
    *,
    table: pd.DataFrame | None = None,
) -> Evaluation:
    """Scores every image of a loader and measures the scores; arguments as for `predict`.

    Args:
        table: that the loader reads; its column `group` tells which images are of one source, which
            intervals depend on, `unseen` which are fakes of methods that fit lacks, and
            `alteration` which are altered. None: each image is its own.
    """
    predictions = predict(network, loader, runtime, on_batch, precision)
    if table is not None:
        predictions = described(predictions, table)
    return Evaluation(predictions, measure_predictions(predictions), precision)


def described(predictions: Predictions, table: pd.DataFrame) -> Predictions:
    """Predictions with what a table tells of their images; arguments as for `evaluate`."""
    rows = predictions.indices
    numbers, _ = pd.factorize(table["group"])
    return replace(
        predictions,
        groups=numbers.astype(np.int64)[rows],
        unseen=table["unseen"].to_numpy(np.bool_)[rows] if "unseen" in table else None,
        alterations=table["alteration"].to_numpy(np.int64)[rows] if "alteration" in table else None,
    )


def measure_predictions(predictions: Predictions) -> Metrics:
    """What predictions are worth: those of images as they are, and `auc_stress` of altered ones."""
    if predictions.alterations is None:
        return _measured(predictions)
    found = _measured(predictions.of(predictions.alterations < 0))
    stress = mean_auc_of_alterations(
        predictions.scores, predictions.targets, predictions.alterations
    )
    return replace(found, auc_stress=stress)


def _measured(predictions: Predictions) -> Metrics:
    return measure(
        predictions.scores, predictions.targets, predictions.groups, unseen=predictions.unseen
    )


FIRST_LOOK = 2_000
"""Images after which a training is first scored; then each time that those it has seen have
doubled, whatever an epoch is."""


def first_look(images: int) -> int:
    """Images after which a training is first scored that has so many: one epoch of few."""
    return min(FIRST_LOOK, images)


LOOK_SHARE = 0.1
"""Of the time of the training up to the first look, what that look may take with "auto"; later ones
come more rarely."""

SCORED_WHILE_TRAINED = 3
"""Images that are scored while one is trained on: a backward pass costs two forward passes."""

FEWEST_OF_A_LOOK = 500
"""Images that "auto" takes at least; the AUC of 250 real and 250 fake ones has a standard error of
0.013 at 0.9."""


FEWEST_UNSEEN = 250
"""Fakes of unseen methods that "auto" takes at least where an objective looks at them, if there are
so many; their AUC against 250 real images has a standard error of 0.018 at 0.8."""


def images_of_a_look(
    select: pd.DataFrame,
    limit: SelectLimit,
    *,
    images_before: int,
    seed: int,
    with_unseen: bool = False,
) -> pd.DataFrame:
    """The images of select that are scored at each look: whole groups, the share of fakes kept.

    They depend on the arguments alone, so that all looks, and all trials of a search, are compared
    on the same ones.

    Args:
        select: label table.
        limit: how many at most; "all"; or "auto": as many as are scored in a tenth of the time that
            the training takes to the first look, but at least 500, and all if those were of one
            class.
        images_before: that are trained on before the first look, see `first_look`.
        seed: of the draw.
        with_unseen: whether fakes of unseen methods are looked at by themselves: "auto" then adds
            some beside the others.

    Raises:
        UserError: if a limit leaves one class only.
    """
    if limit == "all":
        return select
    if limit == "auto":
        affordable = round(LOOK_SHARE * SCORED_WHILE_TRAINED * images_before)
        most = max(affordable, FEWEST_OF_A_LOOK)
    else:
        most = limit
    part = draw_part(select, most, seed).reset_index(drop=True)
    if limit == "auto":
        if part["target"].nunique() < select["target"].nunique():
            return select
        return _with_unseen(part, select, seed) if with_unseen and "unseen" in select else part
    check_two_classes(part, f"the part of select that --select-limit {limit} draws")
    return part


def _with_unseen(part: pd.DataFrame, select: pd.DataFrame, seed: int) -> pd.DataFrame:
    """A part of select with more fakes of unseen methods, if it has fewer than it should."""
    lacking = FEWEST_UNSEEN - int(part["unseen"].sum())
    if lacking <= 0:
        return part
    others = select[select["unseen"] & ~select["path"].isin(set(part["path"]))]
    return pd.concat([part, draw_part(others, lacking, seed)], ignore_index=True)


def with_altered(select: pd.DataFrame, altered: pd.DataFrame | None) -> pd.DataFrame:
    """The images of select, or a part of them, and after them altered ones; `alteration` is -1 for
    images as they are."""
    if altered is None:
        return select
    return pd.concat([select.assign(alteration=-1), altered], ignore_index=True)


def altered_of_a_look(splits: Splits, images: int, seed: int) -> pd.DataFrame:
    """The altered images that are scored at each look, for objectives that need them: about as many
    as the look has others, each image in all of its alterations.

    Raises:
        UserError: if the run has none.
    """
    altered = splits.altered
    if altered is None:
        raise UserError("an objective of altered images needs some, found none; use another one")
    kinds = altered["alteration"].nunique()
    first = altered[altered["alteration"] == altered["alteration"].min()]
    drawn = drawn_part(first, max(2, images // max(1, kinds)), seed)
    return altered[altered["img_name"].isin(drawn["img_name"])].reset_index(drop=True)
