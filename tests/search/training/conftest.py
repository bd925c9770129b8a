"""A small label table of real image files, that a network can learn in a few steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from search.data.splits import Splits


def make_table(folder: Path, size: int, seed: int) -> pd.DataFrame:
    """Noise images of 32 px; fakes are brighter than reals, and one of each is a group."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(size):
        target = number % 2
        pixels = generator.integers(0, 128, (32, 32, 3)) + 80 * target
        path = folder / f"{number:03d}.png"
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        rows.append((path.name, str(path), target, f"pair {number // 2}"))
    return pd.DataFrame(rows, columns=["img_name", "path", "target", "group"])


@pytest.fixture(scope="session")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    folder = tmp_path_factory.mktemp("splits")
    return Splits(
        *(
            make_table(folder / name, size, seed)
            for seed, (name, size) in enumerate({"fit": 48, "select": 20, "report": 20}.items())
        )
    )
