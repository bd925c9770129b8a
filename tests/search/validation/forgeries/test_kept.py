"""Descriptions are made once, whatever stops in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from safetensors.numpy import save_file

from search.errors import UserError
from search.machine.device import Runtime
from search.pixels.cache import cache_root
from search.training.network import build_network
from search.training.recipe import Recipe
from search.validation.forgeries import kept
from search.validation.forgeries.describing import EarlyMaps, Frequencies, Together
from search.validation.forgeries.finding import described_images
from search.validation.forgeries.kept import described_in_parts, fingerprint

IMAGES = 10


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    monkeypatch.setattr(kept, "PART", 4)
    paths = [tmp_path / f"{number}.png" for number in range(IMAGES)]
    for path in paths:
        path.write_text(path.stem)
    return pd.DataFrame({"path": [str(path) for path in paths]})


class Describes:
    """Each image by its number; the one of a number may stop it, some may be unreadable."""

    def __init__(self, stop: int = -1, broken: tuple[int, ...] = ()) -> None:
        self.stop, self.broken = stop, broken
        self.seen: list[int] = []

    def __call__(self, part: pd.DataFrame) -> NDArray[np.float64]:
        numbers = [int(Path(path).stem) for path in part["path"]]
        if self.stop in numbers:
            raise KeyboardInterrupt
        self.seen += numbers
        values = [np.nan if number in self.broken else number for number in numbers]
        return np.array([[value, value / 3] for value in values]).astype(np.float32).astype(float)


EXPECTED = Describes()(pd.DataFrame({"path": [f"{number}.png" for number in range(IMAGES)]}))


def test_a_stop_costs_the_part_under_way(table: pd.DataFrame, tmp_path: Path) -> None:
    stops, goes_on, told = Describes(stop=6), Describes(), list[int]()
    with pytest.raises(KeyboardInterrupt):
        described_in_parts(table, stops, "a", tmp_path / "kept")
    found = described_in_parts(table, goes_on, "a", tmp_path / "kept", told.append)
    np.testing.assert_array_equal(found, EXPECTED)
    assert stops.seen + goes_on.seen == list(range(IMAGES))
    assert told == [4, 10]


def change(table: pd.DataFrame, _folder: Path) -> None:
    os.utime(table["path"][5], ns=(1, 1))


def truncate(_table: pd.DataFrame, folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-9])


def flip_a_byte(_table: pd.DataFrame, folder: Path) -> None:
    for path in folder.iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)


def spoil_the_header(_table: pd.DataFrame, folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"PK" + path.read_bytes()[2:])


def shorten(_table: pd.DataFrame, folder: Path) -> None:
    for path in folder.iterdir():
        save_file({"described": np.zeros((1, 2), np.float32)}, path)


@pytest.mark.parametrize(
    ("happens", "again"),
    [
        (lambda *_: None, []),
        (change, [4, 5, 6, 7, 8, 9]),
        (truncate, list(range(IMAGES))),
        (flip_a_byte, list(range(IMAGES))),
        (spoil_the_header, list(range(IMAGES))),
        (shorten, list(range(IMAGES))),
    ],
)
def test_what_changed_or_broke_is_described_again(
    happens: Callable[[pd.DataFrame, Path], None],
    again: list[int],
    table: pd.DataFrame,
    tmp_path: Path,
) -> None:
    described_in_parts(table, Describes(), "a", tmp_path / "kept")
    happens(table, tmp_path / "kept")
    anew = Describes()
    found = described_in_parts(table, anew, "a", tmp_path / "kept")
    np.testing.assert_array_equal(found, EXPECTED)
    assert anew.seen == again


def test_an_image_that_could_not_be_read_is_tried_again(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    """A network drive may fail without a trace in the image's size and time."""
    found = described_in_parts(table, Describes(broken=(5,)), "a", tmp_path / "kept")
    assert np.flatnonzero(np.isnan(found).any(axis=1)).tolist() == [5]
    anew = Describes()
    np.testing.assert_array_equal(described_in_parts(table, anew, "a", tmp_path / "kept"), EXPECTED)
    assert anew.seen == [4, 5, 6, 7, 8, 9]


def test_few_of_all_images_may_be_broken_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "PART", 64)
    paths = [tmp_path / f"{number}.png" for number in range(192)]
    for number, path in enumerate(paths):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
    names = [path.name for path in paths]
    table = pd.DataFrame({"img_name": names, "path": [str(path) for path in paths], "target": 1})

    def described() -> NDArray[np.float64]:
        options = (16, Runtime(torch.device("cpu")), Console(quiet=True), tmp_path / "kept")
        return described_images(Together([Frequencies()]), table, *options)

    whole = described()
    assert len(list((tmp_path / "kept").iterdir())) == 3
    # All in the last part, of which they are more than one in twenty.
    for path in paths[-5:]:
        path.write_bytes(b"no image")
    found = described()
    assert np.isnan(found[-5:]).all()
    np.testing.assert_array_equal(found[:-5], whole[:-5])
    for path in paths[:5]:
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="at most 5% of a set's images may be broken, found 10 of"):
        described()


def test_another_descriptor_describes_anew(table: pd.DataFrame, tmp_path: Path) -> None:
    described_in_parts(table, Describes(), "a", tmp_path / "kept")
    other = Describes()
    described_in_parts(table, other, "b", tmp_path / "kept")
    assert other.seen == list(range(IMAGES))


def test_without_a_folder_that_can_be_written_nothing_is_lost(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    for folder in (None, tmp_path / "file" / "below"):
        np.testing.assert_array_equal(described_in_parts(table, Describes(), "a", folder), EXPECTED)


def test_a_descriptor_is_known_by_what_it_computes() -> None:
    recipe = Recipe(
        backbone="a",
        architecture="test_resnet",
        image_size=32,
        canvas=32,
        weights="none",
    )

    def known(name: str = "a", side: int = 32, **changes: Any) -> str:
        maps = EarlyMaps(build_network(replace(recipe, **changes)), name)
        return fingerprint(Together([Frequencies(), maps]), side)

    found = [known(), known(side=64), known(seed=1), known(mean=(0.4, 0.5, 0.6))]
    found += [known(model_args={"act_layer": "silu"}), fingerprint(Together([Frequencies()]), 32)]
    assert len(set(found)) == len(found)
    assert known() == known("b") == found[0]


def test_the_cache_says_where(tmp_path: Path, cache: Path) -> None:
    assert cache_root("off") is None
    assert cache_root("auto") == cache
    assert cache_root(str(tmp_path)) == tmp_path
