from __future__ import annotations

import hashlib

import pytest
import torch

from ensemble.deploy.probes import probe_images, score_probes
from search.training.network import build_network
from search.training.recipe import Recipe

RECIPE = Recipe(
    backbone="test_vit.r160_in1k",
    architecture="test_vit",
    model_args={"img_size": 64},
    image_size=64,
    weights="none",
)


def test_probes_are_the_same_for_ever() -> None:
    images = probe_images(7, 40)
    assert (images.shape, images.dtype) == ((8, 3, 40, 40), torch.uint8)
    # Computed once and written down: another value means that old submissions fail.
    assert hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16] == "8749d36c72d4590f"


def test_probes_depend_on_the_seed_and_differ_from_one_another() -> None:
    images = torch.cat([probe_images(0, 40), probe_images(1, 40)])
    assert len({image.numpy().tobytes() for image in images}) == 16


def test_later_probes_have_less_contrast_around_the_same_grey() -> None:
    images = probe_images(0, 128).float()
    assert images[4].std() < 0.6 * images[0].std()
    assert images[4].mean() == pytest.approx(127.5, abs=3)


def test_scores_tell_other_weights_and_come_back_exactly() -> None:
    network = build_network(RECIPE)
    first, again = score_probes(network, 3, 64), score_probes(network, 3, 64)
    assert first == again
    assert first.scores == pytest.approx(torch.tensor(first.margins).sigmoid().tolist())
    with torch.no_grad():
        network.trunk.get_classifier().weight[1].mul_(1.1)  # type: ignore[index,operator]
    changed = score_probes(network, 3, 64)
    assert max(abs(a - b) for a, b in zip(first.scores, changed.scores, strict=True)) > 1e-5
