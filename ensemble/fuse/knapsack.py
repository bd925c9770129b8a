"""Which candidates to fuse: the set that is best on select whose parameters fit the budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from ensemble.pool.eligibility import FEWEST
from search.errors import UserError
from search.training.objective import Yardstick

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Subset = tuple[int, ...]
"""Rows of the scores, ascending."""
Value = tuple[float, float, int]
Valuation = Callable[[Subset], Value]
"""`Knapsack.value`, asked once about each set."""

EXACT_LIMIT = 12
"""Candidates up to which every subset is looked at: 4,083 of 12."""


@dataclass(frozen=True)
class Knapsack:
    """What there is to choose from, and the room for it."""

    names: tuple[str, ...]  # M candidates, best first
    scores: Floats  # (M, N) on select: what the head averages, probabilities or log-odds
    yardstick: Yardstick  # of the N scores of a mean
    costs: Integers  # (M, 2) parameters by thop and exactly, those of its part of the head included
    room: int  # for both sums: the budget less what the head costs anyway
    is_log_odds: bool = False

    def cost(self, subset: Sequence[int]) -> Integers:
        """Both sums (2,)."""
        total: Integers = self.costs[list(subset)].sum(axis=0)
        return total

    def fits(self, subset: Sequence[int]) -> bool:
        """Whether a set keeps the room, by both counts."""
        return bool((self.cost(subset) <= self.room).all())

    def value(self, subset: Sequence[int]) -> Value:
        """The objective of the mean; of equals the lower log loss, then the smaller set wins."""
        mean = self.scores[list(subset)].mean(axis=0)
        value, likelihood = self.yardstick.quality(expit(mean) if self.is_log_odds else mean)
        return value, likelihood, -int(self.cost(subset)[1])


def choose_members(
    knapsack: Knapsack,
    exact_limit: int = EXACT_LIMIT,
    check: Callable[[], None] = lambda: None,
) -> Subset:
    """The best set of two candidates or more that fits.

    Up to `exact_limit` candidates every set is looked at; above, sets grow and swap members
    greedily from each candidate with its best partner.

    Args:
        knapsack: what there is to choose from.
        exact_limit: candidates.
        check: called before each set is valued; what it raises ends the choice.

    Raises:
        UserError: if no two of them fit.
    """
    everything = range(len(knapsack.names))
    if not any(knapsack.fits(pair) for pair in combinations(everything, FEWEST)):
        smallest = min(combinations(everything, FEWEST), key=lambda s: max(knapsack.cost(s)))
        raise UserError(
            f"two members must fit into {knapsack.room:,} parameters, but even "
            f"{_describe(knapsack, smallest)}; search smaller backbones"
        )
    value = _valuation(knapsack, check)
    if len(knapsack.names) <= exact_limit:
        return max(_all_subsets(knapsack), key=value)
    return _search(knapsack, value)


def check_members(
    knapsack: Knapsack, subset: Subset, check: Callable[[], None] = lambda: None
) -> None:
    """Checks that a set that the user named fits.

    Args:
        knapsack: what there is to choose from.
        subset: the set.
        check: called before each set is valued, to find the largest; what it raises ends that.

    Raises:
        UserError: by how much it does not, and the largest set of them that does.
    """
    if knapsack.fits(subset):
        return
    excess = int(knapsack.cost(subset).max()) - knapsack.room
    message = (
        f"members must fit into {knapsack.room:,} parameters, but {_describe(knapsack, subset)}, "
        f"{excess:,} too many"
    )
    named = Knapsack(
        names=tuple(knapsack.names[index] for index in subset),
        scores=knapsack.scores[list(subset)],
        yardstick=knapsack.yardstick,
        costs=knapsack.costs[list(subset)],
        room=knapsack.room,
        is_log_odds=knapsack.is_log_odds,
    )
    try:
        largest = _largest(named, check)
    except UserError:
        raise UserError(f"{message}; no two of them fit") from None
    raise UserError(f"{message}; the largest set of them that fits: {_describe(named, largest)}")


def _largest(knapsack: Knapsack, check: Callable[[], None]) -> Subset:
    """The set of most members that fits, of several the best; above the limit of exact search the
    best set."""
    best = choose_members(knapsack, check=check)
    if len(knapsack.names) > EXACT_LIMIT:
        return best
    value = _valuation(knapsack, check)
    return max(_all_subsets(knapsack), key=lambda subset: (len(subset), value(subset)))


def _all_subsets(knapsack: Knapsack) -> Iterator[Subset]:
    everything = range(len(knapsack.names))
    for size in range(FEWEST, len(knapsack.names) + 1):
        yield from (subset for subset in combinations(everything, size) if knapsack.fits(subset))


def _search(knapsack: Knapsack, value: Valuation) -> Subset:
    """The best of the local optima that are reached from each candidate's best partner."""
    everything = range(len(knapsack.names))
    starts = set()
    for first in everything:
        pairs = [tuple(sorted((first, other))) for other in everything if other != first]
        starts |= set(sorted(filter(knapsack.fits, pairs), key=value)[-1:])
    optima = [_climb(knapsack, start, value) for start in sorted(starts)]
    return max(optima, key=value)


def _climb(knapsack: Knapsack, subset: Subset, value: Valuation) -> Subset:
    """Takes the best step until none is better."""
    while True:
        steps = [step for step in _steps(knapsack, subset) if knapsack.fits(step)]
        best = max(steps, key=value, default=subset)
        if value(best) <= value(subset):
            return subset
        subset = best


def _steps(knapsack: Knapsack, subset: Subset) -> Iterable[Subset]:
    """Sets with one member more, one less, one swapped, or one swapped for two."""
    inside = set(subset)
    outside = [index for index in range(len(knapsack.names)) if index not in inside]
    for new in outside:
        yield tuple(sorted(inside | {new}))
    for old in subset:
        rest = inside - {old}
        if len(rest) >= FEWEST:
            yield tuple(sorted(rest))
        for new in outside:
            yield tuple(sorted(rest | {new}))
        for pair in combinations(outside, 2):
            yield tuple(sorted(rest | set(pair)))


def _valuation(knapsack: Knapsack, check: Callable[[], None]) -> Valuation:
    known: dict[Subset, Value] = {}

    def value(subset: Subset) -> Value:
        if subset not in known:
            check()
            known[subset] = knapsack.value(subset)
        return known[subset]

    return value


def _describe(knapsack: Knapsack, subset: Subset) -> str:
    by_thop, exactly = knapsack.cost(subset).tolist()
    names = ", ".join(knapsack.names[index] for index in subset)
    return f"{names} have {exactly:,} exactly and {by_thop:,} by thop"
