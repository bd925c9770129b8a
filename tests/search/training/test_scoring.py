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
from search.pixels.loading.epochs import Loader, eval_batches
from search.pixels.loading.reading import Reader
from search.training.metrics import measure
from search.training.recipe import SelectLimit
from search.training.scoring import MemoryBackOff, evaluate, images_of_a_look, predict

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


def test_figures_are_over_the_groups_of_the_table(loader: Loader) -> None:
    table = loader.table.assign(group=np.arange(20) // 4)
    found = evaluate(Greedy(8), loader, RUNTIME, table=table)
    scores, targets = found.predictions.scores, found.predictions.targets
    assert found.metrics == measure(scores, targets, np.arange(20) // 4)
    assert found.metrics.groups == 5
    assert evaluate(Greedy(8), loader, RUNTIME).metrics.groups == 20


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


def grouped_table(rows: int, of_a_group: int = 5) -> pd.DataFrame:
    """Two of five images are fake; all of a group are of one class."""
    names = [f"{number:05d}.png" for number in range(rows)]
    groups = np.arange(rows) // of_a_group
    return pd.DataFrame(
        {
            "img_name": names,
            "path": names,
            "target": (groups % 5 < 2).astype(int),
            "group": groups.astype(str),
        }
    )


@pytest.mark.parametrize(
    ("limit", "images_before", "images"),
    [
        ("all", 10, 4000),
        ("auto", 10**6, 4000),
        ("auto", 7000, 2100),  # a third of them would take a tenth of the epoch's time
        ("auto", 100, 500),  # no estimate is worth much from fewer
        (120, 10**6, 120),
        (123, 10**6, 120),  # whole groups
        (10**6, 100, 4000),
    ],
)
def test_a_look_is_a_fixed_part_with_the_same_share_of_fakes(
    limit: SelectLimit, images_before: int, images: int
) -> None:
    table = grouped_table(4000)
    look = images_of_a_look(table, limit, images_before=images_before, seed=3)
    assert len(look) == images
    assert look["target"].mean() == pytest.approx(0.4, abs=0.04)
    assert look.index.tolist() == list(range(images))
    taken = table["group"].isin(look["group"])
    assert look["img_name"].tolist() == table["img_name"][taken].tolist()  # nothing of a group left
    again = images_of_a_look(table, limit, images_before=images_before, seed=3)
    pd.testing.assert_frame_equal(look, again)


def test_the_seed_decides_which_part_a_look_sees() -> None:
    table = grouped_table(4000)
    looks = [images_of_a_look(table, 200, images_before=1, seed=seed) for seed in (1, 2)]
    assert set(looks[0]["group"]) != set(looks[1]["group"])


@pytest.mark.parametrize(
    ("limit", "with_unseen", "unseen"),
    [("auto", True, 250), ("auto", False, 25), (500, True, 25), ("all", True, 200)],
)
def test_unseen_methods_that_are_looked_at_are_more_than_a_handful(
    limit: SelectLimit, with_unseen: bool, unseen: int
) -> None:
    """One fake in eight, where an AUC is of them alone."""
    table = grouped_table(4000 if limit == "all" else 8000)
    groups = table["group"].astype(int)
    table["unseen"] = (table["target"] == 1) & (groups % 40 < 2)
    look = images_of_a_look(table, limit, images_before=1, seed=3, with_unseen=with_unseen)
    assert int(look["unseen"].sum()) == pytest.approx(unseen, abs=15)
    assert look["path"].is_unique
    assert look.index.tolist() == list(range(len(look)))


def test_a_look_has_two_classes() -> None:
    # Too large to be drawn, the only group of fakes.
    table = grouped_table(2000).assign(target=[1] * 600 + [0] * 1400)
    table["group"] = table["group"].where(table["target"] == 0, "fakes")
    assert len(images_of_a_look(table, "auto", images_before=1, seed=0)) == 2000
    with pytest.raises(UserError, match="--select-limit 500 draws must hold both"):
        images_of_a_look(table, 500, images_before=1, seed=0)
