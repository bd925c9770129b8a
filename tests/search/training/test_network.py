from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from search.errors import UserError
from search.training.network import build_network, margin
from search.training.recipe import Recipe

RESNET = Recipe(
    backbone="test_resnet.r160_in1k",
    architecture="test_resnet",
    image_size=64,
    canvas=64,
    weights="none",
)
VIT = replace(
    RESNET,
    backbone="test_vit.r160_in1k",
    architecture="test_vit",
    model_args={"img_size": 64},
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


@pytest.mark.parametrize("recipe", [RESNET, VIT])
def test_logits_are_those_of_the_normalised_image(recipe: Recipe) -> None:
    network = build_network(recipe)
    images = torch.rand(3, 3, 64, 64)
    mean = torch.tensor(recipe.mean).view(3, 1, 1)
    std = torch.tensor(recipe.std).view(3, 1, 1)
    with torch.inference_mode():
        expected = network.trunk((images - mean) / std)
        assert torch.equal(network(images), expected)
        features, logits = network.forward_with_features(images)
    torch.testing.assert_close(logits, expected)
    assert features.shape == (3, network.trunk.num_features)


def test_other_sizes_are_resized_inside() -> None:
    network = build_network(VIT)
    assert network(torch.rand(2, 3, 96, 80)).shape == (2, 2)


def test_the_same_seed_starts_from_the_same_weights() -> None:
    first, again = build_network(RESNET), build_network(RESNET)
    other = build_network(replace(RESNET, seed=1))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert any(
        not torch.equal(tensor, other.state_dict()[name])
        for name, tensor in first.state_dict().items()
    )


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    build_network(RESNET)
    assert torch.rand(()) == expected


def test_local_weights_are_loaded_without_their_classifier(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", pretrained=False, num_classes=1000)
    save_file(source.state_dict(), tmp_path / "test_resnet.r160_in1k.safetensors")
    recipe = replace(
        RESNET, weights="file", weights_file=str(tmp_path / "test_resnet.r160_in1k.safetensors")
    )
    loaded = build_network(recipe).trunk.state_dict()
    for name, tensor in source.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(loaded[name], tensor), name
    assert loaded["fc.weight"].shape[0] == 2


def test_drop_path_reaches_the_trunk() -> None:
    network = build_network(replace(RESNET, drop_path=0.2))
    rates = [
        module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"
    ]
    assert max(rates) == pytest.approx(0.2)


@pytest.mark.parametrize("lowest_layer_scale", [1.0, 0.5])
@pytest.mark.parametrize("recipe", [RESNET, VIT])
def test_parameter_groups_hold_every_parameter_once(
    recipe: Recipe, lowest_layer_scale: float
) -> None:
    network = build_network(recipe)
    groups = network.parameter_groups(weight_decay=0.1, lowest_layer_scale=lowest_layer_scale)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())
    for group in groups:
        if group["weight_decay"] > 0:
            assert all(parameter.ndim > 1 for parameter in group["params"])
    scales = {group.get("lr_scale", 1.0) for group in groups}
    assert max(scales) == 1.0
    assert (min(scales) < 1.0) == (lowest_layer_scale < 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "hf-hub:someone/something"}, "must be timm's own"),
        ({"model_args": {"checkpoint_path": "other.pth"}}, "must not load anything"),
        ({"model_args": {"pretrained_cfg_overlay": {}}}, "found pretrained_cfg_overlay"),
    ],
)
def test_a_foreign_recipe_loads_nothing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_network(replace(RESNET, **changes), pretrained=False)


def test_margin_is_the_log_odds_of_fake() -> None:
    logits = torch.tensor([[0.0, 2.0], [1.0, -1.0]])
    assert torch.equal(margin(logits), torch.tensor([2.0, -2.0]))
    torch.testing.assert_close(margin(logits).sigmoid(), logits.softmax(1)[:, 1])
