"""What was recorded of a configuration, read as a training that can be stopped anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import isnan, log

import numpy as np
import pandas as pd

from search.training.recipe import Recipe
from tests.benchmarks.study.replay.curves import CONSTANT, COSINE, FALL, Configuration

WHOLE_FALL = Recipe.decay_fraction / (1 - Recipe.decay_fraction)
"""Images of a fall, as a share of those before it."""


@dataclass(frozen=True)
class Look:
    """A look at a training."""

    images: int  # that it has seen
    seconds: float  # of training so far
    auc_select: float  # NaN: the training has failed
    auc_report: float

    @property
    def has_failed(self) -> bool:
        """Whether there was nothing left to look at."""
        return isnan(self.auc_select)


@dataclass(frozen=True)
class Course:
    """How a configuration learned."""

    configuration: Configuration
    cosine: tuple[Look, ...]
    constant: tuple[Look, ...]
    falls: tuple[Look, ...]
    """At the ends of the branches, in the order in which they leave."""
    branches: tuple[int, ...]
    """Images at which they leave."""
    look_seconds: float
    """Of scoring select once."""

    @property
    def length(self) -> int:
        """Images that were recorded at the constant rate: no training goes on after them."""
        return self.constant[-1].images

    @property
    def first_look(self) -> int:
        """Images of the first look at the constant rate."""
        return self.constant[0].images

    @property
    def whole_seconds(self) -> float:
        """Of a training to its end, its looks among them."""
        return self.cosine[-1].seconds + len(self.cosine) * self.look_seconds

    def at(self, images: int) -> Look:
        """A look while the rate is constant; between two that were recorded AUC goes with the
        logarithm of the images, and seconds with the images."""
        seen, seconds, select, report = self._constant
        place, places = log(images), [log(one) for one in seen]
        return Look(
            images=images,
            seconds=float(np.interp(images, [0, *seen], [0.0, *seconds])),
            auc_select=float(np.interp(place, places, select)),
            auc_report=float(np.interp(place, places, report)),
        )

    def fallen(self, start: int, end: int) -> Look:
        """The end of a training whose rate falls from `start` on: what the nearest branches won or
        lost is added to the constant rate, in proportion to the fall where it is shorter than
        theirs."""
        before = self.at(start)
        share = min(1.0, (end - start) / (WHOLE_FALL * start))
        branches, seconds, select, report = self._gains
        place, places = log(start), [log(one) for one in branches]

        def gain(gains: list[float]) -> float:
            return share * float(np.interp(place, places, gains))

        per_image = float(np.interp(place, places, seconds))
        return Look(
            images=end,
            seconds=before.seconds + (end - start) * per_image,
            auc_select=before.auc_select + gain(select),
            auc_report=before.auc_report + gain(report),
        )

    @cached_property
    def _constant(self) -> tuple[list[int], list[float], list[float], list[float]]:
        return (
            [look.images for look in self.constant],
            [look.seconds for look in self.constant],
            [look.auc_select for look in self.constant],
            [look.auc_report for look in self.constant],
        )

    @cached_property
    def _gains(self) -> tuple[list[int], list[float], list[float], list[float]]:
        """Where the branches leave, seconds of an image of theirs, and what they win over the look
        there; nothing where none was recorded, because the training had failed before."""
        found = []
        for start, fall in zip(self.branches, self.falls, strict=True):
            before = self.at(start)
            found.append(
                (
                    start,
                    (fall.seconds - before.seconds) / (fall.images - start),
                    fall.auc_select - before.auc_select,
                    fall.auc_report - before.auc_report,
                )
            )
        if not found:
            found = [(self.first_look, self.constant[0].seconds / self.first_look, 0.0, 0.0)]
        starts, seconds, select, report = map(list, zip(*found, strict=True))
        return starts, seconds, select, report


def read_courses(table: pd.DataFrame) -> list[Course]:
    """The courses of a table that `record_curves.py` wrote, by their numbers."""
    return [_read_course(rows) for _, rows in table.groupby("config")]


def _read_course(rows: pd.DataFrame) -> Course:
    first = rows.iloc[0]
    falls = rows[rows["arm"].str.startswith(FALL)].sort_values("images")
    cosine = rows[rows["arm"] == COSINE]
    return Course(
        Configuration(int(first["config"]), first["kind"], json.loads(first["parameters"])),
        cosine=tuple(_looks(cosine)),
        constant=tuple(_looks(rows[rows["arm"] == CONSTANT])),
        falls=tuple(_looks(falls)),
        branches=tuple(falls["arm"].str.removeprefix(FALL).astype(int)),
        look_seconds=float(cosine["score_seconds"].iloc[-1]) / len(cosine),
    )


def _looks(rows: pd.DataFrame) -> Iterable[Look]:
    columns = ["images", "seconds", "auc_select", "auc_report"]
    for images, seconds, select, report in rows[columns].itertuples(index=False):
        yield Look(int(images), float(seconds), float(select), float(report))
