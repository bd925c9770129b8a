"""Few groups of a class -> parts that each have both classes, and sizes near their shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_Integers = NDArray[np.int64]
_Booleans = NDArray[np.bool_]

_Kind = tuple[bool, bool]
"""Whether a group holds reals, and whether it holds fakes."""


def place_groups(table: pd.DataFrame, fractions: Sequence[float], seed: int) -> _Integers:
    """The number of the part that each row lies in, (N,).

    From the largest group to the smallest, each goes to the part that it brings nearest to its
    shares of both classes, unless the groups left would not give every part both classes then.

    Args:
        table: label table; for each class, at least as many groups hold it as there are parts.
        fractions: of each class, that the parts should have.
        seed: of the order of groups of one size.
    """
    groups, names = pd.factorize(table["group"])
    fakes = np.bincount(groups, weights=table["target"])
    images = np.column_stack([np.bincount(groups) - fakes, fakes])  # (G, 2)
    shares = images / images.sum(axis=0)
    kinds: list[_Kind] = [(real > 0, fake > 0) for real, fake in images.tolist()]
    left = Counter(kinds)
    missing = np.tile(np.array(fractions)[:, None], 2)  # (P, 2) of each class
    has = np.zeros(missing.shape, np.bool_)
    order = np.random.default_rng(seed).permutation(len(names))
    places = np.empty(len(names), np.int64)
    for group in order[np.argsort(-shares.sum(axis=1)[order], kind="stable")].tolist():
        left[kinds[group]] -= 1
        # The sum of squares of what is missing falls most where this product is highest.
        for part in np.argsort(-(missing @ shares[group]), kind="stable").tolist():
            filled = has.copy()
            filled[part] |= kinds[group]
            if _can_be_filled(filled, left):
                break
        has, places[group] = filled, part
        missing[part] -= shares[group]
    placed: _Integers = places[groups]
    return placed


def _can_be_filled(has: _Booleans, left: Counter[_Kind]) -> bool:
    """Whether the groups left suffice for both classes in each part.

    Args:
        has: (P, 2) whether a part has reals, and fakes.
        left: groups by kind.
    """
    reals, fakes = (~has).sum(axis=0).tolist()
    neither = int((~has).all(axis=1).sum())
    # A part with neither takes a mixed group, or one of each class.
    return any(
        mixed
        + max(0, reals - mixed - left[True, False])
        + max(0, fakes - mixed - left[False, True])
        <= left[True, True]
        for mixed in range(neither + 1)
    )
