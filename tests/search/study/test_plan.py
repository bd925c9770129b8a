from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search.settings.search import SearchSettings
from search.study.plan import prepare
from tests.e2e.conftest import BACKBONES, make_data_set


@pytest.mark.parametrize("grouped", [True, False])
def test_options_that_need_groups_of_both_classes_are_told_to_do_nothing_without(
    grouped: bool, tmp_path: Path
) -> None:
    folder = make_data_set(tmp_path, train=16, val=16).folder
    backbones = tmp_path / "backbones.yaml"
    backbones.write_text(f"{BACKBONES}space: {{batch_order: [random, groups]}}\n")
    settings = SearchSettings(
        train_labels=folder / "trainset_label.txt",
        train_images=folder / "trainset",
        val_labels=folder / "valset_label.txt",
        val_images=folder / "valset",
        pool="tiny",
        backbones=backbones,
        weights="none",
        device="cpu",
        out=tmp_path / "run",
    )
    if grouped:
        groups = {
            name: folder / f"{part}_group.csv"
            for name, part in (("train_groups", "trainset"), ("val_groups", "valset"))
        }
        settings = replace(settings, **groups)
    plan = prepare(settings.resolved())
    told = "No group of fit has both classes: batch_order changes nothing."
    assert (told in plan.notes) is not grouped
    assert ("batch_order" in plan.space.distributions) is grouped
