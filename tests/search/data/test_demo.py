from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from search.data import demo
from search.data.demo import SIDE, DemoSet, forge, make_demo, part_of
from search.data.labels import read_labels
from search.training.metrics import roc_auc


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo_set(folder: Path) -> DemoSet:
    return make_demo(folder)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_it_is_a_data_set_like_any_other(demo_set: DemoSet) -> None:
    for labels, images, groups, reals in (
        (demo_set.train_labels, demo_set.train_images, demo_set.train_groups, demo.TRAIN_REALS),
        (demo_set.val_labels, demo_set.val_images, demo_set.val_groups, demo.VAL_REALS),
    ):
        table = read_labels(labels, images, groups)
        assert table["target"].value_counts().to_dict() == {0: reals, 1: reals}
        # A real crop and the fake made from it.
        groups_of = table.groupby("group")["target"]
        assert (groups_of.size() == 2).all()
        assert (groups_of.sum() == 1).all()
        with Image.open(table["path"].iloc[0]) as image:
            assert image.size == (SIDE, SIDE)
        assert pd.read_csv(labels).columns.tolist() == ["img_name", "target"]


@pytest.mark.parametrize("width", [100, 640, 641])
def test_training_and_validation_show_different_parts(width: int) -> None:
    train, val = part_of(width, 400, "trainset"), part_of(width, 400, "valset")
    assert train[2] < val[0]
    assert val[2] == width


def test_a_second_call_makes_nothing(folder: Path, demo_set: DemoSet) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert make_demo(folder) == demo_set
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_two_builds_are_equal_to_the_byte(folder: Path, demo_set: DemoSet, tmp_path: Path) -> None:
    make_demo(tmp_path)
    assert digests(tmp_path) == digests(folder)


def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"count": 0}

    def interrupt(*arguments: object) -> None:
        calls["count"] += 1
        if calls["count"] == 20:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    real = forge
    monkeypatch.setattr(demo, "forge", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_forgery_changes_a_region_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    real = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    donor = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    for _ in range(20):
        changed = (forge(real, donor, generator) != real).any(axis=2)
        assert 0.1 < changed.mean() < 0.8
        border = np.concatenate([changed[0], changed[-1], changed[:, 0], changed[:, -1]])
        assert border.mean() < 0.6


def test_colours_alone_do_not_tell_the_fakes(demo_set: DemoSet) -> None:
    def statistics(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
        table = pd.read_csv(labels)
        pixels = [np.asarray(Image.open(images / name), float) for name in table["img_name"]]
        rows = [np.concatenate([p.mean((0, 1)), p.std((0, 1))]) for p in pixels]
        return np.array(rows), table["target"].to_numpy()

    train, targets = statistics(demo_set.train_images, demo_set.train_labels)
    model = LogisticRegression(max_iter=2000).fit(train, targets)
    val, val_targets = statistics(demo_set.val_images, demo_set.val_labels)
    assert roc_auc(model.predict_proba(val)[:, 1], val_targets) < 0.7
