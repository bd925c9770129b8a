"""Orders and view seeds: pure functions, with the properties that training needs of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.pixels.loading.epochs import (
    BatchPlan,
    balanced,
    self_blended,
    shuffled,
    view_seed,
    view_seeds,
    with_views,
)

MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """SplitMix64's output function in Python's own integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


@given(
    seed=st.integers(-(2**70), 2**70),
    epoch=st.integers(0, 2**31),
    index=st.integers(0, 2**40),
    repeat=st.integers(0, 1000),
)
def test_view_seed_equals_its_definition(seed: int, epoch: int, index: int, repeat: int) -> None:
    words = (seed % 2**64 % 2**32, seed % 2**64 // 2**32, epoch, 1)
    state = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
    for count in (index, repeat):
        state = splitmix64((state + 0x9E3779B97F4A7C15 * count) & MASK)
    assert view_seed(seed, epoch, index, repeat) == state >> 1


def test_view_seeds_are_kept_for_ever() -> None:
    # Teachers' scores are stored under these: a change makes every stored score useless.
    assert view_seed(0, 0, 0) == 716_319_913_460_469_503
    assert view_seed(7, 3, 123_456, 2) == 1_673_645_372_690_179_720


def test_view_seeds_differ() -> None:
    indices = np.arange(20_000)
    seeds = [
        view_seeds(seed, epoch, indices, np.full_like(indices, repeat))
        for seed in (0, 1, 2**32)
        for epoch in (0, 1)
        for repeat in (0, 1)
    ]
    assert len(np.unique(np.concatenate(seeds))) == 12 * len(indices)
    assert min(part.min() for part in seeds) >= 0


def test_shuffled_holds_every_row_in_another_order_each_epoch() -> None:
    orders = [shuffled(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert shuffled(50, 1, 0).tolist() == orders[2]


def test_balanced_draws_both_classes_alike() -> None:
    targets = np.repeat([0, 1], [100, 900])
    draws = balanced(targets, 0, 0)
    assert len(draws) == 1000
    # Binomial(1000, 1/2) is within 80 of 500 with probability 1 - 4e-7.
    assert targets[draws].sum() == pytest.approx(500, abs=80)
    assert (balanced(targets, 0, 0) == draws).all()
    assert (balanced(targets, 0, 1) != draws).any()


def test_repeated_draws_are_seen_in_other_views() -> None:
    indices, seeds = with_views(np.array([3, 1, 3, 3]), seed=5, epoch=2)
    assert indices.tolist() == [3, 1, 3, 3]
    expected = [(3, 0), (1, 0), (3, 1), (3, 2)]
    assert seeds.tolist() == [view_seed(5, 2, index, repeat) for index, repeat in expected]


def test_a_share_of_the_reals_is_blended_whatever_comes_beside_them() -> None:
    targets = np.arange(4000) % 2
    _, seeds = with_views(np.arange(4000), seed=1, epoch=0)
    found = self_blended(seeds, targets, 0.25)
    is_blended = found < 0
    assert not is_blended[targets == 1].any()
    # Binomial(2000, 1/4) is within 100 of 500 with probability 1 - 2e-7.
    assert is_blended.sum() == pytest.approx(500, abs=100)
    assert (np.where(is_blended, ~found, found) == seeds).all()
    part = slice(1, 4000, 7)
    assert (self_blended(seeds[part], targets[part], 0.25) == found[part]).all()
    assert (self_blended(seeds, targets, 0.0) == seeds).all()
    _, later = with_views(np.arange(4000), seed=1, epoch=1)
    assert ((self_blended(later, targets, 0.25) < 0) != is_blended).any()


def plan(rows: int, batch_size: int, *, smallest: int = 2, drop_last: bool = True) -> BatchPlan:
    order = np.arange(rows)
    return BatchPlan(
        lambda epoch: (order, order + 100 * epoch),
        rows,
        batch_size=batch_size,
        smallest_batch=smallest,
        drop_last=drop_last,
    )


@pytest.mark.parametrize(
    ("rows", "batch_size", "drop_last", "sizes"),
    [
        (10, 4, True, [4, 4]),
        (10, 4, False, [4, 4, 2]),
        (8, 4, True, [4, 4]),
        (3, 4, True, [3]),
        (3, 4, False, [3]),
        (4, 4, True, [4]),
    ],
)
def test_batches_of_a_plan(rows: int, batch_size: int, drop_last: bool, sizes: list[int]) -> None:
    batches = plan(rows, batch_size, drop_last=drop_last)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize("start", range(4))
def test_a_plan_goes_on_from_any_batch(start: int) -> None:
    batches = plan(9, 3)
    whole = list(batches)
    batches.start = start
    assert list(batches) == whole[start:]


def test_rows_left_out_leave_gaps() -> None:
    batches = plan(9, 3)
    batches.left_out = {1, 6, 7}
    batches.epoch = 1
    assert list(batches) == [[(0, 100), (2, 102)], [(3, 103), (4, 104), (5, 105)], [(8, 108)]]
    batches.left_out = {6, 7, 8}
    assert list(batches)[2] == []
    assert len(batches) == 3
