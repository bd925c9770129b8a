"""A run to distil, and views of ten images that two small teachers are recorded on."""

from __future__ import annotations

from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from ensemble.distill.distill import VIEWS as VIEWS_FOLDER
from ensemble.distill.distill import run_distill
from ensemble.distill.outputs import Teacher
from ensemble.distill.recordings import RecordedViews, ViewManifest, record_views
from ensemble.pool.pool import Pool, open_pool
from ensemble.settings import DistillSettings
from ensemble.teachers import TeacherEntry
from search.machine.device import Runtime
from search.machine.interruption import Interruption
from search.pixels.loading.reading import Reader
from search.training.candidate import Candidate
from search.training.network import Network, build_network
from search.training.recipe import Recipe

CPU = Runtime(torch.device("cpu"))
IMAGES, VIEWS, SIZE, SEED = 10, 3, 48, 7
MANIFEST_OF_TEST = ViewManifest(
    teachers=(TeacherEntry("0001", 0.75, "aa"), TeacherEntry("0002", 0.25, "bb")),
    split_fingerprint="0" * 64,
    images=IMAGES,
    views=VIEWS,
    seed=SEED,
    augmentation="strong",
    augmentation_strength=0.5,
    canvas=SIZE,
    with_features=False,
)


class Run:
    """Distils with quick settings and remembers what was printed."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.folder = pool.run / "merged" / "distilled"
        self.working = pool.run / "merged" / ".distilled"
        self.views = pool.run / "merged" / VIEWS_FOLDER
        self.output = ""

    def __call__(self, interruption: Interruption | None = None, **changes: Any) -> Candidate:
        output = StringIO()
        console = Console(file=output, width=300)
        settings = quick(self.pool, **changes)
        try:
            return run_distill(self.pool, settings, console, interruption or Interruption())
        finally:
            self.output = output.getvalue()


def quick(pool: Pool, **changes: Any) -> DistillSettings:
    return DistillSettings(**{"run": pool.run, "epochs": 2, "views": 2, **changes})


@pytest.fixture
def distil(pool: Pool) -> Run:
    return Run(pool)


def with_backbone(pool: Pool, name: str, entry: dict[str, Any], **top: Any) -> Pool:
    """The pool with one more backbone in its file."""
    path = pool.run / "backbones.yaml"
    content = yaml.safe_load(path.read_text()) | top
    content["pools"]["test"][name] = entry
    path.write_text(yaml.safe_dump(content))
    return open_pool(pool.run, device="cpu", workers=0)


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = []
    for number in range(IMAGES):
        path = tmp_path / f"{number}.png"
        Image.fromarray(generator.integers(0, 256, (64, 56, 3)).astype(np.uint8)).save(path)
        rows.append((path.name, str(path), int(number < 3), path.name))
    return pd.DataFrame(rows, columns=["img_name", "path", "target", "group"])


def network(architecture: str, image_size: int, seed: int) -> Network:
    recipe = Recipe(
        backbone=architecture,
        architecture=architecture,
        image_size=image_size,
        canvas=SIZE,
        weights="none",
        seed=seed,
    )
    return build_network(recipe)


@cache
def _networks() -> tuple[Network, ...]:
    networks = (network("test_resnet", 32, 1), network("test_vit", SIZE, 2))
    for each in networks:
        # Fresh heads say nearly the same of every image.
        for parameter in each.trunk.get_classifier().parameters():
            parameter.data.mul_(30)
    return networks


def make_teacher(*, with_features: bool = False) -> Teacher:
    return Teacher(_networks(), [0.75, 0.25], CPU, with_features=with_features)


class Recorder:
    """Records views and remembers how often a teacher was made and what was said."""

    def __init__(self, folder: Path, table: pd.DataFrame) -> None:
        self.folder, self.table = folder, table
        self.teachers = 0
        self.output = StringIO()

    def __call__(self, manifest: ViewManifest = MANIFEST_OF_TEST, **changes: Any) -> RecordedViews:
        def teacher() -> Teacher:
            self.teachers += 1
            return make_teacher(with_features=manifest.with_features)

        arguments: dict[str, Any] = {
            "batch_size": 4,
            "runtime": CPU,
            "reader": Reader(SIZE),
            "console": Console(file=self.output, width=200),
        }
        return record_views(self.folder, manifest, teacher, self.table, **(arguments | changes))


@pytest.fixture
def recorder(tmp_path: Path, table: pd.DataFrame) -> Recorder:
    return Recorder(tmp_path / "views", table)


class KilledError(Exception):
    """Like a kill, it leaves no time to save."""
