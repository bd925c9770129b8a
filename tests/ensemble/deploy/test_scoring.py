from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console

from ensemble.deploy.scoring import FlipAverage, score_images
from search.errors import UserError
from search.machine.device import Runtime
from search.training.network import Network, build_network, margin
from search.training.recipe import Recipe

RECIPE = Recipe(
    backbone="test_resnet.r160_in1k",
    architecture="test_resnet",
    image_size=32,
    canvas=32,
    weights="none",
)
CPU = Runtime(torch.device("cpu"))


@pytest.fixture
def network() -> Network:
    return build_network(RECIPE)


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(23)]
    for name in names:
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    paths = [str(tmp_path / name) for name in names]
    return pd.DataFrame({"img_name": names, "path": paths})


def console(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=100), text


@pytest.mark.parametrize("flip", [False, True])
def test_scores_are_the_networks_own(network: Network, table: pd.DataFrame, flip: bool) -> None:
    scored = score_images(
        network, table, runtime=CPU, console=console()[0], batch_size=4, flip=flip
    )
    pixels = np.stack([np.asarray(Image.open(path)) for path in table["path"]])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        margins = margin(network(images))
        if flip:
            margins = (margins + margin(network(images.flip(3)))) / 2
    assert scored.table["img_name"].tolist() == table["img_name"].tolist()
    assert scored.table["y_pred"].tolist() == pytest.approx(margins.sigmoid().tolist(), abs=1e-6)
    assert scored.broken == ()


def test_precision_is_that_of_the_forward_passes(network: Network, table: pd.DataFrame) -> None:
    quiet = Console(quiet=True)
    exact = score_images(network, table, runtime=CPU, console=quiet)
    found = score_images(network, table, runtime=CPU, console=quiet, precision="bf16")
    assert found.table["y_pred"].tolist() != exact.table["y_pred"].tolist()
    assert found.table["y_pred"].tolist() == pytest.approx(exact.table["y_pred"].tolist(), abs=0.01)


def test_a_mirrored_image_has_the_same_flip_average(network: Network) -> None:
    images = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        plain, mirrored = network(images), network(images.flip(3))
        assert not torch.allclose(margin(plain), margin(mirrored), atol=1e-6)
        both = FlipAverage(network)
        assert torch.allclose(both(images), both(images.flip(3)), atol=1e-6)


def test_broken_images_are_told_and_the_others_scored(
    network: Network, table: pd.DataFrame
) -> None:
    for row in (0, 7, 22):
        Path(table["path"][row]).write_bytes(b"no image")
    scored = score_images(network, table, runtime=CPU, console=console()[0], batch_size=4)
    kept = table["img_name"].drop([0, 7, 22]).tolist()
    assert scored.table["img_name"].tolist() == kept
    assert [broken.img_name for broken in scored.broken] == ["0.png", "7.png", "22.png"]


def test_a_set_without_any_image_is_a_user_error(network: Network, table: pd.DataFrame) -> None:
    for path in table["path"]:
        Path(path).write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        score_images(network, table, runtime=CPU, console=console()[0])


def test_progress_is_lines_without_a_terminal_and_a_bar_on_one(
    network: Network, table: pd.DataFrame
) -> None:
    plain, text = console()
    score_images(network, table, runtime=CPU, console=plain, batch_size=1)
    lines = text.getvalue().splitlines()
    assert lines[0] == "scored 3 of 23 images"
    assert lines[-1] == "scored 23 of 23 images"
    assert len(lines) == 10
    live, text = console(terminal=True)
    score_images(network, table, runtime=CPU, console=live, batch_size=1)
    assert "23/23" in text.getvalue()
