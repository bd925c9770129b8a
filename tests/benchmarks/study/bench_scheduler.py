"""What becomes of a time on made-up trainings: where the scheduler's defaults are from.

    python tests/benchmarks/study/bench_scheduler.py --output results/benchmarks/scheduler.csv

A training's error falls with a power of the images that it has seen, down to a floor, times a
factor of its backbone and one of its configuration; early on another factor hides these. So long
trainings cost nothing here, and what they bring does not end where something was recorded; how far
configurations lie apart is assumed, in several worlds. Times are counted in first looks at the
first backbone. What is compared with: every default for its part of a quarter of the time, then the
best of them for the rest.

Intervals (95%) are over the seeds. Nothing is chosen by a report split: there are no images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cyclopts import run
from rich.console import Console

from search.study.decisions.layout import CHANCE, Known, Point, Rules
from search.study.decisions.scheduler import Finish, Stop, next_work

FIRST_LOOK, BATCH_SIZE = 1_984, 32

ERROR, AT_IMAGES = 0.142, 14_000
"""1 - AUC of the recipe set by hand on dfdc-faces after two epochs; it was 0.084 after eight."""

FALLEN = 0.97
"""Of the error, what is left when the rate has fallen."""

START_SECONDS = 0.06
"""Of every piece of work, in first looks."""

OF_CANDIDATE, OF_LOOK = 0.007, 0.004
"""Standard deviations of AUC on select from the true one: of a candidate, and of each look."""

TIMES = (18, 72, 288, 1_152)
PRESETS_SHARE = 0.25
"""Of the time that the defaults get before the best of them goes on."""

BEFORE = {"explored": 0.3, "kept_in_time": 0.5, "halvings": 2}
"""The shares of the rules until 79aea7a."""

ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "before": BEFORE,
    **{
        f"{name} {value:g}": {name: value}
        for name, values in {
            "explored": (0.05, 0.15, 0.2),
            "kept_in_time": (0.1, 0.5),
            "halvings": (0, 2),
            "configurations": (10, 40),
        }.items()
        for value in values
    },
}


@dataclass(frozen=True)
class World:
    """How backbones and configurations differ: standard deviations are of the error's logarithm."""

    backbones: int = 3
    slowness: tuple[float, ...] = (1.0, 1.3, 1.6)
    """Seconds an image, in turn."""
    of_backbones: float = 0.05
    of_draws: float = 0.12
    worse_draws: float = 0.03
    """By how much a draw is worse than a default in the mean."""
    early: float = 0.08
    """Of what hides the others at the first look."""
    fades_in: float = 1.5
    """Of that, the images in which a 1/e is left, as a logarithm."""
    floor: float = 0.0
    power: float = 0.38


WORLDS = {
    "three backbones": World(),
    "one backbone": World(backbones=1),
    "an end to learning": World(floor=0.04, power=0.5),
    "hardly different": World(of_backbones=0.02, of_draws=0.05),
    "very different": World(of_backbones=0.1, of_draws=0.3, floor=0.02),
    "early looks mislead": World(early=0.3, fades_in=4.0, of_draws=0.15),
    "ten backbones": World(backbones=10, slowness=(1.0, 0.8, 2.0, 4.0, 1.5), of_backbones=0.25),
}


@dataclass
class Trainings:
    """Those of one search; its first configurations are the defaults."""

    world: World
    seed: int
    drawn: list[tuple[int, float, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(self.seed)
        self.of_backbones = self.generator.normal(0, self.world.of_backbones, self.world.backbones)
        for _ in range(self.world.backbones):
            self.draw()

    def draw(self) -> int:
        """Adds a configuration; its number."""
        number, world = len(self.drawn), self.world
        is_preset = number < world.backbones
        backbone = number if is_preset else int(self.generator.integers(world.backbones))
        own = 0.0 if is_preset else self.generator.normal(world.worse_draws, world.of_draws)
        quality = float(self.of_backbones[backbone] + own)
        early, luck = self.generator.normal(0, world.early), self.generator.normal(0, OF_CANDIDATE)
        self.drawn.append((backbone, quality, float(early), float(luck)))
        return number

    def seconds_per_image(self, number: int) -> float:
        """In first looks at the first backbone."""
        slowness = self.world.slowness
        return slowness[self.drawn[number][0] % len(slowness)] / FIRST_LOOK

    def auc(self, number: int, images: float, *, is_fallen: bool = False) -> float:
        """The true one."""
        _, quality, early, _ = self.drawn[number]
        world = self.world
        hidden = early * math.exp(-max(0.0, math.log(images / FIRST_LOOK)) / world.fades_in)
        rest = (ERROR - world.floor) * (images / AT_IMAGES) ** -world.power
        error = world.floor + rest * math.exp(quality + hidden)
        return 1 - min(CHANCE, error * (FALLEN if is_fallen else 1.0))

    def look(self, number: int, images: float, *, is_fallen: bool = False) -> float:
        """On select."""
        luck = self.drawn[number][3] + self.generator.normal(0, OF_LOOK)
        return float(self.auc(number, images, is_fallen=is_fallen) + luck)


def search(trainings: Trainings, rules: Rules, time: float) -> dict[str, float]:
    """What the best complete candidate on select is worth, and how the time was spent."""
    known = [Known(number, "waiting") for number in range(trainings.world.backbones)]
    left = time
    while not isinstance(work := next_work(known, rules, left), Stop):
        number = work.number
        if number is None:
            number = trainings.draw()
            known.append(Known(number, "waiting"))
        one, ends = known[number], isinstance(work, Finish)
        until = work.images if isinstance(work, Finish) else work.until
        assert until is not None
        speed = trainings.seconds_per_image(number) * trainings.generator.normal(1, 0.03)
        seconds = START_SECONDS + (until - one.images) * speed
        if seconds > left:
            break
        left -= seconds
        looks = [look for look in _doublings() if one.images < look < 0.9 * until]
        points = [
            Point(look, one.seconds + (look - one.images) * speed, trainings.look(number, look))
            for look in looks
        ]
        auc = trainings.look(number, until, is_fallen=ends)
        points.append(Point(until, one.seconds + seconds, auc))
        state = "complete" if ends else "paused"
        known[number] = replace(one, state=state, points=(*one.points, *points), until=until)
    complete = [one for one in known if one.state == "complete"]
    # Where none is, a search keeps the best as it was at its best look.
    judged = complete or [one for one in known if one.points]
    best = max(judged, key=lambda one: one.points[-1].auc)
    return {
        "auc": trainings.auc(best.number, best.images, is_fallen=bool(complete)),
        "best_share": best.seconds / time,
        "begun": sum(bool(one.points) for one in known),
        "complete": len(complete),
        "used": 1 - left / time,
    }


def _doublings() -> list[int]:
    return [FIRST_LOOK * 2**power for power in range(20)]


def presets_then_best(trainings: Trainings, time: float) -> float:
    """Every default for its part of a quarter of the time, the best of them for all the rest."""
    count = trainings.world.backbones
    images = [
        PRESETS_SHARE * time / count / trainings.seconds_per_image(number)
        for number in range(count)
    ]
    best = max(range(count), key=lambda number: trainings.look(number, images[number]))
    whole = images[best] + (1 - PRESETS_SHARE) * time / trainings.seconds_per_image(best)
    return trainings.auc(best, whole, is_fallen=True)


def rows(seeds: int) -> Iterator[dict[str, Any]]:
    """A row for each world, time and arm; differences are from `presets_then_best`."""
    for name, world in WORLDS.items():
        for time in TIMES:
            control = [presets_then_best(Trainings(world, seed), time) for seed in range(seeds)]
            for arm, changed in ARMS.items():
                rules = replace(Rules(first_look=FIRST_LOOK, batch_size=BATCH_SIZE), **changed)
                found = pd.DataFrame(
                    [search(Trainings(world, seed), rules, time) for seed in range(seeds)]
                )
                difference = found["auc"] - control
                half = 1.96 * float(difference.std(ddof=0)) / math.sqrt(seeds)
                yield {
                    "world": name,
                    "first_looks": time,
                    "arm": arm,
                    "auc": found["auc"].mean(),
                    "difference": difference.mean(),
                    "low": difference.mean() - half,
                    "high": difference.mean() + half,
                    **found.drop(columns="auc").mean(),
                }


def main(*, output: Path | None = None, seeds: int = 100, quick: bool = False) -> None:
    """Lets every arm spend every time in every world.

    Args:
        output: CSV file, a row for each of these.
        seeds: searches of each.
        quick: two: whether it works at all.
    """
    found = pd.DataFrame(rows(2 if quick else seeds)).round(5)
    table = found.pivot_table("difference", "arm", ["world", "first_looks"], sort=False)
    Console(width=200).print((1e4 * table).round().astype(int).to_string(), highlight=False)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        found.to_csv(output, index=False)


if __name__ == "__main__":
    run(main)
