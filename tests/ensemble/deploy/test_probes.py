from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch

from ensemble.deploy.probes import probe_images, score_probes
from search.training.network import build_network, margin
from search.training.recipe import Recipe

RECIPE = Recipe(
    backbone="test_vit.r160_in1k",
    architecture="test_vit",
    model_args={"img_size": 64},
    image_size=64,
    canvas=64,
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


class Watched(torch.nn.Module):
    """Remembers how many images it was given at once."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.given: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.given.append(len(images))
        scores: torch.Tensor = self.network(images)
        return scores


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet", "test_efficientnet"])
def test_probes_are_scored_one_by_one_as_all_at_once(architecture: str) -> None:
    """Submissions recorded scores of all at once; they hold to far less than the tolerance."""
    arguments = RECIPE.model_args if architecture == "test_vit" else {}
    network = build_network(replace(RECIPE, architecture=architecture, model_args=arguments))
    watched = Watched(network)
    found = score_probes(watched, 3, 64)
    assert watched.given == [1] * 8
    with torch.inference_mode():
        expected = margin(network(probe_images(3, 64).float() / 255).double())
    assert found.margins == pytest.approx(expected.tolist(), abs=1e-6)
    assert found.scores == pytest.approx(expected.sigmoid().tolist(), abs=1e-6)
