from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from search.errors import UserError
from search.pixels.altered import ALTERED_IMAGES, FOLDER, altered_part
from search.pixels.altering import SUBSET
from search.pixels.canvas import read_canvas, to_canvas
from search.pixels.images import read_image

SIDE = 24


@pytest.fixture
def select(tmp_path: Path) -> pd.DataFrame:
    """Images of several sizes, each its own group."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    rows = []
    for number in range(6):
        path = folder / f"{number}.png"
        levels = generator.integers(0, 255, (20 + 5 * number, 30, 3), np.uint8)
        Image.fromarray(levels).save(path)
        rows.append((path.name, str(path), number % 2, str(number)))
    return pd.DataFrame(rows, columns=["img_name", "path", "target", "group"])


def test_each_image_comes_once_for_each_alteration(select: pd.DataFrame, tmp_path: Path) -> None:
    table = altered_part(select, SIDE, tmp_path / FOLDER, seed=0)
    assert table["alteration"].tolist() == [n for n in range(len(SUBSET)) for _ in range(6)]
    assert table["img_name"].tolist() == select["img_name"].tolist() * len(SUBSET)
    assert table["target"].tolist() == select["target"].tolist() * len(SUBSET)
    for row in table.itertuples():
        original = select.set_index("img_name")["path"][row.img_name]
        wanted = SUBSET[row.alteration].apply(read_image(original), row.img_name)
        assert read_canvas(row.path, SIDE).equal(to_canvas(wanted, SIDE))


def test_they_are_made_once(select: pd.DataFrame, tmp_path: Path) -> None:
    first = altered_part(select, SIDE, tmp_path / FOLDER, seed=0)
    stamps = [Path(path).stat().st_mtime_ns for path in first["path"]]
    told: list[tuple[int, int]] = []
    again = altered_part(
        select, SIDE, tmp_path / FOLDER, seed=0, on_done=lambda *done: told.append(done)
    )
    assert again.equals(first)
    assert [Path(path).stat().st_mtime_ns for path in again["path"]] == stamps
    assert told == []


def test_a_stop_goes_on_from_there(select: pd.DataFrame, tmp_path: Path) -> None:
    class Stopped(Exception):  # noqa: N818
        pass

    def stop(_done: int, _missing: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        altered_part(select, SIDE, tmp_path / FOLDER, seed=0, on_done=stop)
    table = altered_part(select, SIDE, tmp_path / FOLDER, seed=0)
    Path(table["path"].iloc[-1]).unlink()  # as a kill amid an image leaves it
    assert len(altered_part(select, SIDE, tmp_path / FOLDER, seed=0)) == len(table)


def test_a_changed_image_is_altered_anew(select: pd.DataFrame, tmp_path: Path) -> None:
    before = altered_part(select, SIDE, tmp_path / FOLDER, seed=0)
    Image.new("RGB", (40, 40), "red").save(select["path"].iloc[0])
    first = before["path"].iloc[0]
    old = Path(first).read_bytes()
    after = altered_part(select, SIDE, tmp_path / FOLDER, seed=0)
    assert after["path"].tolist() == before["path"].tolist()
    assert Path(first).read_bytes() != old
    # Of fewer images, none of the others is left behind.
    altered_part(select.iloc[:2], SIDE, tmp_path / FOLDER, seed=0)
    assert len(list((tmp_path / FOLDER).glob("*.png"))) == 2 * len(SUBSET)


def test_of_many_some_are_drawn_by_whole_groups(
    select: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ALTERED_IMAGES == 500
    monkeypatch.setattr("search.pixels.altered.ALTERED_IMAGES", 4)
    pairs = select.assign(group=np.repeat(["a", "b", "c"], 2))
    table = altered_part(pairs, SIDE, tmp_path / FOLDER, seed=0)
    assert table["img_name"].nunique() == 4
    assert (table.groupby(["group", "alteration"]).size() == 2).all()


def test_broken_images_are_left_out(select: pd.DataFrame, tmp_path: Path) -> None:
    Path(select["path"].iloc[2]).write_bytes(b"no image")
    table = altered_part(select, SIDE, tmp_path / FOLDER, seed=0)
    assert set(table["img_name"]) == set(select["img_name"]) - {"2.png"}


def test_groups_that_are_too_large_are_drawn_from_image_by_image(
    select: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.pixels.altered.ALTERED_IMAGES", 4)
    table = altered_part(select.assign(group="one"), SIDE, tmp_path / FOLDER, seed=0)
    assert table["img_name"].nunique() == 4
    assert set(table["target"]) == {0, 1}
    assert set(table["group"]) == {"one"}


def test_a_folder_that_takes_nothing_is_told(select: pd.DataFrame, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="ascii")
    with pytest.raises(UserError, match="altered images of select must be kept in"):
        altered_part(select, SIDE, blocked / FOLDER, seed=0)
