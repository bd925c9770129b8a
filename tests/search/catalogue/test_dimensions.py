from __future__ import annotations

import pytest

from search.catalogue.dimensions import DIMENSIONS, read_dimensions, without_pairs
from search.errors import UserError


def test_without_a_word_all_is_as_it_is() -> None:
    assert read_dimensions({}) == DIMENSIONS


@pytest.mark.parametrize("name", DIMENSIONS)
def test_a_centre_lies_in_its_range(name: str) -> None:
    dimension = DIMENSIONS[name]
    if dimension.choices:
        assert dimension.centre in dimension.choices
    else:
        assert isinstance(dimension.centre, float)
        assert dimension.low <= dimension.centre <= dimension.high
        assert dimension.at(dimension.position(dimension.centre)) == pytest.approx(dimension.centre)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "'space' must map names"),
        ({"weight_deca": 1}, "unknown key 'weight_deca' in 'space'; did you mean 'weight_decay'"),
        ({"weight_decay": "much"}, "'weight_decay' must be a number or .*found 'much'"),
        ({"weight_decay": [0.1, 0.01]}, r"found \[0.1, 0.01\]"),
        ({"weight_decay": [0.1]}, r"found \[0.1\]"),
        ({"weight_decay": [0.0, 0.1]}, "between 1e-09 and 1"),
        ({"weight_decay": True}, "found True"),
        ({"augmentation_strength": [0.1, 1.5]}, "between 0 and 1"),
        ({"augmentation": "lihgt"}, "'augmentation' must be one of none, flip"),
        ({"augmentation": []}, "found \\[\\]"),
        ({"mixup_alpha": [True]}, "found \\[True\\]"),
    ],
)
def test_what_cannot_be_searched_is_told(content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_dimensions(content)


def test_a_value_fixes_and_a_list_widens() -> None:
    found = read_dimensions({"mixup_alpha": [0, 0.2], "cutmix_alpha": 1, "weight_decay": 0.2})
    assert found["mixup_alpha"].choices == (0.0, 0.2)
    assert found["mixup_alpha"].always
    assert found["cutmix_alpha"].is_fixed
    assert found["cutmix_alpha"].centre == 1.0
    assert found["weight_decay"].is_fixed
    assert found["weight_decay"].centre == 0.2


def test_what_needs_groups_of_both_classes_is_fixed_without_them() -> None:
    found = without_pairs(read_dimensions({"batch_order": "groups"}))
    assert {name for name, one in found.items() if one.is_fixed} == {
        "batch_order",
        "mixed_with_real",
    }
    assert found["batch_order"].centre == "groups"
    assert found["mixed_with_real"].centre == 0.0
