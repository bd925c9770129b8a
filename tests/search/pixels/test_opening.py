"""The images of a run, opened: whoever reads the same label files shares their canvases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from search.data.inputs import read_splits, tables
from search.machine.device import Runtime
from search.pixels.canvas import read_canvas
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from search.pixels.opening import choose_canvas, fill, open_quarantine, open_reader
from search.settings.search import SearchSettings

SIDE, IMAGES, METHODS = 8, 120, 6


@pytest.fixture
def settings(tmp_path: Path) -> SearchSettings:
    """Noise, half of it fakes by one of six methods."""
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    labels, groups = ["img_name,target"], ["img_name,group,method"]
    for number in range(IMAGES):
        levels = generator.integers(0, 256, (10, 10, 3), np.uint8)
        Image.fromarray(levels).save(tmp_path / "images" / f"{number}.png")
        target = number % 2
        labels.append(f"{number}.png,{target}")
        method = f"m{number // 2 % METHODS}" if target else ""
        groups.append(f"{number}.png,group{number},{method}")
    (tmp_path / "labels.txt").write_text("\n".join(labels) + "\n")
    (tmp_path / "groups.csv").write_text("\n".join(groups) + "\n")
    return SearchSettings(
        train_labels=tmp_path / "labels.txt",
        train_images=tmp_path / "images",
        train_groups=tmp_path / "groups.csv",
        cache=str(tmp_path / "cache"),
        out=tmp_path / "run",
    )


def opened(settings: SearchSettings) -> Reader:
    """The reader of a run with these settings, its cache filled."""
    assert settings.out is not None
    quiet = Console(quiet=True)
    reader = open_reader(
        read_splits(settings),
        SIDE,
        cache=settings.cache,
        runtime=Runtime(torch.device("cpu"), 0),
        quarantine=open_quarantine(settings.out, quiet),
        console=quiet,
    )
    fill(reader, quiet, lambda: None)
    return reader


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"limit_train": 20}, {"limit_val": 12}, {"split": "random"}, {"split": "unseen"}],
    ids=str,
)
def test_other_draws_from_the_same_label_files_find_every_canvas(
    other: dict[str, Any], settings: SearchSettings, decoded: list[str]
) -> None:
    one = opened(settings)
    assert len(set(decoded)) == len(decoded) == IMAGES
    changed = replace(settings, **other)
    reader, splits = opened(changed), read_splits(changed)
    assert one.cache is not None
    assert reader.cache is not None
    assert reader.cache.folder == one.cache.folder
    for table in tables(splits).values():
        (batch,) = eval_batches(reader, table, batch_size=IMAGES)
        expected = torch.stack([read_canvas(path, SIDE) for path in table["path"]])
        assert torch.equal(batch.canvases, expected)
    assert len(decoded) == IMAGES


def test_a_limited_run_leaves_the_rest_to_the_next(
    settings: SearchSettings, decoded: list[str]
) -> None:
    limited = replace(settings, limit_train=20, limit_val=12)
    opened(limited)
    wanted = {name for table in tables(read_splits(limited)).values() for name in table["img_name"]}
    assert sorted(decoded) == sorted(wanted)
    opened(replace(settings, seed=1))
    assert len(set(decoded)) == len(decoded) == IMAGES


def test_the_side_is_the_same_whatever_is_drawn(settings: SearchSettings) -> None:
    assert settings.train_images is not None
    for number in range(IMAGES):
        Image.new("RGB", (20 + number, 200)).save(settings.train_images / f"{number}.png")
    draws = [replace(settings, seed=seed, limit_train=6, limit_val=4) for seed in range(4)]
    sides = {choose_canvas(read_splits(one), [1000]) for one in [settings, *draws]}
    assert sides == {20 + (IMAGES - 1) // 2}
