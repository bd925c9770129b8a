"""Lets ways of searching spend the same seconds on curves that were recorded once.

    python -m tests.benchmarks.study.replay_search --curves results/benchmarks/curves.csv \\
        --output results/benchmarks/replay.csv

Nothing is trained: a simulated clock counts what `record_curves.py` has measured, looks included,
and each arm (see `replay/arms.py`) does what it would do. The search itself is the shipped code:
what is trained next, what is compared, and what is drawn. The times given are --lengths, in
trainings to their end; rows are written of the first of them, the summary has them all.

What may be doubted stands in `replay/pool.py` (what is drawn) and `replay/arms.py` (where trainings
end); also, between two looks AUC goes with the logarithm of the images; seconds are those that one
thread has computed, on a machine that did other things as well, so that the same training takes
some percent more or less, for no arm more often than for another; looks at all of select are paid
by every arm alike; trainings are short (8,000 images), and what pays there need not pay in long
ones.

Beside the table lie a summary, what a look tells of the end, and with --variants what the search
would find with other rules, on select alone: report chooses nothing. Intervals (95%) are over the
seeds of the arms: the images, and what was recorded, are the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from cyclopts import run
from rich.console import Console
from scipy.stats import spearmanr

from search.machine.files import write_atomically
from search.settings.search import SearchSettings
from tests.benchmarks.study.replay.arms import Arm, by_name, with_other_rules
from tests.benchmarks.study.replay.clock import Clock, TimeIsUp
from tests.benchmarks.study.replay.courses import read_courses
from tests.benchmarks.study.replay.curves import recorded_space
from tests.benchmarks.study.replay.pool import World, correlation_with_nearest
from tests.benchmarks.study.replay.summary import summary, variants_summary

COLUMNS = ["arm", "seed", "seconds", "auc_select", "auc_report"]
SPENT = "spent"
"""Seconds that an arm has used of those given; it may have run out of what was recorded."""

PUBLISHED = Path(__file__).parents[3] / "results/published/dfdc-faces/backbones.yaml"
FEWEST = 8
"""Configurations that must have been recorded: one that was drawn among them."""

CHANCE = 0.5
"""AUC of an arm that has found nothing yet."""


def main(
    *,
    curves: tuple[Path, ...] = (Path("results/benchmarks/curves.csv"),),
    output: Path | None = None,
    backbones: Path = PUBLISHED,
    pool: str = "local",
    seeds: int = 200,
    lengths: tuple[float, ...] = (6.0, 1.2, 3.0, 12.0),
    variants: bool = False,
) -> None:
    """Replays every arm with every seed, and tells what it found.

    Args:
        curves: what `record_curves.py` wrote, in one file or several; a part of it will do.
        output: CSV file: a row whenever the best on select changes, and one at the end.
        backbones: file of the backbones that were recorded.
        pool: of those.
        seeds: of each arm.
        lengths: times, in trainings to their end; the rows are those of the first.
        variants: try other rules of the search as well.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    console = Console()
    table = pd.concat([pd.read_csv(path) for path in curves], ignore_index=True)
    world = read_world(table, backbones, pool)
    whole = float(np.mean([course.whole_seconds for course in world.courses]))
    console.print(
        f"{len(world.courses)} configurations, {whole:.0f} s to the end of one; AUC at the end "
        f"and that of the nearest: rank correlation {correlation_with_nearest(world):.2f}",
        highlight=False,
    )
    replayed = {length: replay(world, by_name(), length * whole, seeds) for length in lengths}
    found = {
        "": replayed[lengths[0]][COLUMNS],
        "_looks": what_looks_tell(world),
        "_summary": summary(replayed),
    }
    if variants:
        arms = with_other_rules(world)
        found["_variants"] = variants_summary(
            {length: replay(world, arms, length * whole, seeds) for length in lengths}
        )
    for name, one in found.items():
        if name:
            console.print(one.to_string(index=False), highlight=False, soft_wrap=True)
        if output is not None:
            path = output.with_name(f"{output.stem}{name}.csv")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, partial(one.to_csv, index=False))


def read_world(table: pd.DataFrame, backbones: Path, pool: str) -> World:
    """What was recorded, and the space that it was drawn from.

    Raises:
        SystemExit: if it is too little, or a configuration is there twice.
    """
    twice = table.loc[table.duplicated(["config", "arm", "images"]), "config"].unique()
    if len(twice):
        raise SystemExit(
            f"a configuration must be in one file alone, found {', '.join(map(str, twice))} twice; "
            "give --curves each file once"
        )
    courses = tuple(read_courses(table))
    if len(courses) < FEWEST:
        raise SystemExit(
            f"{FEWEST} configurations or more must have been recorded, found {len(courses)}; let "
            "record_curves.py go on"
        )
    settings = SearchSettings(backbones=backbones, pool=pool, weights_dir=Path("weights"))
    size = int(table["image_size"].iloc[0])
    return World(recorded_space(settings, size, size), courses)


def replay(world: World, arms: Mapping[str, Arm], seconds: float, seeds: int) -> pd.DataFrame:
    """What each arm has found when, with each seed, and how much of the time it has used."""
    rows = []
    for name, arm in arms.items():
        for seed in range(seeds):
            clock = let_spend(world, arm, seconds, seed)
            rows += [(name, seed, *row, clock.now) for row in best_so_far(clock)]
    return pd.DataFrame(rows, columns=[*COLUMNS, SPENT])


def let_spend(world: World, arm: Arm, seconds: float, seed: int) -> Clock:
    """An arm's clock when it has ended."""
    clock = Clock(seconds)
    with suppress(TimeIsUp):
        arm(world, clock, seed)
    return clock


def best_so_far(clock: Clock) -> list[tuple[float, float, float]]:
    """(seconds, AUC on select, AUC on report) whenever the best changed, and when the time was
    up."""
    last = clock.best[-1][1:] if clock.best else (CHANCE, CHANCE)
    return [*clock.best, (clock.limit, *last)]


def what_looks_tell(world: World) -> pd.DataFrame:
    """How well configurations are ranked on select, at each look of the anytime way, by what they
    come to at the end of it, on select and on report: Spearman's correlation over those of the
    present space."""
    courses = [
        course
        for course in world.of("hand", "preset", "near", "anywhere")
        if course.falls and not course.constant[-1].has_failed
    ]
    ends = [course.falls[-1] for course in courses]
    marks = sorted({look.images for course in courses for look in course.constant})
    looks = {images: [course.at(images).auc_select for course in courses] for images in marks}
    looks[ends[0].images] = [end.auc_select for end in ends]
    told = []
    for images, aucs in looks.items():
        line: dict[str, float] = {"images": images, "configurations": len(aucs)}
        for split in ("select", "report"):
            at_end = [getattr(end, f"auc_{split}") for end in ends]
            line[f"rank_correlation_{split}"] = round(float(spearmanr(aucs, at_end).statistic), 3)
        told.append(line)
    return pd.DataFrame(told)


if __name__ == "__main__":
    run(main)
