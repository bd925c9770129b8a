from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from search.data.reading import Loader, Reader, eval_batches
from search.training.device import Runtime
from search.training.scoring import MemoryBackOff, predict

RUNTIME = Runtime(torch.device("cpu"), 0)


class Greedy(nn.Module):
    """Runs out of memory above a number of images, and records how many it was given."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.given = most, list[int]()

    def forward(self, images: Tensor) -> Tensor:
        self.given.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError
        brightness = images.mean((1, 2, 3))
        return torch.stack([torch.zeros_like(brightness), brightness], 1)


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    paths = [tmp_path / f"{number:02d}.png" for number in range(20)]
    for number, path in enumerate(paths):
        Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8)).save(path)
    table = pd.DataFrame(
        {"img_name": [p.name for p in paths], "path": map(str, paths), "target": [0, 1] * 10}
    )
    return eval_batches(Reader(8), table, batch_size=8)


def test_scores_do_not_depend_on_what_fits_into_memory(loader: Loader) -> None:
    ample, scarce = Greedy(8), Greedy(3)
    expected = predict(ample, loader, RUNTIME)
    found = predict(scarce, loader, RUNTIME)
    assert np.array_equal(found.scores, expected.scores)
    assert np.array_equal(found.indices, np.arange(20))
    assert ample.given == [8, 8, 4]
    # Halved twice, then kept for the batches that follow.
    assert scarce.given == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]


def test_one_image_that_does_not_fit_is_an_error(loader: Loader) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        predict(Greedy(0), loader, RUNTIME)


def test_parts_stay_small_for_a_batch_that_is_small_itself() -> None:
    back_off = MemoryBackOff()
    images = torch.rand(5, 3, 4, 4)
    assert torch.equal(torch.cat(back_off(Greedy(3), images)), Greedy(5)(images))
    assert back_off.largest == 3
    # A later, smaller batch in one part leaves the limit for the ones after it.
    assert len(back_off(Greedy(3), images[:2])) == 1
    assert back_off.largest == 3


def test_scoring_holds_on_to_nothing_that_workers_sent(tmp_path: Path) -> None:
    """Tensors from workers cost a file descriptor each for as long as anybody refers to them."""
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    table = pd.DataFrame({"img_name": range(64), "path": str(path), "target": [0, 1] * 32})
    loader = eval_batches(Reader(8, workers=1), table, batch_size=1)
    held: list[int] = []

    def count() -> None:
        held.append(len(list(Path("/dev/fd").iterdir())))

    predict(Greedy(1), loader, RUNTIME, on_batch=count)
    assert max(held[8:]) <= max(held[:8])
