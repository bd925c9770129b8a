"""Recorded configurations that stand for drawn ones, and what may be doubted about that.

An arm that draws without having learned anything takes a recorded configuration of the same kind by
chance: those were drawn in the very way, so nothing is approximated. Where TPE proposes, the
recorded one that is nearest (Gower's distance, doi:10.2307/2528823) and of the same backbone takes
its place, and TPE is told of that one, not of what it had proposed. None is used twice. So:

- The more an arm has drawn, the further from its proposals is what is left; and none finds anything
  better than the best that was recorded. Both hold back arms that learn more than arms that do not.
- In a space of ten dimensions the nearest of a few dozen is far. `correlation_with_nearest` tells
  how much it knows: where it is about 0, the replay cannot show that a sampler learns.
- Every configuration was trained once, from one seed. An arm that looks at many takes the luckiest
  one as the best, on select; report, which chose nothing, tells what is left of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from scipy.stats import spearmanr

from search.study.decisions.space import BACKBONE, Space
from tests.benchmarks.study.replay.courses import Course
from tests.benchmarks.study.replay.curves import Kind


@dataclass(frozen=True)
class World:
    """What all arms find."""

    space: Space
    courses: tuple[Course, ...]

    def of(self, *kinds: Kind) -> list[Course]:
        """The courses of some kinds, in their order."""
        return [course for course in self.courses if course.configuration.kind in kinds]

    @property
    def pretrained(self) -> bool:
        """Whether networks start from weights."""
        return self.space.weights != "none"

    @property
    def lengths(self) -> tuple[int, int]:
        """Images of the first look, and of a training to its end."""
        return (
            min(course.first_look for course in self.courses),
            max(course.cosine[-1].images for course in self.courses),
        )


class Pool:
    """Recorded configurations that were not used yet."""

    def __init__(self, courses: Collection[Course], seed: int) -> None:
        self.courses = list(courses)
        self._generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.courses)

    def draw(self, kind: Kind) -> Course:
        """One of a kind by chance, of any where none of that kind is left; it is used then."""
        own = [course for course in self.courses if course.configuration.kind == kind]
        own = own or self.courses
        return self._used(own[int(self._generator.integers(len(own)))])

    def nearest(
        self, proposal: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
    ) -> Course:
        """The nearest one, of the same backbone while there is one; it is used then."""
        return self._used(_nearest(self.courses, proposal, distributions))

    def _used(self, course: Course) -> Course:
        self.courses.remove(course)
        return course


def _nearest(
    courses: Sequence[Course],
    proposal: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
) -> Course:
    def order(course: Course) -> tuple[bool, float]:
        own = course.configuration.parameters
        return own[BACKBONE] != proposal[BACKBONE], distance(own, proposal, distributions)

    return min(courses, key=order)


def distance(
    one: Mapping[str, Any], other: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> float:
    """Gower's, between two configurations: the mean over the parameters that both have, each range
    from 0 to 1; choices that differ are 1 apart."""
    apart = [
        _apart(one[name], other[name], distribution)
        for name, distribution in distributions.items()
        if name in one and name in other
    ]
    return sum(apart) / len(apart) if apart else 0.0


def _apart(one: Any, other: Any, distribution: BaseDistribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return float(one != other)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    if low == high:
        return 0.0
    if distribution.log:
        return float(abs(np.log(one / other)) / np.log(high / low))
    return float(abs(one - other) / (high - low))


def correlation_with_nearest(world: World) -> float:
    """Spearman's, over the configurations drawn from the present space, between their AUC on select
    at the end and that of the one that would stand for them."""
    drawn = [course for course in world.of("near", "anywhere") if course.falls]
    pairs = []
    for course in drawn:
        others = [other for other in drawn if other is not course]
        if others:
            parameters = course.configuration.parameters
            nearest = _nearest(others, parameters, world.space.distributions)
            pairs.append((course.falls[-1].auc_select, nearest.falls[-1].auc_select))
    return float(spearmanr(pairs).statistic) if len(pairs) > 2 else float("nan")
