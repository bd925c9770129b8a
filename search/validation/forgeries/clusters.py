"""Changes that forging made -> clusters, which stand for the methods that made them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from search.errors import UserError

DIMENSIONS = 16
"""That changes are reduced to."""

FARTHEST = 5.0
"""That one number of a change counts for at most, in units of its usual size: an odd image is no
cluster."""

STARTS = 10
"""Of k-means; the tightest result is kept."""

FEWEST_OF_A_CLUSTER = 5
"""Fakes, and groups with fakes, for each cluster that is asked for."""

LARGEST_SHARE = 0.8
"""Of the fakes, that a cluster may hold: one that holds nearly all tells nothing apart."""

PAIRED = 100
"""Fakes of a cluster, drawn at random, that its likeness to others is measured on."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Fakes that are alike."""

    names: list[str]  # one a fake
    likeness: pd.DataFrame  # (K, K), by name: mean of a Gaussian kernel over pairs, in [0, 1]


def check_enough(fakes: int, groups: int, clusters: int) -> None:
    """
    Raises:
        UserError: if there are too few fakes, or groups of them, for so many clusters.
    """
    most = min(fakes, groups) // FEWEST_OF_A_CLUSTER
    if most >= clusters:
        return
    remedy = f"use --clusters {most}" if most >= 3 else "name the methods, or use --split group"
    raise UserError(
        f"each of --clusters {clusters} needs {FEWEST_OF_A_CLUSTER} fakes and as many groups with "
        f"fakes, found {fakes:,} fakes in {groups:,} groups; {remedy}"
    )


def cluster(changes: NDArray[np.float64], count: int, seed: int) -> Clusters:
    """Clusters of what forging changed, see `reduce`.

    Args:
        changes: (N, D), one row a fake; 0 is no change.
        count: of clusters.
        seed: of the starts of k-means, and of the pairs that likeness is measured on.

    Raises:
        UserError: if one cluster holds nearly everything.
    """
    points = reduce(changes, seed)
    numbers = KMeans(count, n_init=STARTS, random_state=seed).fit_predict(points)
    # By size, so that a number does not depend on where k-means began.
    sizes = np.bincount(numbers, minlength=count)
    rank = np.argsort(np.argsort(-sizes, kind="stable"))
    names = [f"cluster-{rank[number] + 1:02d}" for number in numbers]
    if sizes.max() > LARGEST_SHARE * len(points):
        raise UserError(
            f"clusters must tell the fakes apart, but one holds {sizes.max():,} of "
            f"{len(points):,}, more than {LARGEST_SHARE:.0%}; use another --clusters, name the "
            "methods in the group files, or use --split group"
        )
    return Clusters(names, _likeness(points, np.array(names), seed))


def reduce(changes: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Directions of changes (N, D) on their principal components, (N, at most DIMENSIONS).

    Each number is counted in units of its usual size. Only the direction is kept: a method is
    applied more strongly here and less there. (On a draft of the demo set, described by
    frequencies, 20 clusters: 0.67 of the fakes are of the commonest method in their cluster with
    directions, 0.55 with changes as they are.)
    """
    sizes = np.abs(changes)
    usual = np.median(sizes, axis=0)  # not the mean: one odd image would set the scale for all
    usual = np.where(usual > 0, usual, sizes.max(axis=0))
    bounded = np.clip(changes / np.where(usual > 0, usual, 1.0), -FARTHEST, FARTHEST)
    lengths = np.linalg.norm(bounded, axis=1, keepdims=True)
    directions = bounded / np.where(lengths > 0, lengths, 1.0)
    components = min(DIMENSIONS, *directions.shape)
    points: NDArray[np.float64] = PCA(components, random_state=seed).fit_transform(directions)
    return points


def _likeness(points: NDArray[np.float64], names: NDArray[np.str_], seed: int) -> pd.DataFrame:
    """The mean of exp(-d^2 / median d^2) over the pairs of two clusters."""
    generator = np.random.default_rng(seed)
    unique = np.unique(names)
    drawn = [
        generator.permutation(np.flatnonzero(names == name))[:PAIRED].tolist() for name in unique
    ]
    chosen = points[np.concatenate(drawn).astype(np.int64)]
    squares = cdist(chosen, chosen, "sqeuclidean")
    kernel = np.exp(-squares / max(float(np.median(squares)), np.finfo(np.float64).tiny))
    ends = np.cumsum([0, *map(len, drawn)])
    sums = np.add.reduceat(np.add.reduceat(kernel, ends[:-1], axis=0), ends[:-1], axis=1)
    sizes = np.diff(ends)
    return pd.DataFrame(sums / np.outer(sizes, sizes), index=unique, columns=unique)
