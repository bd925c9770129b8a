"""How often the 95% interval of an AUC holds the true one, and how often the paired test sees a
difference where there is none, where images come in groups.

    python tests/benchmarks/validation/bench_coverage.py --output results/benchmarks/coverage.csv

A group is a real clip and the fakes made from it, or frames of one clip. Scores are normal: a part
that all images of a group share (some people look false), one that its fakes share (some forgeries
are good), and one of each image.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from cyclopts import run
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import norm

from search.training.metrics import Interval, delong_interval, delong_test, roc_auc

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

OF_CLIP, OF_FORGERY = 0.4, 0.3
"""Shares of the variance of a fake's score; the rest is its own."""

DESIGNS: dict[str, tuple[tuple[int, int], ...]] = {
    "1 real, 3 fakes": ((1, 3),),
    "2 real, 2 fakes": ((2, 2),),
    "of one class": ((4, 0), (0, 4)),
    "of unequal size": ((1, 0), (1, 2), (2, 5), (1, 5), (2, 1)),
    "single images": ((1, 0), (0, 1)),
}
"""Images of each class, (real, fake), of one group after another, over and over."""

RESAMPLINGS = 1_000


@dataclass(frozen=True, eq=False)
class Sample:
    """Two models' scores of the same images, N of them."""

    scores: Floats  # (2, N)
    targets: Integers  # (N,)
    groups: Integers  # (N,)


def draw_sample(design: str, groups: int, auc: float, seed: int) -> Sample:
    """Images of so many groups, scored by two models that are equally good.

    Args:
        design: of DESIGNS.
        groups: how many.
        auc: of a fake and a real of different groups.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    kinds = DESIGNS[design]
    counts = np.array([kinds[number % len(kinds)] for number in range(groups)])  # (G, 2)
    targets = np.repeat(np.tile([0, 1], groups), counts.ravel())
    number = np.repeat(np.arange(groups), counts.sum(axis=1))

    def common(share: float, size: int) -> Floats:
        """(2, size): half of what one model sees in an image, the other sees, too."""
        both, own = generator.normal(size=size), generator.normal(size=(2, size))
        return math.sqrt(share) * (both + own) / math.sqrt(2)

    of_forgery = common(OF_FORGERY, groups)[:, number] * targets
    own = common(1.0, len(targets)) * np.sqrt(1 - OF_CLIP - OF_FORGERY * targets)
    scores = common(OF_CLIP, groups)[:, number] + of_forgery + own
    return Sample(scores + math.sqrt(2) * norm.ppf(auc) * targets, targets, number)


def bootstrap_interval(sample: Sample, corrected: bool) -> Interval:
    """Of quantiles of the AUCs of as many groups as there are, drawn with replacement: plain, or
    corrected for bias and acceleration (Efron 1987, doi:10.1080/01621459.1987.10478410)."""
    scores, targets, groups = sample.scores[0], sample.targets, sample.groups
    is_fake, count = targets == 1, int(groups.max()) + 1
    pairs = (np.sign(scores[is_fake][:, None] - scores[~is_fake][None, :]) + 1) / 2
    starts_real = np.searchsorted(groups[~is_fake], np.arange(count))
    starts_fake = np.searchsorted(groups[is_fake], np.arange(count))
    between = _summed(_summed(pairs, starts_fake).T, starts_real).T  # (G, G) - fakes, reals
    fakes, reals = (np.bincount(groups[own], minlength=count) for own in (is_fake, ~is_fake))
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLINGS)
    weights = draws.astype(np.float64)  # (B, G) - how often each group is drawn
    drawn = ((weights @ between) * weights).sum(axis=1) / ((weights @ fakes) * (weights @ reals))
    at = np.array([0.025, 0.975])
    if corrected:
        auc = roc_auc(scores, targets)
        lost = between.sum(axis=0) + between.sum(axis=1) - np.diag(between)
        without = (between.sum() - lost) / ((fakes.sum() - fakes) * (reals.sum() - reals))
        distance = without.mean() - without
        # Perfect scores are so without any group, too.
        acceleration = (distance**3).sum() / (6 * (distance**2).sum() ** 1.5 or 1.0)
        below = (drawn < auc).mean() + (drawn == auc).mean() / 2
        bias = norm.ppf(np.clip(below, 1e-3, 1 - 1e-3))
        shifted = bias + norm.ppf(at)
        at = norm.cdf(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(drawn, at)
    return Interval(float(low), float(high))


def _summed(rows: Floats, starts: Integers) -> Floats:
    """(G, M) sums of runs of the rows of (N, M), one run from each start on; it may be empty."""
    ends = np.append(starts[1:], len(rows))
    total = np.vstack([np.zeros(rows.shape[1]), np.cumsum(rows, axis=0)])
    summed: Floats = total[ends] - total[starts]
    return summed


METHODS: dict[str, Callable[[Sample], Interval]] = {
    "groups": lambda sample: delong_interval(sample.scores[0], sample.targets, sample.groups),
    "images": lambda sample: delong_interval(sample.scores[0], sample.targets),
    "bootstrap": lambda sample: bootstrap_interval(sample, corrected=False),
    "bootstrap, corrected": lambda sample: bootstrap_interval(sample, corrected=True),
}
"""`groups` is what onefold reports; `images` takes every image for its own group."""


def coverage(
    method: str, design: str, groups: int, auc: float, draws: int
) -> tuple[float, float, float]:
    """The share of intervals that hold the true AUC, their median width, milliseconds of one."""
    samples = [draw_sample(design, groups, auc, seed) for seed in range(draws)]
    started = time.perf_counter()
    intervals = [METHODS[method](sample) for sample in samples]
    taken = time.perf_counter() - started
    held = float(np.mean([interval.low <= auc <= interval.high for interval in intervals]))
    width = float(np.median([interval.high - interval.low for interval in intervals]))
    return held, width, 1_000 * taken / draws


def rejections(design: str, groups: int, auc: float, draws: int, *, grouped: bool = True) -> float:
    """The share of paired tests of equally good models with p < 0.05."""
    samples = (draw_sample(design, groups, auc, seed) for seed in range(draws))
    p_values = [
        delong_test(*sample.scores, sample.targets, sample.groups if grouped else None).p_value
        for sample in samples
    ]
    return float(np.mean(np.array(p_values) < 0.05))


CASES = ((150, 0.75), (150, 0.9), (150, 0.97), (150, 0.99), (40, 0.97))
"""Numbers of groups and true AUCs."""


def main(
    *,
    output: Path | None = None,
    design: str | None = None,
    draws: int = 1_500,
    quick: bool = False,
) -> None:
    """Measures every method.

    Args:
        output: CSV file, one row a design, true AUC, number of groups and method; rows of other
            designs that it holds stay.
        design: of DESIGNS, this one alone.
        draws: samples of each; the bootstrap, 15 times as slow, has a fifth of them.
        quick: a few: whether it works at all.
    """
    cases = CASES
    if quick:
        cases, draws = cases[:1], 10
    designs = list(DESIGNS) if design is None else [design]
    table = pd.DataFrame(_rows(designs, cases, draws))
    Console(width=120).print(table.to_string(index=False), highlight=False)
    if output is not None:
        if output.exists():
            before = pd.read_csv(output)
            table = pd.concat([before[~before["design"].isin(designs)], table])
        table.to_csv(output, index=False)


def _rows(
    designs: list[str], cases: tuple[tuple[int, float], ...], draws: int
) -> Iterator[dict[str, object]]:
    for design in designs:
        for groups, auc in cases:
            for method in METHODS:
                count = draws // 5 if method.startswith("bootstrap") else draws
                held, width, milliseconds = coverage(method, design, groups, auc, count)
                row: dict[str, object] = {
                    "design": design,
                    "groups": groups,
                    "auc": auc,
                    "method": method,
                    "draws": count,
                    "coverage": round(held, 4),
                    "median_width": round(width, 4),
                    "milliseconds": round(milliseconds, 2),
                }
                if method in ("groups", "images"):
                    grouped = method == "groups"
                    found = rejections(design, groups, auc, draws, grouped=grouped)
                    row["false_differences"] = round(found, 4)
                yield row


if __name__ == "__main__":
    run(main)
