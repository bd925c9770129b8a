"""The search for owners: its bounds hold, it finds the best of small problems, a seed repeats."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from search.data import assignment
from search.data.assignment import FIT, HELD_OUT, Groups, _Program, _Search, assign


def drawn(seed: int, count: int, methods: int, *, val: bool = False) -> Groups:
    """Groups with up to two fakes of each of some methods."""
    generator = np.random.default_rng(seed)
    fakes = generator.integers(1, 3, (count, methods)) * (
        generator.random((count, methods)) < 2 / methods
    )
    is_val = (np.arange(count) % 3 == 0) & val
    return Groups(generator.integers(0, 3, count), fakes, is_val, has_val=val)


def every_owner(groups: Groups) -> list[np.ndarray]:
    """Every way to give methods to splits that they may belong to."""
    allowed = [np.flatnonzero(own) for own in groups.owners]
    return [np.array(owners, np.int64) for owners in product(*allowed)]


@pytest.mark.parametrize("val", [False, True])
@pytest.mark.parametrize("few", [True, False])
def test_prices_of_any_owners_bound_what_others_are_worth(
    val: bool, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = drawn(0, 40, 4, val=val)
    if not few:
        monkeypatch.setattr(assignment, "EXACT_GROUPS", 10)
    program = _Program(groups)
    # Every fourth way: each method still comes to every split.
    placed = [(owners, program.place(owners)) for owners in every_owner(groups)[::4]]
    for owners, placement in placed:
        bounds = [program.bound(other.prices, owners) for _, other in placed]
        # By its own prices a placement is worth what it is worth: duality is strong.
        worth = pytest.approx(placement.value, abs=len(groups.reals) * assignment.TASTES)
        assert min(bounds) == worth
        assert program.bound(placement.prices, owners) == worth


@pytest.mark.parametrize("seed", range(3))
def test_small_problems_are_solved_as_well_as_by_trying_everything(seed: int) -> None:
    groups = drawn(seed, 24, 4)
    program = _Program(groups)
    # Whole groups are worth no more than parts of them: what is promised less is not tried.
    promised = [(program.place(owners).value, owners) for owners in every_owner(groups)]
    best = -np.inf
    for bound, owners in sorted(promised, key=lambda one: -one[0]):
        if bound <= best:
            break
        best = max(best, program.place(owners, whole=True).value)
    owners, placement = search(groups, seed).best()
    assert placement.value == pytest.approx(best, rel=0.01)
    assert placement.value == pytest.approx(program.place(owners, whole=True).value)


def search(groups: Groups, seed: int) -> _Search:
    searched = _Search(groups, None)
    generator = np.random.default_rng(seed)
    for _ in range(assignment.STARTS):
        searched.climb(generator.integers(0, 3, groups.fakes.shape[1]))
    return searched


@pytest.mark.parametrize("val", [False, True])
@pytest.mark.parametrize("count", [60, 600])
def test_every_group_lies_where_it_may_and_a_seed_repeats(count: int, val: bool) -> None:
    groups = drawn(1, count, 5, val=val)
    owners, places = assign(groups, None, np.random.default_rng(3))
    again = assign(groups, None, np.random.default_rng(3))
    assert (owners == again[0]).all()
    assert (places == again[1]).all()
    assert set(owners) == set(places) == {FIT, *HELD_OUT}
    assert groups.places[np.arange(count), places].all()


@pytest.mark.parametrize("count", [200, 1000])
def test_groups_of_any_method_of_fit_are_seen_alike(count: int) -> None:
    """What select and report show of fit's methods is a fair part of all of them."""
    numbers = np.arange(count) % 10 % 7  # of some methods twice as many as of others
    groups = Groups(
        np.ones(count, np.int64),
        np.eye(7, dtype=np.int64)[numbers],
        np.zeros(count, np.bool_),
        has_val=False,
    )
    owners, places = assign(groups, None, np.random.default_rng(0))
    of_fit = np.flatnonzero(owners == FIT)
    in_fit = [(places[groups.fakes[:, method] > 0] == FIT).mean() for method in of_fit]
    assert min(in_fit) > 0.6
    assert max(in_fit) < 1.0


@pytest.mark.parametrize(("size", "count"), [(1, 600), (10, 600), (1, 100)])
@pytest.mark.parametrize("val", [False, True])
def test_many_groups_of_one_size_are_drawn(size: int, count: int, val: bool) -> None:
    """Whichever lie where, the shares are met: one seed gives what it always gave."""
    reals = np.repeat([size, 0], [count, 600])
    fakes = np.zeros((count + 600, 3), np.int64)
    fakes[count + np.arange(600), np.arange(600) % 3] = size
    groups = Groups(reals, fakes, (np.arange(count + 600) % 4 == 0) & val, has_val=val)
    assert not groups.exact.any()


@pytest.mark.parametrize("seed", [0, 16])
@pytest.mark.parametrize(
    "sizes",
    [[2000] + [4] * 249, [200] * 5 + [40] * 30 + [1] * 300, np.geomspace(1, 300, 300)],
    ids=["one", "two-scales", "all-scales"],
)
def test_large_groups_among_many_are_placed_by_their_size(
    sizes: list[int] | np.ndarray, seed: int
) -> None:
    """Groups of reals, beside single fakes of six methods."""
    reals = np.concatenate([sizes, np.zeros(600)]).astype(np.int64)
    fakes = np.zeros((len(reals), 6), np.int64)
    fakes[len(sizes) + np.arange(600), np.arange(600) % 6] = 1
    groups = Groups(reals, fakes, np.zeros(len(reals), np.bool_), has_val=False)
    _, places = assign(groups, None, np.random.default_rng(seed))
    found = np.bincount(places, reals) / reals.sum()
    assert found == pytest.approx([0.7, 0.15, 0.15], abs=0.02)
