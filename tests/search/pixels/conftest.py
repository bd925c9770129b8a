"""A cache of canvases in a folder of the test's, and what is read and told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from search.pixels.cache import CanvasCache, fill_cache, open_cache
from search.pixels.canvas import read_canvas
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader

SIDE, IMAGES = 12, 9
ONE = 3 * SIDE * SIDE


def save_noise(path: Path, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(levels).save(path)


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    paths = [tmp_path / f"{number}.png" for number in range(IMAGES)]
    for number, path in enumerate(paths):
        save_noise(path, number)
    return pd.DataFrame({"img_name": [path.name for path in paths], "path": map(str, paths)})


class Caching:
    """A cache in a folder of the test's, and what was told of it."""

    def __init__(self, folder: Path, table: pd.DataFrame, decoded: list[str]) -> None:
        self.root, self.table, self.read = folder, table, decoded
        self.told: list[str] = []

    def open(self, setting: str | None = None) -> CanvasCache | None:
        paths = self.table["path"].tolist()
        return open_cache(setting or str(self.root), paths, SIDE, self.told.append)

    def fill(self, **options: Any) -> CanvasCache:
        cache = self.open()
        assert cache is not None
        fill_cache(cache, self.told.append, **options)
        return cache

    def scored(self, workers: int = 0) -> torch.Tensor:
        """What a reader with the cache gives."""
        with Reader(SIDE, workers=workers, cache=self.open(), tell=self.told.append) as reader:
            batches = list(eval_batches(reader, self.table, batch_size=4))
        return torch.cat([batch.canvases.clone() for batch in batches])

    @property
    def folder(self) -> Path:
        (folder,) = (path for path in self.root.iterdir() if path.is_dir())
        return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were decoded in this process."""
    names: list[str] = []

    def counted(path: str, side: int) -> torch.Tensor:
        names.append(Path(path).name)
        return read_canvas(path, side)

    for where in ("search.pixels.cache", "search.pixels.loading.workers"):
        monkeypatch.setattr(f"{where}.read_canvas", counted)
    return names


@pytest.fixture
def caching(tmp_path: Path, table: pd.DataFrame, decoded: list[str]) -> Caching:
    return Caching(tmp_path / "cache", table, decoded)


@pytest.fixture
def expected(table: pd.DataFrame) -> torch.Tensor:
    return torch.stack([read_canvas(path, SIDE) for path in table["path"]])
