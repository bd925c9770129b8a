"""Splits: nothing is shared, classes stay in proportion, and a seed says it all."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.data.splits import Splits, TrainedOn, make_splits
from search.errors import UserError


def label_table(
    targets: list[int] | np.ndarray, groups: list[int] | np.ndarray | None = None, name: str = "t"
) -> pd.DataFrame:
    names = [f"{name}{row}.jpg" for row in range(len(targets))]
    return pd.DataFrame(
        {
            "img_name": names,
            "path": [f"/{name}/{image}" for image in names],
            "target": np.asarray(targets, np.int64),
            "group": names if groups is None else [f"{name}-{group}" for group in groups],
            "method": "",
        }
    )


def random_table(rows: int, *, per_group: int = 0, name: str = "t", seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    targets = (generator.random(rows) < 0.8).astype(int)
    groups = generator.integers(0, rows // per_group, rows) if per_group else None
    return label_table(targets, groups, name)


def split(train: pd.DataFrame, val: pd.DataFrame | None = None, **options: Any) -> Splits:
    return make_splits(train, val, **{"limit_train": None, "limit_val": None, "seed": 0} | options)


def parts(splits: Splits) -> list[pd.DataFrame]:
    return [splits.fit, splits.select, splits.report]


def assert_sound(splits: Splits) -> None:
    """No image and no group is in two splits; all are label tables with their own index."""
    for column in ("path", "group"):
        seen = pd.concat([part[column].drop_duplicates() for part in parts(splits)])
        assert seen.is_unique
    for part in parts(splits):
        assert part.columns.tolist() == ["img_name", "path", "target", "group", "method"]
        assert part.index.tolist() == list(range(len(part)))


@pytest.mark.parametrize("per_group", [0, 5])
def test_training_set_alone_is_divided_70_15_15(per_group: int) -> None:
    train = random_table(4000, per_group=per_group)
    splits = split(train)
    assert_sound(splits)
    assert sum(map(len, parts(splits))) == 4000
    for part, share in zip(parts(splits), (0.7, 0.15, 0.15), strict=True):
        assert len(part) == pytest.approx(share * 4000, abs=10)
        assert part["target"].mean() == pytest.approx(train["target"].mean(), abs=0.005)


@pytest.mark.parametrize("per_group", [0, 3])
def test_validation_set_is_halved(per_group: int) -> None:
    train, val = random_table(50), random_table(2001, per_group=per_group, name="v", seed=1)
    splits = split(train, val)
    assert_sound(splits)
    pd.testing.assert_frame_equal(splits.fit, train)
    assert len(splits.select) + len(splits.report) == 2001
    assert abs(len(splits.select) - len(splits.report)) <= 3
    for part in (splits.select, splits.report):
        assert part["target"].mean() == pytest.approx(val["target"].mean(), abs=0.005)


def test_rows_keep_their_order_and_content() -> None:
    train = random_table(300, per_group=4)
    splits = split(train, limit_train=100)
    for part in parts(splits):
        rows = part.merge(train.reset_index(), on=["img_name", "path", "target", "group"])
        assert len(rows) == len(part)
        assert rows["index"].is_monotonic_increasing


@settings(max_examples=20, deadline=None)
@given(
    groups=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 4)).filter(any), min_size=40, max_size=90
    ),
    limit=st.integers(30, 120),
    seed=st.integers(0, 2**40),
)
def test_groups_stay_whole_and_classes_in_proportion(
    groups: list[tuple[int, int]], limit: int, seed: int
) -> None:
    targets, names = [], []
    for group, (real, fake) in enumerate([*groups, *[(1, 1)] * 20]):
        targets += [0] * real + [1] * fake
        names += [group] * (real + fake)
    train = label_table(targets, names)
    splits = split(train, seed=seed, limit_train=limit)
    assert_sound(splits)
    largest = max(real + fake for real, fake in groups)
    whole = train.groupby("group").size()
    for part in parts(splits):
        sizes = part.groupby("group").size()
        assert (sizes == whole[sizes.index]).all()
    held_out = len(splits.select) + len(splits.report)
    assert held_out == pytest.approx(0.3 * len(train), abs=2 * largest + 2)
    assert len(splits.fit) <= limit
    if len(splits.fit) < len(train) - held_out:  # thinned out: as near the limit as groups allow
        assert len(splits.fit) > limit - largest
    held = pd.concat([splits.select, splits.report])["target"]
    assert held.mean() == pytest.approx(np.mean(targets), abs=0.1)


@settings(max_examples=60, deadline=None)
@given(
    real=st.integers(40, 300),
    fake=st.integers(40, 300),
    limit=st.integers(10, 400),
    seed=st.integers(0, 2**32),
)
def test_limits_of_single_images_are_exact(real: int, fake: int, limit: int, seed: int) -> None:
    train = label_table([0] * real + [1] * fake)
    everything = split(train, seed=seed).fit
    drawn = split(train, seed=seed, limit_train=limit).fit
    assert len(drawn) == min(limit, len(everything))
    assert set(drawn["img_name"]) <= set(everything["img_name"])
    # Each class is within one image of its exact share.
    assert drawn["target"].sum() == pytest.approx(everything["target"].mean() * len(drawn), abs=1)


def test_limits_apply_after_the_division() -> None:
    train, val = random_table(500), random_table(400, name="v", seed=1)
    whole = split(train, val)
    small, large = (split(train, val, limit_train=n, limit_val=n) for n in (101, 201))
    for limited, limit in ((small, 101), (large, 201)):
        assert len(limited.fit) == limit
        assert (len(limited.select), len(limited.report)) == (limit // 2 + 1, limit // 2)
    for few, more, all_of in zip(parts(small), parts(large), parts(whole), strict=True):
        assert set(few["path"]) < set(more["path"]) < set(all_of["path"])


def test_limits_beyond_the_set_change_nothing() -> None:
    train = random_table(200, per_group=3)
    limited = split(train, limit_train=10**9, limit_val=10**9)
    assert limited.fingerprint() == split(train).fingerprint()


def test_a_huge_group_does_not_stop_a_limit() -> None:
    train = label_table([0, 1] * 200, [0] * 300 + list(range(1, 101)))
    val = random_table(100, name="v")
    drawn = split(train, val, limit_train=60).fit
    assert len(drawn) == 60


@pytest.mark.parametrize("per_group", [0, 4])
def test_the_seed_decides(per_group: int) -> None:
    train = random_table(400, per_group=per_group)
    prints = [split(train, seed=seed, limit_train=100).fingerprint() for seed in (0, 0, 1, 2**40)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_random_parts_groups_and_keeps_their_names() -> None:
    train, val = random_table(400, per_group=4), random_table(300, per_group=4, name="v", seed=1)
    for validation in (None, val):
        splits = split(train, validation, kind="random")
        assert splits.kind == "random"
        assert set(splits.select["group"]) & set(splits.report["group"])
        whole = train if validation is None else pd.concat([train, val])
        rows = pd.concat(parts(splits)).sort_values("path").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, whole.sort_values("path").reset_index(drop=True))


def test_random_is_the_same_where_there_are_no_groups() -> None:
    train = random_table(400)
    assert split(train, kind="random").fingerprint() == split(train).fingerprint()


def test_the_fingerprint_of_a_seeded_division_stays_what_it_was() -> None:
    """Runs that began earlier must find their images again."""
    assert split(random_table(60, per_group=3), limit_train=20).fingerprint() == (
        "d25685da3d1ff1258289ef6a583f46e2df8dded6d7250b1a6f9e6a1a1219ebeb"
    )


def test_the_seed_decides_what_a_limit_draws() -> None:
    train, val = random_table(400), random_table(100, name="v")
    drawn = [frozenset(split(train, val, seed=s, limit_train=100).fit["path"]) for s in range(3)]
    assert len(set(drawn)) == 3


def test_limits_draw_rare_groups_too() -> None:
    """A hundred groups, no two of one make-up, beside as many rows of single images."""
    shapes = [(real, fake) for real in range(1, 11) for fake in range(1, 11)]
    sizes = [sum(shape) for shape in shapes]
    targets = [target for real, fake in shapes for target in [0] * real + [1] * fake]
    groups = np.repeat(range(100), sizes).tolist() + list(range(100, 100 + len(targets)))
    train = label_table([*targets, *targets], groups)
    rare = split(train, random_table(50, name="v"), limit_train=500).fit.duplicated("group").sum()
    assert 100 < rare < 350  # in proportion: 250 rows less one a group, which is some 230


def test_the_largest_group_is_trained_on() -> None:
    train = label_table([0, 1] * 150, [0] * 120 + list(range(1, 181)))
    for seed in range(5):
        assert "t-0" in set(split(train, seed=seed).fit["group"])


def test_fingerprint_sees_content_and_not_paths() -> None:
    train = random_table(60)
    before = split(train).fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", before)
    assert split(train.assign(path="/moved/" + train["img_name"])).fingerprint() == before
    splits = split(train)
    for column, value in (("img_name", "x.jpg"), ("target", 1), ("group", "x")):
        changed = splits.report.copy()
        at = changed.index[changed["target"] == 0][0]
        changed.loc[at, column] = value
        assert Splits(splits.fit, splits.select, changed).fingerprint() != before
    assert Splits(splits.fit, splits.report, splits.select).fingerprint() != before


def test_equal_names_in_two_folders_are_two_images() -> None:
    train = random_table(50)
    val = train.assign(path="/elsewhere/" + train["img_name"])
    assert len(split(train, val).fit) == 50


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        (label_table([1] * 20), None, "the training set must hold both"),
        (random_table(20), label_table([0] * 20, name="v"), "the validation set must hold both"),
        (
            random_table(50),
            random_table(50),
            "no image may be in both the training and the validation set, found 50, for example "
            "/t/t0.jpg",
        ),
        (
            random_table(50, per_group=5),
            random_table(50, per_group=5).assign(path=[f"/v/{row}" for row in range(50)]),
            "no group may be in both the training and the validation set, found 10, for example",
        ),
        (
            label_table([0, 1, 0, 1]),
            None,
            "the training set must have 3 groups or more that hold real images, one each for fit, "
            "select and report, but only 2 hold real images; add real images of other groups",
        ),
        (label_table([0, 1] * 10, [0] * 20), None, "but only 1 holds real images; add"),
        (label_table([0] * 30 + [1] * 2, [*range(30), 0, 1]), None, "but only 2 hold fakes; add"),
        (
            random_table(20),
            label_table([0] * 20 + [1] * 20, [*range(20), *[20] * 20], "v"),
            "the validation set must have 2 groups or more that hold fakes, one each for select "
            "and report, but only 1 holds fakes; add fakes of other groups",
        ),
    ],
    ids=[
        "one-class",
        "one-class-val",
        "image",
        "group",
        "few",
        "one-group",
        "few-fakes",
        "few-in-val",
    ],
)
def test_what_cannot_be_divided(
    train: pd.DataFrame, val: pd.DataFrame | None, expected: str
) -> None:
    with pytest.raises(UserError) as raised:
        split(train, val)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_group_named_like_an_image_of_the_other_set_is_shared() -> None:
    train, val = random_table(40), random_table(40, name="v", seed=1)
    train.loc[3, "group"] = "v7.jpg"
    with pytest.raises(UserError, match=r"found 1, for example 'v7.jpg'"):
        split(train, val)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"limit_train": 1}, "--limit-train must be at least 2, found 1"),
        ({"limit_val": 3}, "--limit-val must be at least 4, found 3"),
        ({"limit_train": 2}, "the split 'fit' must hold both"),
    ],
)
def test_limits_too_small(options: dict[str, int], expected: str) -> None:
    train = label_table([0] * 3 + [1] * 997)
    val = random_table(100, name="v")
    with pytest.raises(UserError, match=re.escape(expected)):
        split(train, val, **options)


def test_few_groups_still_give_three_splits() -> None:
    train = label_table([0, 1, 1, 0] * 5, np.repeat(range(5), 4))
    splits = split(train)
    assert_sound(splits)
    assert [len(part) for part in parts(splits)] == [12, 4, 4]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("reals", "fakes", "expected"),
    [
        ((100, 3), (8, 40), [(210, 240), (45, 40), (45, 40)]),
        ((100, 3), (5, 60), [(210, 180), (45, 60), (45, 60)]),
        ((6, 50), (6, 50), [(200, 200), (50, 50), (50, 50)]),
        ((100, 1), (3, 1), [(70, 1), (15, 1), (15, 1)]),
        # Divided so before there was a way for few groups.
        ((100, 3), (12, 40), [(210, 360), (45, 80), (45, 40)]),
    ],
)
def test_few_groups_of_a_class_give_each_split_one(
    reals: tuple[int, int], fakes: tuple[int, int], expected: list[tuple[int, int]], seed: int
) -> None:
    """Groups of reals and of fakes, and the images of each."""
    sizes = np.repeat([reals[1], fakes[1]], [reals[0], fakes[0]])
    targets = [0] * (reals[0] * reals[1]) + [1] * (fakes[0] * fakes[1])
    splits = split(label_table(targets, np.repeat(range(len(sizes)), sizes)), seed=seed)
    assert_sound(splits)
    assert [tuple(np.bincount(part["target"])) for part in parts(splits)] == expected


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(
        st.sampled_from([(0, 1), (0, 9), (1, 0), (9, 0), (1, 1), (1, 9)]), min_size=3, max_size=8
    ),
    with_val=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_groups_are_divided_wherever_each_split_can_have_both_classes(
    groups: list[tuple[int, int]], with_val: bool, seed: int
) -> None:
    table = label_table(
        [target for real, fake in groups for target in [0] * real + [1] * fake],
        np.repeat(range(len(groups)), [sum(group) for group in groups]),
    )
    sets = (random_table(20, name="f"), table) if with_val else (table, None)
    of_class = [sum(group[target] > 0 for group in groups) for target in (0, 1)]
    if min(of_class) >= (2 if with_val else 3):
        assert_sound(split(*sets, seed=seed))
    else:
        with pytest.raises(UserError):
            split(*sets, seed=seed)


def test_147_000_single_images_are_limited_and_divided() -> None:
    """A split that asks every image about every other would outlast the suite's time limit."""
    val = random_table(147_000, name="v")
    splits = split(random_table(50), val, limit_val=10_000)
    assert_sound(splits)
    assert [len(part) for part in parts(splits)] == [50, 5_000, 5_000]


@pytest.mark.parametrize(
    ("trained_on", "fit", "select", "report"),
    [
        ("fit", ["f"], ["s"], ["r"]),
        ("fit+select", ["f", "s"], [], ["r"]),
        ("all", ["f", "s", "r"], [], []),
    ],
)
def test_what_is_trained_on_is_left_to_no_other_split(
    trained_on: TrainedOn, fit: list[str], select: list[str], report: list[str]
) -> None:
    one = [
        pd.DataFrame({"img_name": [name], "path": [name], "target": [1], "group": [name]})
        for name in "fsr"
    ]
    seen = Splits(*one).seen_by(trained_on)
    found = [table["img_name"].tolist() for table in (seen.fit, seen.select, seen.report)]
    assert found == [fit, select, report]
    assert seen.fit.index.tolist() == list(range(len(fit)))
