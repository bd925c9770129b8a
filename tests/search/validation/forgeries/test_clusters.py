"""Clusters of descriptions: what is alike gets one name, and what cannot be told apart one line."""

from __future__ import annotations

import numpy as np
import pytest

from search.errors import UserError
from search.validation.forgeries.clusters import check_enough, cluster


def blobs(sizes: list[int], spread: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around as many centres, in random order; the centre of each."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(0.0, 3.0, (len(sizes), 40))  # nearly at right angles
    owner = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return centres[owner] + generator.normal(0.0, spread, (len(owner), 40)), owner


def test_what_is_alike_is_one_cluster_named_by_its_size() -> None:
    points, owner = blobs([30, 60, 10, 45])
    names = np.array(cluster(points, 4, seed=0).names)
    expected = np.array(["cluster-03", "cluster-01", "cluster-04", "cluster-02"])
    assert names.tolist() == expected[owner].tolist()


def test_the_seed_says_it_all() -> None:
    points, _ = blobs([50, 50, 50], spread=4.0)
    first, second, other = (cluster(points, 6, seed) for seed in (0, 0, 1))
    assert first.names == second.names != other.names
    assert first.likeness.equals(second.likeness)


def test_likeness_is_the_mean_kernel_over_pairs() -> None:
    """Beside a plain reference: it is highest within a cluster, and symmetric."""
    points, _ = blobs([20, 20, 20])
    found = cluster(points, 3, seed=0)
    likeness = found.likeness
    assert likeness.index.tolist() == likeness.columns.tolist() == sorted(set(found.names))
    values = likeness.to_numpy()
    np.testing.assert_allclose(values, values.T)
    assert ((values > 0) & (values <= 1)).all()
    assert (values.argmax(axis=1) == np.arange(3)).all()


def test_an_odd_image_is_no_cluster() -> None:
    points, _ = blobs([50, 50, 50], spread=1.0)
    points[0] *= 1000.0
    sizes = np.unique(cluster(points, 3, seed=0).names, return_counts=True)[1]
    assert sizes.min() > 40


def test_how_strong_a_method_was_applied_does_not_matter() -> None:
    points, _ = blobs([30, 60, 10])
    strengths = np.random.default_rng(1).uniform(0.5, 1.5, (100, 1))
    assert cluster(points * strengths, 3, seed=0).names == cluster(points, 3, seed=0).names


def test_a_number_that_never_changes_does_no_harm() -> None:
    points, _ = blobs([20, 20, 20])
    points[:, 3] = 0.0
    assert len(set(cluster(points, 3, seed=0).names)) == 3


@pytest.mark.parametrize(
    ("fakes", "groups", "clusters", "expected"),
    [
        (99, 500, 20, "found 99 fakes in 500 groups; use --clusters 19"),
        (9_000, 60, 20, "found 9,000 fakes in 60 groups; use --clusters 12"),
        (14, 14, 20, "found 14 fakes in 14 groups; name the methods, or use --split group"),
    ],
)
def test_too_few_for_so_many_clusters(
    fakes: int, groups: int, clusters: int, expected: str
) -> None:
    with pytest.raises(UserError, match=f"each of --clusters {clusters} needs 5 fakes") as raised:
        check_enough(fakes, groups, clusters)
    assert expected in str(raised.value)


def test_enough_is_enough() -> None:
    check_enough(100, 100, 20)


def test_a_cluster_that_holds_nearly_everything_is_refused() -> None:
    points, _ = blobs([95, 3, 2], spread=0.01)
    with pytest.raises(UserError, match=r"one holds 95 of 100, more than 80%; use another"):
        cluster(points, 3, seed=0)
