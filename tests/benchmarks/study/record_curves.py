"""Records how configurations of the earlier and the present space learn, for `replay_search.py`.

    python -m tests.benchmarks.study.record_curves --train-labels F --train-images D \\
        --train-groups G --val-labels F --val-images D --val-groups G --backbones B --pool P \\
        --weights-dir W --image-size 80 --output results/benchmarks/curves.csv

Every configuration is trained on the same images in the same order: once with a rate that falls
with a cosine to the end, and once in the anytime way, with a constant rate and looks each time that
the images have doubled. At the looks from --first-fall on a branch leaves whose rate falls to 0
over the share of its images that the search would give it. Every look is scored on all of select
and report.

Seconds are those that the process has computed on one thread (its CPU time), so that what else the
machine does hardly matters; scoring report, which a search does once, is not in them.

A configuration is written as a whole when all of it is trained; the same command goes on after the
last one, in another session too, from the table alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch
from cyclopts import run
from rich.console import Console

from search.data.splits import Splits
from search.errors import UserError
from search.machine.device import Runtime, resolve_device
from search.machine.files import write_atomically
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from search.settings.search import SearchSettings
from search.study.decisions.space import Space
from search.training.loop import NonFiniteLossError, Training
from search.training.loss import classification_loss, training_batches
from search.training.network import build_network
from search.training.recipe import Recipe
from search.training.scoring import evaluate
from tests.benchmarks.opening import opened_images
from tests.benchmarks.study.replay import earlier_space
from tests.benchmarks.study.replay.curves import (
    COLUMNS,
    CONSTANT,
    COSINE,
    FALL,
    Configuration,
    configurations,
    recorded_space,
)

SCORED_AT_ONCE = 64


@dataclass(frozen=True)
class Lengths:
    """How far everything is trained, in images."""

    whole: int
    """Of a training to its end."""
    first_look: int
    """At the constant rate; the next ones come at twice, four times, ... as many."""
    first_fall: int
    """No branch leaves before."""

    @property
    def looks(self) -> list[int]:
        """Of the constant rate, the last one where the rate of the whole training falls."""
        last = self.whole - round(Recipe.decay_fraction * self.whole)
        found, look = [], self.first_look
        while look < last:
            found.append(look)
            look *= 2
        return [*found, last]


def main(
    settings: SearchSettings | None = None,
    *,
    output: Path | None = None,
    count: int = 90,
    first: int = 0,
    limit_configurations: int | None = None,
    length: int = 8_000,
    first_look: int = 1_000,
    first_fall: int = 2_000,
    quick: bool = False,
) -> None:
    """Trains what the table lacks.

    Args:
        settings: of a search on these images; the demo set's, from scratch, by default. One image
            size is trained, 64 px by default.
        output: CSV file, one row a look; what it holds already is not trained again.
        count: configurations of the table.
        first: number of the first one that is trained here.
        limit_configurations: so many are trained now at most.
        length: images of a training to its end.
        first_look: images of the first look.
        first_fall: images at which the rate of a branch falls at the earliest.
        quick: a few images: whether it works at all.
    """
    torch.set_num_threads(1)
    # It would tell of a new study for each configuration that is drawn.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    settings, console = settings or SearchSettings(), Console()
    lengths = Lengths(length, first_look, first_fall)
    if quick:
        settings = replace(settings, limit_train=64, limit_val=64, image_size=32)
        lengths = Lengths(128, 32, 64)
        count = min(count, 3)
    settings = replace(settings, image_size=settings.image_size or 64).resolved()
    assert settings.image_size is not None
    rows = _read(output)
    with opened_images(settings, [settings.image_size]) as (splits, reader):
        space = recorded_space(settings, settings.image_size, reader.side)
        wanted = configurations(space, count)
        check_same(rows, wanted, settings.image_size, lengths)
        missing = [one for one in wanted[first:] if one.number not in set(rows["config"])]
        studio = Studio(space, splits, reader, Runtime(resolve_device("cpu")), lengths)
        for one in missing[:limit_configurations]:
            began = time.monotonic()
            found = pd.DataFrame(studio.record(one), columns=COLUMNS)
            rows = pd.concat([rows, found]) if len(rows) else found
            rows = rows.sort_values("config", kind="stable", ignore_index=True)
            if output is not None:
                output.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(output, lambda path: rows.to_csv(path, index=False))  # noqa: B023
            console.print(_describe(one, found, time.monotonic() - began), highlight=False)
    console.print(f"{rows['config'].nunique()} of {count} configurations are recorded")


def check_same(
    rows: pd.DataFrame, wanted: list[Configuration], image_size: int, lengths: Lengths
) -> None:
    """
    Raises:
        UserError: if a table has other configurations, or other lengths.
    """
    expected = {one.number: one.packed for one in wanted}
    known = rows.drop_duplicates("config")
    for number, parameters, size in zip(
        known["config"], known["parameters"], known["image_size"], strict=True
    ):
        if expected.get(number, parameters) != parameters or size != image_size:
            raise UserError(
                f"configuration {number} of the table must be the one that is drawn now, found "
                f"{parameters} at {size} px; choose another --output"
            )
    ends = rows.loc[rows["auc_select"].notna() & (rows["arm"] == COSINE)]
    batches = ends.groupby("config")["images"].max()
    if len(batches) and abs(batches.max() - lengths.whole) > _LARGEST_BATCH:
        raise UserError(
            f"the table's trainings must have --length {lengths.whole}, found {batches.max()} "
            "images; choose another --output"
        )


_LARGEST_BATCH = 256
"""A training ends with a whole batch."""


class Studio:
    """What all trainings share."""

    def __init__(
        self, space: Space, splits: Splits, reader: Reader, runtime: Runtime, lengths: Lengths
    ) -> None:
        self.space, self.splits, self.reader = space, splits, reader
        self.runtime, self.lengths = runtime, lengths
        self.steps = max(1, len(splits.fit) // space.batch_size)
        self.select, self.report = (
            eval_batches(reader, table, batch_size=SCORED_AT_ONCE)
            for table in (splits.select, splits.report)
        )

    def record(self, configuration: Configuration) -> Iterator[dict[str, Any]]:
        """The rows of a configuration."""
        about = {
            "config": configuration.number,
            "kind": configuration.kind,
            "backbone": configuration.backbone,
            "image_size": self.space.backbones[0].image_sizes[0],
            "parameters": configuration.packed,
        }
        for row in (*self._cosine(configuration), *self._anytime(configuration)):
            yield {**about, **row}

    def _cosine(self, configuration: Configuration) -> Iterator[dict[str, Any]]:
        end = self.in_steps(self.lengths.whole)
        course = Course(self, configuration.cosine(self.space, end / self.steps))
        epochs = earlier_space.EPOCHS
        looks = [round(end * look / epochs) for look in range(1, epochs + 1)]
        for look in dict.fromkeys(looks):
            yield course.look(COSINE, look)
            if course.has_failed:
                return

    def _anytime(self, configuration: Configuration) -> Iterator[dict[str, Any]]:
        course = Course(self, configuration.constant(self.space))
        for images in self.lengths.looks:
            look = self.in_steps(images)
            yield course.look(CONSTANT, look)
            if course.has_failed:
                return
            if images >= self.lengths.first_fall:
                end = round(look / (1 - Recipe.decay_fraction))
                images_now = look * self.space.batch_size
                yield course.ended(end).look(f"{FALL}{images_now}", end)

    def in_steps(self, images: int) -> int:
        """Optimizer steps."""
        return max(1, round(images / self.space.batch_size))


class Course:
    """One training, and what it has taken."""

    def __init__(self, studio: Studio, recipe: Recipe) -> None:
        self.studio, self.recipe = studio, recipe
        self.training = Training(
            build_network(recipe),
            training_batches(studio.splits.fit, recipe, studio.reader),
            classification_loss(studio.splits.fit, recipe),
            recipe,
            studio.runtime,
        )
        self.seconds = self.score_seconds = 0.0
        self.has_failed = False

    def ended(self, end: int) -> Course:
        """A branch that ends after so many steps of its own, and falls from here on."""
        epochs = end / self.training.steps
        decay = (end - self.training.done) / end
        branch = Course(self.studio, replace(self.recipe, epochs=epochs, decay_fraction=decay))
        branch.training.load_state_dict(copy.deepcopy(self.training.state_dict()))
        branch.seconds, branch.score_seconds = self.seconds, self.score_seconds
        return branch

    def look(self, arm: str, until: int) -> dict[str, Any]:
        """Trains until so many steps are done; the row of a look."""
        auc_select = auc_report = nan
        network, runtime = self.training.averaged, self.studio.runtime
        try:
            with self._timed("seconds"):
                self.training.run(until)
            with self._timed("score_seconds"):
                auc_select = evaluate(network, self.studio.select, runtime).metrics.auc
            auc_report = evaluate(network, self.studio.report, runtime).metrics.auc
        except (NonFiniteLossError, FloatingPointError):
            self.has_failed = True
            auc_select = nan
        return {
            "arm": arm,
            "images": self.training.done * self.recipe.batch_size,
            "seconds": round(self.seconds, 2),
            "score_seconds": round(self.score_seconds, 2),
            "auc_select": round(auc_select, 6),
            "auc_report": round(auc_report, 6),
        }

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.process_time()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.process_time() - began)


def _read(output: Path | None) -> pd.DataFrame:
    if output is None or not output.exists():
        return pd.DataFrame(columns=COLUMNS)
    return pd.read_csv(output)


def _describe(one: Configuration, found: pd.DataFrame, seconds: float) -> str:
    def auc(rows: pd.Series[bool]) -> str:
        last = found[rows].tail(1)["auc_select"]
        return f"{last.iloc[0]:.4f}" if len(last) else "none"

    falls = auc(found["arm"].str.startswith(FALL))
    return (
        f"{one.number} {one.kind} {one.backbone}: AUC on select {auc(found['arm'] == COSINE)} with "
        f"cosine, {falls} fallen; {seconds:.0f} s"
    )


if __name__ == "__main__":
    torch.set_num_interop_threads(1)
    run(main)
