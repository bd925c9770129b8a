"""Descriptions are made once, whatever stops in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

from search.training.network import build_network
from search.training.recipe import Recipe
from search.validation.forgeries import kept
from search.validation.forgeries.describing import EarlyMaps, Frequencies, Together
from search.validation.forgeries.finding import kept_below
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
    """Each image by its number, and once more; the one of a number may stop it."""

    def __init__(self, stop: int = -1) -> None:
        self.stop = stop
        self.seen: list[int] = []

    def __call__(self, part: pd.DataFrame) -> NDArray[np.float64]:
        numbers = [int(Path(path).stem) for path in part["path"]]
        if self.stop in numbers:
            raise KeyboardInterrupt
        self.seen += numbers
        return np.array([[number, np.nan] for number in numbers], np.float64)


EXPECTED = np.array([[number, np.nan] for number in range(IMAGES)])


def test_a_stop_costs_the_part_under_way(table: pd.DataFrame, tmp_path: Path) -> None:
    stops, goes_on, told = Describes(stop=6), Describes(), list[int]()
    with pytest.raises(KeyboardInterrupt):
        described_in_parts(table, stops, "a", tmp_path / "kept")
    found = described_in_parts(table, goes_on, "a", tmp_path / "kept", told.append)
    np.testing.assert_array_equal(found, EXPECTED)
    assert stops.seen + goes_on.seen == list(range(IMAGES))
    assert told == [4, 8, 10]


def change(table: pd.DataFrame, _folder: Path) -> None:
    os.utime(table["path"][5], ns=(1, 1))


def damage(_table: pd.DataFrame, folder: Path) -> None:
    for path in folder.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-9])


def shorten(_table: pd.DataFrame, folder: Path) -> None:
    for path in folder.glob("*.npy"):
        np.save(path, np.zeros((1, 2), np.float32))


@pytest.mark.parametrize(
    ("happens", "again"),
    [
        (lambda *_: None, []),
        (change, [4, 5, 6, 7]),
        (damage, list(range(IMAGES))),
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
    network = build_network(recipe)
    maps = Together([Frequencies(), EarlyMaps(network, "a")])
    known = [fingerprint(Together([Frequencies()]), 32), fingerprint(maps, 32)]
    assert fingerprint(maps, 32) == known[1]
    known += [fingerprint(maps, 64), fingerprint(Together([EarlyMaps(network, "b")]), 32)]
    with torch.no_grad():
        next(network.parameters())[0] += 1
    known.append(fingerprint(maps, 32))
    assert len(set(known)) == len(known)


def test_the_cache_says_where(tmp_path: Path, cache: Path) -> None:
    assert kept_below("off") is None
    assert kept_below("auto") == cache / "descriptions"
    assert kept_below(str(tmp_path)) == tmp_path / "descriptions"
