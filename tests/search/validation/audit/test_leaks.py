from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from search.validation.audit.headers import FEATURES, NO_ENTRY, header_table
from search.validation.audit.leaks import clustered_auc, telling


def drawn(generator: np.random.Generator, count: int) -> pd.DataFrame:
    """Headers that are noise: numbers, categories, times."""
    return header_table(
        [
            {
                one.name: str(generator.integers(6)) if one.is_category else generator.normal()
                for one in FEATURES
            }
            for _ in range(count)
        ],
        range(count),
    )


@pytest.mark.parametrize("per_group", [1, 4])
def test_noise_is_not_accused(per_group: int) -> None:
    """All images of a group have one header and one label, as those of one camera may."""
    for seed in range(2):
        generator = np.random.default_rng(seed)
        groups = np.repeat(np.arange(100), per_group)
        headers = drawn(generator, 100).iloc[groups].reset_index(drop=True)
        targets = generator.permutation(np.arange(100) % 2)[groups]
        told = telling(headers, targets, groups, seed)
        assert told.combined is not None
        assert [one for one in (*told.signals, told.combined) if one.is_leak] == []
        assert len(told.signals) == len(FEATURES)


LEAKS = ("quality", "tables", "name_prefix", "modified")


@pytest.mark.parametrize("name", LEAKS)
@pytest.mark.parametrize("kind", ["more", "less", "middle"])
def test_a_feature_counts_in_either_direction_and_in_the_middle(name: str, kind: str) -> None:
    generator = np.random.default_rng(0)
    headers = drawn(generator, 300)
    place = generator.integers(0, 6, 300)
    targets = {"more": place > 2, "less": place <= 2, "middle": abs(place - 2.5) < 1}[kind] * 1
    is_category = next(one.is_category for one in FEATURES if one.name == name)
    values = pd.Series(place.astype(str) if is_category else place.astype(float))
    told = telling(
        headers.assign(**{name: values.astype(headers[name].dtype.name)}),
        targets,
        np.arange(300),
        0,
        with_combined=False,
        features=[one for one in FEATURES if one.name in (*LEAKS, "width")],
    )
    assert [one.feature for one in told.signals if one.is_leak] == [name]
    assert told.signals[0].feature == name
    assert told.signals[0].auc > 0.95


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [("modified", 1.76e9, 1.76e9 + 60), ("name_number", 1.76e12 + 20_000, 1.76e12 + 80_000)],
)
def test_large_numbers_that_differ_little_tell_as_well(
    name: str, first: float, last: float
) -> None:
    """Files written within a minute, the real ones first."""
    generator = np.random.default_rng(0)
    headers, targets = drawn(generator, 400), np.arange(400) // 200
    headers[name] = np.linspace(first, last, 400)
    told = telling(headers, targets, np.arange(400), 0, with_combined=False)
    assert [one.feature for one in told.signals if one.is_leak] == [name]


def test_what_is_absent_tells_as_well() -> None:
    generator = np.random.default_rng(0)
    headers, targets = drawn(generator, 200), np.arange(200) % 2
    headers["taken"] = np.where(targets == 1, np.nan, headers["taken"])
    told = telling(headers, targets, np.arange(200), 0, with_combined=False)
    assert [one.feature for one in told.signals if one.is_leak] == ["taken"]


def test_a_name_that_only_identifies_tells_nothing() -> None:
    """A folder for each group: known by heart, it would tell every label."""
    groups = np.repeat(np.arange(60), 4)
    headers = drawn(np.random.default_rng(0), 240)
    headers["name_folder"] = pd.Series(groups).astype(str).astype("category")
    targets = (groups % 2).astype(np.int64)
    told = telling(headers, targets, groups, 0, with_combined=False)
    assert [one for one in told.signals if one.is_leak] == []


def test_equal_headers_tell_nothing() -> None:
    row = {one.name: NO_ENTRY if one.is_category else 1.0 for one in FEATURES}
    told = telling(header_table([row] * 80, range(80)), np.arange(80) % 2, np.arange(80), 0)
    assert (told.combined, told.signals) == (None, ())
    assert "the same" in told.note


def test_a_group_counts_once() -> None:
    generator = np.random.default_rng(0)
    scores, targets = generator.integers(0, 9, 80).astype(float), np.arange(80) % 2
    auc, error = clustered_auc(scores, targets, np.arange(80))
    assert auc == pytest.approx(roc_auc_score(targets, scores))
    again = clustered_auc(np.repeat(scores, 3), np.repeat(targets, 3), np.repeat(np.arange(80), 3))
    assert again == pytest.approx((auc, error))
    _, as_if_alone = clustered_auc(np.repeat(scores, 3), np.repeat(targets, 3), np.arange(240))
    assert as_if_alone < 0.6 * error


def test_the_standard_error_is_that_of_many_draws() -> None:
    """Groups of a shared shift: 40 of 3 images."""
    found = []
    for seed in range(400):
        generator = np.random.default_rng(seed)
        groups = np.repeat(np.arange(40), 3)
        scores = generator.normal(size=40)[groups] + 0.5 * generator.normal(size=120)
        found.append(clustered_auc(scores, groups % 2, groups))
    aucs, errors = np.array(found).T
    assert np.sqrt((errors**2).mean()) == pytest.approx(aucs.std(), rel=0.12)
