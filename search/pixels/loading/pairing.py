"""Reals and fakes of one group: together in a batch, or mixed in one view."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def side_by_side(order: Integers, groups: Integers, targets: Integers, batch_size: int) -> Integers:
    """The rows of an order, moved so that reals and fakes of one group are in one batch.

    What a real and the fakes made of it share, the person and the place, then tells nothing within
    a batch, and what differs is the forgery (arXiv:2508.06248, whose ablation calls it essential).
    A real stays with its share of the group's fakes, or a fake with its share of the reals if they
    are more; batches are filled with these as a whole, each the next that fits, and only where none
    fits is one cut. Where no group has both classes, the order stays.

    Args:
        order: (N,), rows of a table in random order; one may come more than once.
        groups: of each row of the table, as a number.
        targets: of each row of the table, 1 = fake.
        batch_size: rows of a batch.

    Returns:
        (N,), the same rows.
    """
    frame = pd.DataFrame({"group": groups[order], "target": targets[order]})
    in_group = frame.groupby("group")["target"]
    fakes = in_group.transform("sum").to_numpy()
    reals = in_group.transform("size").to_numpy() - fakes
    fewer = np.minimum(fakes, reals)
    parts = np.where(fewer > 0, fewer, np.maximum(fakes, reals))
    number = frame.groupby(["group", "target"]).cumcount().to_numpy()
    part = frame.assign(part=number % parts).groupby(["group", "part"], sort=False).ngroup()
    # `ngroup` counts in the order of first appearance.
    units = part.to_numpy()
    members = np.split(order[np.argsort(units, kind="stable")], np.bincount(units).cumsum()[:-1])
    packed = _packed([len(rows) for rows in members], batch_size)
    return np.concatenate([members[unit] for unit in packed]) if packed else order


@dataclass(frozen=True)
class GroupedReals:
    """The reals of each group."""

    rows: Integers  # those of a group one after the other
    starts: Integers  # (G,) - where a group's are in `rows`
    counts: Integers  # (G,) - how many it has

    @staticmethod
    def of(groups: Integers, reals: Integers) -> GroupedReals:
        """Those of a table.

        Args:
            groups: (N,), of each row, as a number from 0.
            reals: rows of the reals; within a group they stay in this order.
        """
        counts = np.bincount(groups[reals], minlength=groups.max(initial=-1) + 1)
        rows = reals[np.argsort(groups[reals], kind="stable")]
        return GroupedReals(rows, np.cumsum(counts) - counts, counts)


@dataclass(frozen=True)
class Partners:
    """Which fakes are shown mixed with a real of their group, and with which real: a function of
    (row, seed), so that it depends neither on the batch nor on what else is drawn.

    Attributes:
        share: of the fakes whose group has a real, from 0 to 1; the others stay as they are.
        groups: (N,), of each row of the table, as a number from 0.
        targets: (N,), 1 = fake.
        reals: of those groups.
    """

    share: float
    groups: Integers
    targets: Integers
    reals: GroupedReals

    @staticmethod
    def of(groups: Integers, targets: Integers, share: float) -> Partners:
        """Those of a table; see the attributes."""
        reals = GroupedReals.of(groups, np.flatnonzero(targets == 0))
        return Partners(share, groups, targets, reals)

    def find(self, row: int, seed: int) -> int | None:
        """The row of the real that a view is mixed with; None: it is not.

        Args:
            row: of the table.
            seed: of the view.
        """
        group = self.groups[row]
        count = int(self.reals.counts[group])
        if not self.targets[row] or not count:
            return None
        rng = random.Random(f"partner {seed}")
        if rng.random() >= self.share:
            return None
        return int(self.reals.rows[self.reals.starts[group] + rng.randrange(count)])


def _packed(sizes: list[int], batch_size: int) -> list[int]:
    """Units of some sizes in the order in which they fill batches."""
    waiting: dict[int, deque[int]] = {}
    for unit, size in enumerate(sizes):
        waiting.setdefault(size, deque()).append(unit)
    packed, room = [], batch_size
    while waiting:
        fitting = [size for size in waiting if size <= room] or list(waiting)
        size = min(fitting, key=lambda one: waiting[one][0])
        packed.append(waiting[size].popleft())
        if not waiting[size]:
            del waiting[size]
        room = (room - size) % batch_size or batch_size
    return packed
