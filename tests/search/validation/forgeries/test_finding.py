from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import save_file

from search.catalogue.backbones import Backbone
from search.settings.search import SearchSettings
from search.training.network import build_network
from search.training.recipe import Recipe
from search.validation.forgeries.describing import EarlyMaps, Frequencies
from search.validation.forgeries.finding import _descriptors

HALF = (0.5, 0.5, 0.5)

RESNET, CONVNEXT = (
    Backbone(f"{name}.r160_in1k", name, "tiny", HALF, HALF, image_sizes=(32,))
    for name in ("test_resnet", "test_convnext")
)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with the weights of a ResNet, which a network from a seed has not."""
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.manual_seed(7)
    state = timm.create_model("test_resnet").state_dict()
    save_file(state, folder / f"{RESNET.name}.safetensors")
    return folder


def chosen(settings: SearchSettings, *backbones: Backbone) -> list[EarlyMaps | Frequencies]:
    """What describes."""
    return _descriptors(settings, backbones, 32, Console(quiet=True), lambda: None)


def test_the_first_backbone_whose_weights_are_at_hand_describes(weights: Path) -> None:
    settings = SearchSettings(weights_dir=weights).resolved()
    bound = replace(RESNET, name="bound", fixed_size=224)
    frequencies, maps = chosen(settings, CONVNEXT, bound, RESNET)
    assert isinstance(frequencies, Frequencies)
    assert isinstance(maps, EarlyMaps)
    assert maps.name == f"the first maps of {RESNET.name}"
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32)
    own = Recipe(
        **RESNET.network_fields(32),
        canvas=32,
        weights="file",
        weights_file=str(weights / f"{RESNET.name}.safetensors"),
    )
    with torch.inference_mode():
        described = maps.eval()(images)
        # By the weights of the file: not those that a network from a seed has.
        torch.testing.assert_close(described, EarlyMaps(build_network(own), "").eval()(images))
        seeded = build_network(replace(own, weights="none", weights_file=None))
        assert not torch.allclose(described, EarlyMaps(seeded, "").eval()(images))


@pytest.mark.parametrize("weights_source", ["none", "file"])
def test_without_weights_frequencies_alone_describe(weights_source: str, weights: Path) -> None:
    settings = SearchSettings(weights="none").resolved()
    if weights_source == "file":
        settings = SearchSettings(weights_dir=weights).resolved()
    (only,) = chosen(settings, CONVNEXT)
    assert isinstance(only, Frequencies)
