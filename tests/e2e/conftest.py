"""A small real run, made once through the command line as a user would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.cli import main
from tests.blank import blank


@dataclass(frozen=True)
class DataSet:
    """A data set in the challenge's format, made by `make_data_set`."""

    folder: Path

    @property
    def flags(self) -> list[str]:
        folder = self.folder
        return [
            *("--train-labels", str(folder / "trainset_label.txt")),
            *("--train-images", str(folder / "trainset")),
            *("--train-groups", str(folder / "trainset_group.csv")),
            *("--val-labels", str(folder / "valset_label.txt")),
            *("--val-images", str(folder / "valset")),
            *("--val-groups", str(folder / "valset_group.csv")),
        ]


def make_data_set(folder: Path, train: int = 64, val: int = 48, contrast: int = 16) -> DataSet:
    """Noise images of 40 px; fakes carry a stripe pattern of a contrast that a network can learn
    at 16, but not at once: trials differ."""
    generator = np.random.default_rng(0)
    stripes = contrast * (np.arange(40) // 2 % 2)[None, :, None]
    for name, size in (("trainset", train), ("valset", val)):
        (folder / name).mkdir(parents=True)
        labels, groups = ["img_name,target"], ["img_name,group"]
        for number in range(size):
            target = number % 2
            pixels = generator.integers(0, 180, (40, 40, 3)) + target * stripes
            image_name = f"{name}{number:03d}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / image_name)
            labels.append(f"{image_name},{target}")
            groups.append(f"{image_name},{name}{number // 2}")
        (folder / f"{name}_label.txt").write_text("\n".join(labels) + "\n")
        (folder / f"{name}_group.csv").write_text("\n".join(groups) + "\n")
    return DataSet(folder)


BACKBONES = """
budget: 200000000
pretraining: ImageNet-1K only
pools:
  tiny:
    test_resnet.r160_in1k: {image_sizes: [32], learning_rate: [0.0003, 0.01]}
    test_vit.r160_in1k: {image_sizes: [32], learning_rate: [0.00001, 0.01]}
"""
"""Without a ResNet-18: the baseline's settings are applied to the pool's first network."""

QUICK = (
    *("--weights", "none", "--batch-size", "16", "--workers", "0", "--device", "cpu"),
    *("--precision", "fp32"),
)
"""Flags that make a trial of a few images a matter of a second, the same on every machine; --epochs
is for the test to set."""


@pytest.fixture(autouse=True)
def quick_projections(blank_figures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run draws dozens of figures: those of `test_dashboard` are enough. Nor is a speed
    measured for long."""
    monkeypatch.setattr("ensemble.compare.speed.SECONDS_PER_MEASUREMENT", 0.01)


@pytest.fixture(scope="session")
def data_set(made_once: Callable[[str, Callable[[Path], object]], Path]) -> DataSet:
    return DataSet(made_once("data", make_data_set))


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a quick search, its small catalogue included."""
    path = tmp_path_factory.mktemp("catalogue") / "backbones.yaml"
    path.write_text(BACKBONES)
    return [*QUICK, "--pool", "tiny", "--backbones", str(path)]


@pytest.fixture(scope="session")
def finished_run(
    data_set: DataSet, quick: list[str], made_once: Callable[[str, Callable[[Path], object]], Path]
) -> Path:
    """A finished search of nine trials, six of them drawn: three are complete beside the baseline,
    the others stay paused. Tests must not change it."""

    def search(run: Path) -> None:
        arguments = ["run", *data_set.flags, *quick, "--trials", "9", "--epochs", "4"]
        with pytest.MonkeyPatch.context() as patch:
            blank(patch.setattr)
            assert main([*arguments, "--out", str(run)]) == 0

    return made_once("finished", search)
