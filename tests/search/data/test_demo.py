from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from search.data import demo
from search.data.demo import (
    PARTS,
    SIDE,
    DemoSet,
    Part,
    draw_square,
    forge,
    make_demo,
)
from search.data.forging import METHODS
from search.data.labels import read_labels
from search.training.metrics import roc_auc


@pytest.fixture(scope="module")
def folder(cache: Path) -> Path:
    """Where others find it as well."""
    return cache / "demo"


@pytest.fixture(scope="module")
def demo_set(folder: Path) -> DemoSet:
    return make_demo(folder)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of so few images that building it again costs little."""
    monkeypatch.setattr(demo, "TRAIN_REALS", 12)
    monkeypatch.setattr(demo, "VAL_REALS", 12)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_it_is_a_data_set_like_any_other(demo_set: DemoSet) -> None:
    names: set[str] = set()
    for labels, images, groups, reals in (
        (demo_set.train_labels, demo_set.train_images, demo_set.train_groups, demo.TRAIN_REALS),
        (demo_set.val_labels, demo_set.val_images, demo_set.val_groups, demo.VAL_REALS),
    ):
        plain = pd.read_csv(labels)
        assert plain.columns.tolist() == ["img_name", "target"]
        assert pd.read_csv(groups).columns.tolist() == ["img_name", "group", "method"]
        assert sorted(plain["img_name"]) == sorted(path.name for path in images.iterdir())
        assert plain["img_name"].str.fullmatch(r"[0-9a-f]{32}\.jpg").all()
        table = read_labels(labels, images, groups)
        assert table["target"].value_counts().to_dict() == {0: reals, 1: reals}
        fakes = table["method"][table["target"] == 1].value_counts()
        assert fakes.to_dict() == dict.fromkeys(METHODS, reals // len(METHODS))
        # A real crop and the fake made from it.
        groups_of = table.groupby("group")["target"]
        assert (groups_of.size() == 2).all()
        assert (groups_of.sum() == 1).all()
        for path in table["path"].iloc[:20]:
            with Image.open(path) as image:
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SIDE, SIDE))
        names |= set(table["img_name"]) | set(table["group"])
    assert len(names) == 3 * (demo.TRAIN_REALS + demo.VAL_REALS), "a name or group in both splits"


def test_the_order_of_the_rows_does_not_tell_the_class(demo_set: DemoSet) -> None:
    targets = pd.read_csv(demo_set.train_labels)["target"].to_numpy()
    changes = (np.diff(targets) != 0).mean()
    assert 0.4 < changes < 0.6


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_parts_of_a_photograph_keep_two_compression_blocks_apart(name: str) -> None:
    (train,) = (part for part in PARTS["trainset"] if part.photograph == name)
    (val,) = (part for part in PARTS["valset"] if part.photograph == name)
    first, second = sorted((train, val), key=lambda part: part.left)
    assert second.left - first.right >= 16
    assert first.left == 0
    assert second.right == load_sample_image(name).shape[1]


@pytest.mark.parametrize("part", [part for parts in PARTS.values() for part in parts], ids=str)
def test_squares_stay_inside_their_part_and_reach_its_edges(part: Part) -> None:
    generator = np.random.default_rng(0)
    squares = np.array([draw_square(part, 427, generator) for _ in range(3000)])
    left, top, right, bottom = squares.T
    assert (left.min(), right.max()) == pytest.approx((part.left, part.right), abs=5)
    assert left.min() >= part.left
    assert right.max() <= part.right
    assert top.min() >= 0
    assert bottom.max() <= 427
    assert ((right - left) == (bottom - top)).all()


@pytest.mark.parametrize(("split", "other"), [("trainset", "valset"), ("valset", "trainset")])
@pytest.mark.usefixtures("few")
def test_no_image_depends_on_the_other_splits_part(
    split: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(name: str) -> np.ndarray:
        pixels: np.ndarray = load_sample_image(name).copy()
        columns = np.ones(pixels.shape[1], dtype=bool)
        for part in PARTS[split]:
            if part.photograph == name:
                columns[part.left : part.right] = False
        pixels[:, columns] = np.random.default_rng(0).integers(
            0, 256, pixels[:, columns].shape, dtype=np.uint8
        )
        return pixels

    make_demo(tmp_path / "as it is")
    monkeypatch.setattr(demo, "load_sample_image", spoiled)
    make_demo(tmp_path / "spoiled")

    def images(folder: str, name: str) -> dict[str, str]:
        return digests(next((tmp_path / folder).iterdir()) / name)

    assert images("spoiled", split) == images("as it is", split)
    assert images("spoiled", other) != images("as it is", other), "nothing was spoiled"


def test_a_second_call_makes_nothing(folder: Path, demo_set: DemoSet) -> None:
    kept = folder / f"v{demo.VERSION}"
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*")}
    assert before
    assert make_demo(folder) == demo_set
    assert {path: path.stat().st_mtime_ns for path in kept.rglob("*")} == before


@pytest.mark.usefixtures("few")
def test_two_builds_are_equal_to_the_byte(tmp_path: Path) -> None:
    folders = (tmp_path / "first", tmp_path / "second")
    for folder in folders:
        make_demo(folder)
    first, second = map(digests, folders)
    assert first
    assert first == second


@pytest.mark.usefixtures("few")
def test_an_interrupted_build_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"count": 0}

    def interrupt(*arguments: object) -> object:
        calls["count"] += 1
        if calls["count"] == 10:
            raise KeyboardInterrupt
        return forge(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(demo, "forge", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few")
def test_a_process_that_was_faster_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build: Callable[[Path], None] = demo._build

    def build_twice(folder: Path) -> None:
        build(folder)
        build(tmp_path / f"v{demo.VERSION}")

    monkeypatch.setattr(demo, "_build", build_twice)
    demo_set = make_demo(tmp_path)
    assert demo_set.train_labels.is_file()
    assert [path.name for path in tmp_path.iterdir()] == [f"v{demo.VERSION}"]


def test_no_crop_is_plain_sky(demo_set: DemoSet) -> None:
    table = pd.read_csv(demo_set.train_labels)
    for name in table.loc[table["target"] == 0, "img_name"]:
        pixels = np.asarray(Image.open(demo_set.train_images / name), float)
        # A gain of a channel that clips takes some of the contrast away.
        assert pixels.std() > demo.SMALLEST_CONTRAST / 3


def test_colours_of_a_whole_image_do_not_tell_the_fakes(demo_set: DemoSet) -> None:
    def statistics(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
        table = pd.read_csv(labels)
        rows = []
        for name in table["img_name"]:
            pixels = np.asarray(Image.open(images / name), float)
            counts = [np.histogram(pixels[..., c], 16, (0, 256))[0] for c in range(3)]
            rows.append(np.concatenate([pixels.mean((0, 1)), pixels.std((0, 1)), *np.sqrt(counts)]))
        return np.array(rows), table["target"].to_numpy()

    features, targets = statistics(demo_set.train_images, demo_set.train_labels)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(features, targets)
    features, targets = statistics(demo_set.val_images, demo_set.val_labels)
    # 0.76 for spliced fakes whose colours are merely shifted.
    assert roc_auc(model.predict_proba(features)[:, 1], targets) < 0.65


def test_the_readme_says_where_the_photographs_come_from(demo_set: DemoSet) -> None:
    text = (demo_set.train_labels.parent / "README.txt").read_text("utf-8")
    for part in ("china.jpg", "flower.jpg", "creativecommons.org/licenses/by/2.0", "seed 0"):
        assert part in text
