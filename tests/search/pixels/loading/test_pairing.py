"""Both classes of a group in one batch: always the same rows, and wherever it can be done."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.pixels.loading.epochs import shuffled
from search.pixels.loading.pairing import GroupedReals, Integers, side_by_side


def alone(order: Integers, groups: Integers, targets: Integers, batch_size: int) -> int:
    """Images whose group has the other class, but not in their batch."""
    both = {group for group in groups[targets == 0] if group in groups[targets == 1]}
    count = 0
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        classes = {(groups[row], targets[row]) for row in rows}
        count += sum(
            groups[row] in both and (groups[row], 1 - targets[row]) not in classes for row in rows
        )
    return count


@pytest.mark.parametrize(("fakes", "batch_size"), [(1, 8), (3, 8), (3, 32), (1, 2), (7, 16)])
def test_groups_that_fill_batches_are_never_parted(fakes: int, batch_size: int) -> None:
    groups = np.repeat(np.arange(64), fakes + 1)
    targets = np.tile([0] + [1] * fakes, 64)
    order = shuffled(len(groups), 0, 0)
    assert alone(order, groups, targets, batch_size) > 0
    found = side_by_side(order, groups, targets, batch_size)
    assert alone(found, groups, targets, batch_size) == 0
    assert sorted(found) == sorted(order)


@given(data=st.data())
def test_rows_stay_the_same_and_few_are_parted(data: st.DataObject) -> None:
    """At most one real with its fakes is cut at each end of a batch."""
    count = data.draw(st.integers(1, 60))
    groups = np.array(data.draw(st.lists(st.integers(0, 12), min_size=count, max_size=count)))
    targets = np.array(data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    batch_size = data.draw(st.integers(2, 20))
    order = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, count, count)
    found = side_by_side(order, groups, targets, batch_size)
    assert sorted(found) == sorted(order)
    drawn_groups, drawn_targets = groups[order], targets[order]
    largest = max(np.count_nonzero(drawn_groups == group) for group in np.unique(drawn_groups))
    # Rows that were drawn are what a batch can hold.
    numbered = np.arange(count)
    place = {row: np.flatnonzero(order == row).tolist() for row in np.unique(order)}
    positions = np.array([place[row].pop() for row in found])
    assert sorted(positions) == numbered.tolist()
    batches = -(-count // batch_size)
    parted = alone(positions, drawn_groups, drawn_targets, batch_size)
    assert parted <= (batches - 1) * largest


def test_without_groups_of_both_classes_the_order_stays() -> None:
    order = shuffled(40, 3, 1)
    groups, targets = np.arange(40) % 20, np.arange(40) % 2
    assert (groups[targets == 0] % 2 == 0).all()  # a group has one class
    assert side_by_side(order, np.arange(40), targets, 8).tolist() == order.tolist()
    assert side_by_side(order, groups, targets, 8).tolist() == order.tolist()


def test_batches_are_still_random() -> None:
    groups, targets = np.repeat(np.arange(100), 2), np.tile([0, 1], 100)
    batches = [
        frozenset(groups[side_by_side(shuffled(200, 0, epoch), groups, targets, 8)[:8]])
        for epoch in range(5)
    ]
    assert len(set(batches)) == 5


def test_reals_are_found_by_group() -> None:
    groups, reals = np.array([2, 0, 2, 0, 3, 2]), np.array([5, 3, 0])
    found = GroupedReals.of(groups, reals)
    assert found.counts.tolist() == [1, 0, 2, 0]
    of_groups = [
        found.rows[start : start + count].tolist()
        for start, count in zip(found.starts, found.counts, strict=True)
    ]
    assert of_groups == [[3], [], [5, 0], []]
