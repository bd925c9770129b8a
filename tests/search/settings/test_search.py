from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search.errors import UserError
from search.settings.search import SearchSettings

DATA = {"train_labels": Path("set/train.txt"), "train_images": Path("set/train")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_labels": Path("a")}, "add --train-images"),
        ({"train_images": Path("a")}, "add --train-labels"),
        (DATA | {"val_labels": Path("a")}, "add --val-images"),
        ({"val_labels": Path("a"), "val_images": Path("b")}, "add --train-labels and"),
        ({"train_groups": Path("a")}, "--train-groups needs training images"),
        (DATA | {"val_groups": Path("a")}, "--val-groups needs --val-labels"),
        ({"weights": "hub", "weights_dir": Path("w")}, "exclude each other"),
        ({"select_limit": 1}, "--select-limit must be auto, all or at least 2.*found 1"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SearchSettings(**given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"pool": "demo", "weights": "none", "weights_source": "none"}),
        (DATA, {"pool": "small", "weights": "hub", "trials": None, "epochs": 4}),
        (DATA | {"trials": 3, "pool": "strong"}, {"trials": 3, "pool": "strong"}),
        (DATA | {"weights_dir": Path("w")}, {"weights": None, "weights_source": "file"}),
    ],
)
def test_defaults_depend_on_the_data(given: dict[str, Any], expected: dict[str, Any]) -> None:
    settings = SearchSettings(**given).resolved()
    assert {name: getattr(settings, name) for name in expected} == expected


def test_the_run_folder_is_named_after_the_data() -> None:
    assert SearchSettings().resolved().out == Path("results/demo").absolute()
    assert SearchSettings(**DATA).resolved().out == Path("results/set").absolute()
