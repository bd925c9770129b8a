"""What is known of a search, how it is to be laid out, and the rungs that follow from both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

State = Literal["waiting", "paused", "complete", "pruned", "failed"]

CHANCE = 0.5
"""AUC of a network that has learned nothing."""


@dataclass(frozen=True)
class Point:
    """A look at a candidate."""

    images: int  # that it has seen
    seconds: float  # that it has taken, looks included
    auc: float  # on the images of a look; or whatever else the search goes by


@dataclass(frozen=True)
class Known:
    """What is known of a configuration that was begun, or waits to be."""

    number: int
    state: State
    points: tuple[Point, ...] = ()
    until: int | None = None
    """Images at which the piece of work that was begun last ends; None: at its end."""
    is_baseline: bool = False
    """It is trained to its end at once, and compared with nothing."""
    lost: float = 0.0
    """Seconds of work that came to no look, of what failed."""

    @property
    def images(self) -> int:
        """Seen by the last look."""
        return self.points[-1].images if self.points else 0

    @property
    def seconds(self) -> float:
        """Taken by the last look."""
        return self.points[-1].seconds if self.points else 0.0

    @property
    def was_interrupted(self) -> bool:
        """Whether it was paused amid a piece of work."""
        return self.state == "paused" and (self.until is None or self.images < self.until)


@dataclass(frozen=True)
class Rules:
    """How a search is laid out."""

    first_look: int
    """Images after which a training is looked at first."""
    batch_size: int = 1
    """Images of one optimizer step."""
    trials: int | None = None
    """Configurations at most, the baseline among them; None: as many as the time is good for."""
    longest: int | None = None
    """Images of a candidate that is finished; None: as many as the time is good for."""
    decay_fraction: float = 0.2
    """Of a finished training, the share in which its rate falls."""
    prolongs: bool = True
    """Whether a training's end can be moved until then."""
    kept: float = 0.5
    """Share of the configurations of a rung that go on to the next."""
    kept_in_time: float = 0.2
    """The same with a time limit, where what others get the best does not."""
    finalists: int = 3
    """Fewest that go on, and are finished: there must be something to merge."""
    explored: float = 0.1
    """Share of the time in which configurations are begun."""
    explored_by_second: float = 0.25
    """The same of the second one, if there would be no other: a search compares something."""
    configurations: int = 20
    """How many the time shall be good for: their first stretch comes of it."""
    waiting_share: float = 0.5
    """Of the configurations that a time limit is good for, those that may have waited from the
    beginning, at most: the others are drawn."""
    halvings: int = 1
    """Rungs after the first, with a time limit."""
    margin: float = 0.05
    """Share of the time left that is not planned with, because speeds vary."""
    baseline_share: float = 0.05
    """Of the time, what the baseline may take at most."""
    baseline_images: int = 0
    """That the baseline is trained on, counted in images as large as the others'."""
    gain: float = 0.01
    """Share of its error, 1 - AUC, that the best must lose while its images double twice, to go
    on."""
    patience: int = 15
    """Configurations, or half of `trials` if that is more, that may be no better than those before
    them; then no more are begun."""

    @property
    def planned(self) -> int:
        """Configurations that a time limit is laid out for."""
        return min(self.configurations, self.trials or self.configurations)

    @property
    def fall(self) -> float:
        """What the fall of the rate takes, in all that a training has taken before it."""
        return self.decay_fraction / (1 - self.decay_fraction)


ERROR_KEPT = 0.9
"""`Layout.error_kept` as long as nothing was looked at twice: more than what is usual, 0.77 with
the recipe set by hand on dfdc-faces, so that little is held against what is slow."""

ALMOST = 0.9
"""Share of a rung's effort that counts as it: speeds vary, and batches are whole."""


@dataclass(frozen=True)
class Layout:
    """Rungs of effort, in seconds with a time limit, else in images."""

    rungs: tuple[float, ...]
    seconds: float | None = None
    """All time for training, spent and left; None without a limit."""
    left: float = math.inf
    """Seconds of it that are left."""
    explores: bool = True
    """Whether it is still time to begin configurations."""
    error_kept: float = 1.0
    """Share of its error, 1 - AUC, that a configuration keeps while its seconds double."""
    affordable: float = math.inf
    """Configurations that the time to begin them is good for."""

    def effort(self, point: Point) -> float:
        """What it took to get there."""
        return point.images if self.seconds is None else point.seconds

    def auc_at(self, one: Known, rung: int) -> float | None:
        """AUC at the first look with a rung's effort, or at the end if that came before; None if
        it has come to neither. What spent more than a rung's seconds by then, as what is slow does,
        is brought back to them."""
        for point in one.points:
            effort = self.effort(point)
            if effort >= ALMOST * self.rungs[rung]:
                if self.seconds is None:
                    return point.auc
                doublings = max(0.0, math.log2(effort / self.rungs[rung]))
                return 1 - (1 - point.auc) / math.pow(self.error_kept, doublings)
        return one.points[-1].auc if one.points and one.state == "complete" else None

    def ranked(self, known: Sequence[Known], rung: int) -> list[Known]:
        """Those that have reached a rung, best first."""
        aucs = {one.number: self.auc_at(one, rung) for one in known}
        members = [one for one in known if aucs[one.number] is not None]
        return sorted(members, key=lambda one: (-(aucs[one.number] or 0.0), one.number))

    def comparable(self, known: Sequence[Known]) -> dict[int, float]:
        """The AUC of each on the first rung, or at the end where there is none, by its number."""
        if not self.rungs:
            return {one.number: one.points[-1].auc for one in known if one.points}
        found = {one.number: self.auc_at(one, 0) for one in known}
        return {number: auc for number, auc in found.items() if auc is not None}


def lay_out(known: Sequence[Known], rules: Rules, seconds_left: float | None = None) -> Layout:
    """The rungs of a search as they are now; arguments as for `next_work`."""
    if seconds_left is None:
        assert rules.longest is not None
        last = rules.longest * (1 - rules.decay_fraction)
        count = 0
        while rules.first_look * 2**count <= last:
            count += 1
        return Layout(tuple(float(rules.first_look * 2**rung) for rung in range(count)))
    total = seconds_left + sum(one.seconds + one.lost for one in known)
    searched = [one for one in known if not one.is_baseline]
    looked = [one for one in searched if one.points]
    stretch = rules.explored * total / rules.planned
    if looked:
        # Nothing is known before the first look.
        if rules.longest is not None:
            last = rules.longest * (1 - rules.decay_fraction) * median_seconds_per_image(looked)
            stretch = min(stretch, last / 2**rules.halvings)
        stretch = max(stretch, median(one.points[0].seconds for one in looked))
    explored = 0.0
    for one in searched:
        # A slow first look takes what it takes; what comes after the first rung is no exploring.
        there = (point.seconds for point in one.points if point.seconds >= ALMOST * stretch)
        explored += next(there, one.seconds) + one.lost
    is_second = len(looked) == 1
    share = rules.explored_by_second if is_second else rules.explored
    return Layout(
        rungs=tuple(stretch * 2**rung for rung in range(rules.halvings + 1)),
        seconds=total,
        left=seconds_left,
        explores=explored + stretch * (1.0 if is_second else 0.5) <= share * total,
        error_kept=_error_kept(looked),
        affordable=share * total / stretch,
    )


def _error_kept(looked: Sequence[Known]) -> float:
    """The median over those that were looked at twice, each with twice the seconds or more."""
    shares = []
    for one in looked:
        first = one.points[0]
        second = next((p for p in one.points if p.seconds >= 2 * ALMOST * first.seconds), None)
        if second is not None and first.auc < 1 and first.seconds > 0:
            share = (1 - second.auc) / (1 - first.auc)
            shares.append(share ** (1 / math.log2(second.seconds / first.seconds)))
    # Something must be left to compare.
    return min(1.0, max(0.5, median(shares))) if shares else ERROR_KEPT


def median_seconds_per_image(looked: Sequence[Known]) -> float:
    """The median of those that were looked at."""
    return median(one.seconds / one.images for one in looked)
