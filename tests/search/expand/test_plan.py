from __future__ import annotations

import re
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.errors import UserError
from search.expand.plan import plan_samples, plan_sha256, read_kinds, sample_name, seed_of


def table(reals: int, fakes: int, *, grouped: bool = True) -> pd.DataFrame:
    """Fake n is in the group of real n, or each image alone."""
    rows = [(f"r{n}.png", 0, f"g{n}") for n in range(reals)]
    rows += [(f"f{n}.png", 1, f"g{n}") for n in range(fakes)]
    found = pd.DataFrame(rows, columns=["img_name", "target", "group"])
    found = found.assign(path="/images/" + found["img_name"], method="")
    return found if grouped else found.assign(group=found["img_name"])


def test_kinds_share_the_count_and_know_their_sources() -> None:
    fit = table(6, 4)
    planned = plan_samples(fit, ["self-blended", "mixed", "recompressed"], 20, 0)
    assert Counter(one.kind for one in planned) == {
        "self-blended": 7,
        "mixed": 7,
        "recompressed": 6,
    }
    assert len({one.img_name for one in planned}) == 20
    groups = dict(zip(fit["img_name"], fit["group"], strict=True))
    for one in planned:
        assert {groups[source.img_name] for source in one.sources} == {one.group}
        targets = [source.target for source in one.sources]
        expected = {"self-blended": ([0], 1), "mixed": ([0, 1], 1)}
        assert (targets, one.target) == expected.get(one.kind, (targets[:1], targets[0]))
    # 6 reals for 7: none is used twice before all were used once.
    used = Counter(one.sources[0].img_name for one in planned if one.kind == "self-blended")
    assert sorted(used.values()) == [1, 1, 1, 1, 1, 2]


def test_recompressed_ones_are_of_both_classes_alike() -> None:
    planned = plan_samples(table(30, 90), ["recompressed"], 40, 3)
    assert Counter(one.target for one in planned) == {0: 10, 1: 30}


def test_a_seed_says_it_all_and_a_kind_does_not_depend_on_the_others() -> None:
    fit = table(20, 20)
    both = plan_samples(fit, ["self-blended", "mixed"], 16, 5)
    assert both == plan_samples(fit, ["self-blended", "mixed"], 16, 5)
    assert plan_sha256(both) == plan_sha256(plan_samples(fit, ["self-blended", "mixed"], 16, 5))
    assert plan_sha256(both) != plan_sha256(plan_samples(fit, ["self-blended", "mixed"], 16, 6))
    moved = fit.assign(path="elsewhere")
    assert plan_sha256(both) == plan_sha256(plan_samples(moved, ["self-blended", "mixed"], 16, 5))
    assert set(plan_samples(fit, ["mixed"], 8, 5)) == {one for one in both if one.kind == "mixed"}
    assert len({tuple(seed_of(one, 5)) for one in both}) == 16


def test_a_sample_takes_the_method_of_its_source_only_if_nothing_was_forged() -> None:
    fit = table(3, 3).assign(method=["", "", "", "swap", "swap", "swap"])
    for one in plan_samples(fit, ["self-blended", "mixed", "recompressed"], 18, 0):
        same = "swap" if one.target else ""
        assert one.method == (same if one.kind == "recompressed" else one.kind)


@pytest.mark.parametrize(
    ("fit", "kinds", "count", "message"),
    [
        (table(0, 3), ["self-blended"], 2, "fit has none; add real images"),
        (table(3, 3, grouped=False), ["mixed"], 2, "no group of fit has both; add --train-groups"),
        (table(3, 3), ["self-blended", "mixed"], 1, "found 1 for 2 kinds"),
    ],
)
def test_what_no_sample_can_be_made_of_is_told(
    fit: pd.DataFrame, kinds: list[str], count: int, message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        plan_samples(fit, kinds, count, 0)


def test_kinds_are_read_or_follow_from_the_groups() -> None:
    assert read_kinds("mixed, self-blended,mixed", table(2, 2)) == ("mixed", "self-blended")
    assert read_kinds(None, table(2, 2)) == ("self-blended", "mixed")
    assert read_kinds(None, table(2, 2, grouped=False)) == ("self-blended",)
    with pytest.raises(UserError, match="found 'self-blend'; did you mean 'self-blended'"):
        read_kinds("self-blend", table(2, 2))


@given(st.text(min_size=1), st.text(min_size=1))
def test_names_are_plain_and_differ_as_their_sources_do(one: str, other: str) -> None:
    names = [
        sample_name(source.encode("utf-8", "replace").decode(), "mixed", 3)
        for source in (one, other)
    ]
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name)
        assert len(name) < 100
    assert (names[0] == names[1]) == (
        one.encode("utf-8", "replace") == other.encode("utf-8", "replace")
    )
