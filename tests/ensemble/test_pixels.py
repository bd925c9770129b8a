"""A network sees the same pixels alone, as a teacher and as a trunk of a fused network: on images
larger than the canvas, with trunks below and above it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from ensemble.distill.outputs import Teacher
from ensemble.distill.student import Student
from ensemble.network.model import FusedNetwork, HeadSpec, fuse_networks
from search.machine.device import Runtime
from search.pixels.augmentation.augment import Augmentation
from search.pixels.cache import fill_cache, open_cache
from search.pixels.loading.epochs import eval_batches, train_batches
from search.pixels.loading.reading import Reader
from search.training.network import Network, build_network
from search.training.recipe import Recipe
from search.training.scoring import predict, show
from tests.ensemble.conftest import photographs

CANVAS, IMAGES = 40, 6
CPU = Runtime(torch.device("cpu"))


def network(image_size: int, seed: int) -> Network:
    made = build_network(
        Recipe(
            backbone="test_resnet.r160_in1k",
            architecture="test_resnet",
            canvas=CANVAS,
            image_size=image_size,
            weights="none",
            seed=seed,
        )
    )
    for parameter in made.trunk.get_classifier().parameters():  # type: ignore[operator, union-attr]
        parameter.data.mul_(30)  # fresh heads say nearly the same of every image
    return made


@pytest.fixture(scope="module")
def networks() -> tuple[Network, Network]:
    return network(32, 1), network(48, 2)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return photographs(tmp_path_factory.mktemp("photographs"))


class Seen:
    """What trunks are given."""

    def __init__(self, *networks: Network) -> None:
        self.inputs: list[list[Tensor]] = [[] for _ in networks]
        self.handles = [
            each.trunk.register_forward_pre_hook(
                lambda _module, given, into=into: into.append(given[0].clone())
            )
            for each, into in zip(networks, self.inputs, strict=True)
        ]

    def __enter__(self) -> list[list[Tensor]]:
        return self.inputs

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def given_to(networks: tuple[Network, Network], look: Any) -> list[Tensor]:
    with Seen(*networks) as inputs, torch.no_grad():
        look()
    return [torch.cat(given) for given in inputs]


def test_every_way_to_a_network_shows_it_the_same_pixels(
    networks: tuple[Network, Network], table: pd.DataFrame
) -> None:
    plain = eval_batches(Reader(CANVAS), table, batch_size=4)
    fused: FusedNetwork = fuse_networks(networks, HeadSpec("weights"))
    teacher = Teacher(networks, [0.5, 0.5], CPU)
    student = Student(networks[0], teacher_sizes=teacher.image_sizes)

    def alone() -> None:
        for each in networks:
            predict(each, plain, CPU)

    def taught() -> None:
        for batch in plain:
            shown = show(batch, student.image_sizes, CPU)
            student(shown.images)
            teacher.networks[1](shown.images)

    def trained_together() -> None:
        views = train_batches(
            Reader(CANVAS), table, Augmentation("none", 0.0), batch_size=IMAGES, seed=0
        )
        (batch,) = views
        shown = show(batch, fused.image_sizes, CPU)
        assert isinstance(shown.images, dict)
        order = batch.indices.argsort()
        fused({size: images[order] for size, images in shown.images.items()})

    expected = given_to(networks, alone)
    assert [tuple(given.shape) for given in expected] == [
        (IMAGES, 3, 32, 32),
        (IMAGES, 3, 48, 48),
    ]
    for look in (
        lambda: predict(fused, plain, CPU),
        lambda: [teacher(show(batch, teacher.image_sizes, CPU)) for batch in plain],
        taught,
        trained_together,
    ):
        for found, pixels in zip(given_to(networks, look), expected, strict=True):
            assert torch.equal(found, pixels)


def test_the_cache_changes_no_score(
    networks: tuple[Network, Network], table: pd.DataFrame, tmp_path: Path
) -> None:
    cache = open_cache(str(tmp_path), table["path"].tolist(), CANVAS, print)
    assert cache is not None
    fill_cache(cache, print)
    for each in networks:
        with_cache, without = (
            predict(each, eval_batches(Reader(CANVAS, cache=c), table, batch_size=4), CPU).scores
            for c in (cache, None)
        )
        assert np.array_equal(with_cache, without)
