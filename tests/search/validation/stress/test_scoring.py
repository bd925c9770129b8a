from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from search.errors import UserError
from search.machine.device import Runtime
from search.pixels.altering import ALTERATIONS, CLEAN, Alteration
from search.pixels.canvas import read_canvas, to_canvas
from search.pixels.images import read_image
from search.pixels.quarantine import Quarantine
from search.validation.stress.scoring import AlteredImages, score_altered

SIDE = 24
CPU = Runtime(torch.device("cpu"))
SOME = (CLEAN, Alteration("noise", 20.0), Alteration("crop", 0.6), Alteration("darker", 0.4))


class Brightness(nn.Module):
    """Calls what is bright fake."""

    canvas = SIDE

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3))
        return torch.stack([torch.zeros_like(mean), mean], 1)


class Constant(nn.Module):
    """Says the same of every image."""

    canvas = SIDE

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 2)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Images of several sizes; fakes are brighter."""
    folder = tmp_path_factory.mktemp("stress")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(10):
        levels = generator.integers(0, 100, (30 + number, 40, 3)) + 90 * (number % 2)
        path = folder / f"{number}.png"
        Image.fromarray(levels.astype(np.uint8)).save(path)
        rows.append((path.name, str(path), number % 2, path.name))
    return pd.DataFrame(rows, columns=["img_name", "path", "target", "group"])


def with_broken(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    broken = folder / "broken.png"
    broken.write_bytes(b"no image")
    row = pd.DataFrame([("broken.png", str(broken), 1, "broken.png")], columns=table.columns)
    return pd.concat([table.iloc[:3], row, table.iloc[3:]], ignore_index=True)


def test_an_image_is_altered_before_its_canvas(table: pd.DataFrame) -> None:
    canvases = AlteredImages(table, SIDE, SOME)[3]
    path, name = table["path"][3], table["img_name"][3]
    assert np.array_equal(canvases[0], read_canvas(path, SIDE).numpy())
    for canvas, alteration in zip(canvases, SOME, strict=True):
        expected = to_canvas(alteration.apply(read_image(path), name), SIDE).numpy()
        assert np.array_equal(canvas, expected)


def test_every_image_is_scored_under_every_alteration(table: pd.DataFrame) -> None:
    found = score_altered(Brightness(), table, SOME, CPU)
    for row, alteration in zip(found, SOME, strict=True):
        for score, path, name in zip(row, table["path"], table["img_name"], strict=True):
            canvas = to_canvas(alteration.apply(read_image(path), name), SIDE)
            assert score == pytest.approx(torch.sigmoid(canvas.float().mean() / 255).item())


@pytest.mark.parametrize("workers", [0, 2])
def test_neither_order_nor_workers_matter(table: pd.DataFrame, workers: int) -> None:
    """Nor how many alterations there are: batches are cut by it."""
    first = score_altered(Brightness(), table, SOME, CPU)
    runtime = Runtime(torch.device("cpu"), workers)
    again = score_altered(Brightness(), table.iloc[::-1], SOME[:2], runtime)
    assert np.allclose(again[:, ::-1], first[:2], rtol=1e-6, atol=0)


def test_who_says_the_same_of_all_guesses_under_every_alteration(table: pd.DataFrame) -> None:
    found = score_altered(Constant(), table, ALTERATIONS, CPU)
    assert (found == 0.5).all()


def test_a_broken_image_is_set_aside_and_told(table: pd.DataFrame, tmp_path: Path) -> None:
    told: list[str] = []
    quarantine = Quarantine(None, 0.2, told.append)
    damaged = with_broken(table, tmp_path)
    found = score_altered(Brightness(), damaged, SOME, CPU, quarantine=quarantine)
    assert np.isnan(found[:, 3]).all()
    assert np.isfinite(np.delete(found, 3, axis=1)).all()
    assert told == ["set aside broken.png: none of the formats JPEG, PNG, WEBP, BMP, TIFF"]
    score_altered(Brightness(), damaged, SOME, CPU, quarantine=quarantine)
    assert len(told) == 1  # not read again


def test_too_many_broken_images_end_it(table: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at most 5% of a set's images may be broken"):
        score_altered(
            Brightness(), with_broken(table, tmp_path), SOME, CPU, quarantine=Quarantine(None)
        )


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_raised_in_between_ends_it_at_once(table: pd.DataFrame, workers: int) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    runtime = Runtime(torch.device("cpu"), workers)
    with pytest.raises(KeyboardInterrupt):
        score_altered(Brightness(), table, ALTERATIONS, runtime, on_batch=stop)
