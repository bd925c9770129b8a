from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search.settings.search import SearchSettings
from search.study.plan import prepare
from tests.e2e.conftest import BACKBONES, make_data_set
from tests.hub import Hub


def settings_of(folder: Path, backbones: Path, **more: Any) -> SearchSettings:
    """Of the data set and the catalogue of end-to-end tests."""
    given = {
        "train_labels": folder / "trainset_label.txt",
        "train_images": folder / "trainset",
        "val_labels": folder / "valset_label.txt",
        "val_images": folder / "valset",
        "pool": "tiny",
        "backbones": backbones,
        "weights": "none",
        "device": "cpu",
        "out": folder / "run",
    }
    return SearchSettings(**(given | more)).resolved()


@pytest.mark.parametrize("grouped", [True, False])
def test_options_that_need_groups_of_both_classes_are_told_to_do_nothing_without(
    grouped: bool, tmp_path: Path
) -> None:
    folder = make_data_set(tmp_path, train=16, val=16).folder
    backbones = tmp_path / "backbones.yaml"
    backbones.write_text(f"{BACKBONES}space: {{batch_order: [random, groups]}}\n")
    groups = {}
    if grouped:
        groups = {
            name: folder / f"{part}_group.csv"
            for name, part in (("train_groups", "trainset"), ("val_groups", "valset"))
        }
    plan = prepare(settings_of(folder, backbones, **groups))
    told = "No group of fit has both classes: batch_order changes nothing."
    assert (told in plan.notes) is not grouped
    assert ("batch_order" in plan.space.distributions) is grouped


def test_the_weights_of_the_whole_pool_are_fetched_before_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub was asked about one: what could not be had was a failed trial, hours later."""
    pool = ["test_resnet.r160_in1k", "test_vit.r160_in1k"]
    hub = Hub(pool)
    hub.stand_in(monkeypatch)
    backbones = tmp_path / "backbones.yaml"
    backbones.write_text(BACKBONES)
    folder = make_data_set(tmp_path / "data", train=16, val=16).folder
    prepare(settings_of(folder, backbones, weights="hub"))
    assert hub.fetched == [f"timm/{name}/model.safetensors" for name in pool]
