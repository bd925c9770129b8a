"""Lets ways of searching spend the same seconds on curves that were recorded once.

    python -m tests.benchmarks.replay_search --curves results/benchmarks/curves.csv \\
        --output results/benchmarks/replay.csv

Nothing is trained: a simulated clock counts what `record_curves.py` has measured, looks included,
and each arm (see `arms.py`) does what it would do. The search itself is the shipped code. Its time
is --lengths times what one training to its end takes. An arm that wants to go on after the end of
what was recorded ends there, so that a single training cannot use more time than that.

Beside the table lie a summary, and with --variants what other rules of the scheduler would find,
on select alone: report chooses nothing. Intervals (95%) are over the seeds of the arms: the images,
and what was recorded, are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from cyclopts import run
from numpy.typing import NDArray
from rich.console import Console

from search.machine.files import write_atomically
from search.settings import SearchSettings
from tests.benchmarks.arms import Arm, Clock, TimeIsUp, World, by_name, default_rules, ours
from tests.benchmarks.courses import read_courses
from tests.benchmarks.curves import space_of

COLUMNS = ["arm", "seed", "seconds", "auc_select", "auc_report"]
PUBLISHED = Path(__file__).parents[2] / "results/published/dfdc-faces/backbones.yaml"
FEWEST = 8
"""Configurations that must have been recorded: one that was drawn among them."""

OURS = "ours"

RESAMPLINGS = 2_000
"""Of the seeds, for an interval."""

VARIED: dict[str, tuple[float, ...]] = {
    "kept": (0.25, 0.35, 0.7),
    "finalists": (1, 2, 5),
    "explored": (0.15, 0.5, 0.7),
    "halvings": (0, 1, 3),
    "configurations": (10, 40),
}
"""Rules of the scheduler that are tried, one changed at a time."""


def main(
    *,
    curves: Path = Path("results/benchmarks/curves.csv"),
    output: Path | None = None,
    backbones: Path = PUBLISHED,
    pool: str = "local",
    seeds: int = 200,
    lengths: float = 6.0,
    variants: bool = False,
) -> None:
    """Replays every arm with every seed, and tells what it found.

    Args:
        curves: what `record_curves.py` wrote; a part of it will do.
        output: CSV file: a row whenever the best on select changes, and one at the end.
        backbones: file of the backbones that were recorded.
        pool: of those.
        seeds: of each arm.
        lengths: the time, in trainings to their end.
        variants: try other rules of the scheduler as well.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    console = Console()
    world = read_world(pd.read_csv(curves), backbones, pool)
    seconds = lengths * float(np.mean([course.whole_seconds for course in world.courses]))
    console.print(
        f"{len(world.courses)} configurations, {seconds:.0f} s for every arm", highlight=False
    )
    rows = replay(world, by_name(), seconds, seeds)
    found = {"": rows, "_summary": summary(rows)}
    if variants:
        found["_rules"] = compare_rules(world, seconds, seeds)
    for name, table in found.items():
        if name:
            console.print(table.to_string(index=False), highlight=False, soft_wrap=True)
        if output is not None:
            path = output.with_name(f"{output.stem}{name}.csv")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, partial(table.to_csv, index=False))


def read_world(table: pd.DataFrame, backbones: Path, pool: str) -> World:
    """What was recorded, and the space that it was drawn from.

    Raises:
        SystemExit: if it is too little.
    """
    courses = tuple(read_courses(table))
    if len(courses) < FEWEST:
        raise SystemExit(
            f"{FEWEST} configurations or more must have been recorded, found {len(courses)}; let "
            "record_curves.py go on"
        )
    settings = SearchSettings(backbones=backbones, pool=pool, weights_dir=Path("weights"))
    size = int(table["image_size"].iloc[0])
    return World(space_of(settings, size, size), courses)


def replay(world: World, arms: Mapping[str, Arm], seconds: float, seeds: int) -> pd.DataFrame:
    """What each arm has found when, with each seed."""
    rows = [
        (name, seed, *row)
        for name, arm in arms.items()
        for seed in range(seeds)
        for row in best_so_far(world, arm, seconds, seed)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def best_so_far(
    world: World, arm: Arm, seconds: float, seed: int
) -> list[tuple[float, float, float]]:
    """(seconds, AUC on select, AUC on report) whenever the best changes, and at the end; 0.5 if
    nothing was found."""
    clock = Clock(seconds)
    with suppress(TimeIsUp):
        arm(world, clock, seed)
    last = clock.best[-1][1:] if clock.best else (0.5, 0.5)
    return [*clock.best, (seconds, *last)]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """A line an arm: medians over the seeds of its final AUC, by how much ours is above it, and
    what share of its time ours takes to get where it ends (inf: it does not)."""
    finals = _finals(rows)
    mine = finals.loc[OURS]
    told = []
    for arm in rows["arm"].unique():
        its = finals.loc[arm]
        line: dict[str, object] = {"arm": arm, "seeds": len(its)}
        for split in ("select", "report"):
            column = f"auc_{split}"
            line[column] = its[column].median()
            low, high = _interval(its[column].to_numpy(), np.median)
            line[f"low_{split}"], line[f"high_{split}"] = low, high
            difference = (mine[column] - its[column]).to_numpy()
            line[f"ours_above_{split}"] = difference.mean()
            low, high = _interval(difference, np.mean)
            line[f"above_low_{split}"], line[f"above_high_{split}"] = low, high
            line[f"share_of_time_{split}"] = share_of_time(rows, arm, column)
        told.append(line)
    return pd.DataFrame(told).round(4)


def share_of_time(rows: pd.DataFrame, arm: str, column: str) -> float:
    """The time at which ours is where an arm ends, the medians of both over their seeds, in parts
    of the time given."""
    aim = _finals(rows).loc[arm][column].median()
    ours_rows = rows[rows["arm"] == OURS]
    reached = ours_rows[ours_rows[column] >= aim].groupby("seed")["seconds"].min()
    times = reached.reindex(ours_rows["seed"].unique(), fill_value=inf)
    return float(times.median() / rows["seconds"].max())


def _finals(rows: pd.DataFrame) -> pd.DataFrame:
    """The last row of each arm and seed, by both."""
    return rows.groupby(["arm", "seed"], sort=False).last()


def _interval(
    values: NDArray[np.float64], statistic: Callable[..., NDArray[np.float64]]
) -> tuple[float, float]:
    """Of a statistic over the seeds, which are drawn with replacement."""
    generator = np.random.default_rng(0)
    drawn = values[generator.integers(len(values), size=(RESAMPLINGS, len(values)))]
    low, high = np.quantile(statistic(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)


def compare_rules(world: World, seconds: float, seeds: int) -> pd.DataFrame:
    """Final AUC on select with other rules, and its difference from those of now, best first."""
    standard = default_rules(world)
    tried = {"as they are": standard}
    for name, values in VARIED.items():
        for value in values:
            changed: dict[str, Any] = {name: value}
            tried[f"{name} {value:g}"] = replace(standard, **changed)
    arms = {name: partial(ours, rules=rules) for name, rules in tried.items()}
    finals = _finals(replay(world, arms, seconds, seeds))["auc_select"]
    told = []
    for name in arms:
        difference = (finals[name] - finals["as they are"]).to_numpy()
        low, high = _interval(difference, np.mean)
        told.append(
            {
                "rules": name,
                "auc_select": finals[name].median(),
                "difference": difference.mean(),
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(told).sort_values("difference", ascending=False).round(4)


if __name__ == "__main__":
    run(main)
