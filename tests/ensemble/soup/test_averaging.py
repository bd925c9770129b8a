from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from ensemble.pool.pool import Pool
from ensemble.soup.averaging import add_states, divide_state, refresh_batch_norm
from search.training.network import build_network
from search.training.recipe import Recipe

RECIPE = Recipe(
    backbone="test_efficientnet.r160_in1k",
    architecture="test_efficientnet",
    image_size=32,
    canvas=32,
    weights="none",
)


def statistics(network: nn.Module) -> list[Tensor]:
    layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm)]
    pairs = [(layer.running_mean, layer.running_var) for layer in layers]
    return [tensor.clone() for pair in pairs for tensor in pair if tensor is not None]


def test_the_mean_of_states_is_taken_tensor_by_tensor() -> None:
    states = [
        {"weight": torch.tensor([float(number), 2.0]), "count": torch.tensor(10 * number)}
        for number in (1, 2, 6)
    ]
    total: dict[str, Tensor] = states[0]
    for state in states[1:]:
        total = add_states(total, state)
    mean = divide_state(total, 3)
    assert mean["weight"].tolist() == [3.0, 2.0]
    assert mean["count"].tolist() == 10
    assert states[0]["weight"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("other", [{"b": torch.zeros(1)}, {"a": torch.zeros(2)}])
def test_states_of_other_networks_are_refused(other: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="names and shapes"):
        add_states({"a": torch.zeros(1)}, other)


def test_statistics_are_those_of_torchs_own_function(tiny_pool: Pool) -> None:
    network = build_network(RECIPE)
    reference = copy.deepcopy(network)
    loader = tiny_pool.loader("fit")
    update_bn([batch.canvases / 255 for batch in loader], reference)
    seen = refresh_batch_norm(network, loader, tiny_pool.runtime, limit=1000)
    assert seen == 40
    for found, expected in zip(statistics(network), statistics(reference), strict=True):
        torch.testing.assert_close(found, expected)
    assert not any(layer.training for layer in network.modules())
    momenta = {layer.momentum for layer in network.modules() if isinstance(layer, _BatchNorm)}
    assert None not in momenta


def test_stochastic_depth_does_not_touch_the_statistics(tiny_pool: Pool) -> None:
    found = []
    for rate in (0.0, 0.5):
        network = build_network(replace(RECIPE, drop_path=rate))
        network.load_state_dict(build_network(RECIPE).state_dict())
        refresh_batch_norm(network, tiny_pool.loader("fit"), tiny_pool.runtime, limit=1000)
        found.append(statistics(network))
    for plain, dropped in zip(*found, strict=True):
        assert torch.equal(plain, dropped)


def test_the_number_of_images_is_limited(tiny_pool: Pool) -> None:
    batches: list[int] = []
    network = build_network(RECIPE)
    seen = refresh_batch_norm(
        network,
        tiny_pool.loader("select"),
        tiny_pool.runtime,
        limit=1,
        on_batch=lambda: batches.append(1),
    )
    assert (seen, len(batches)) == (24, 1)


def test_statistics_start_anew_when_memory_runs_out(tiny_pool: Pool) -> None:
    network, reference = build_network(RECIPE), build_network(RECIPE)
    loader = tiny_pool.loader("select")  # one batch of 24
    passes: list[int] = []

    def look(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        passes.append(len(given[0]))
        if len(given[0]) > 6:
            raise torch.OutOfMemoryError

    # After some layers have seen the batch already.
    network.trunk.get_classifier().register_forward_pre_hook(look)
    assert refresh_batch_norm(network, loader, tiny_pool.runtime, limit=24) == 24
    assert passes[-4:] == [6, 6, 6, 6]
    (batch,) = loader
    update_bn(list((batch.canvases / 255).split(6)), reference)
    for found, expected in zip(statistics(network), statistics(reference), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_network_without_batch_norm_is_left_alone(tiny_pool: Pool) -> None:
    network = timm.create_model("test_vit", num_classes=2)
    loader = tiny_pool.loader("fit")
    assert refresh_batch_norm(network, loader, tiny_pool.runtime, limit=10) == 0


def test_an_interrupted_pass_leaves_no_layer_in_training_mode(tiny_pool: Pool) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    network = build_network(RECIPE)
    with pytest.raises(KeyboardInterrupt):
        refresh_batch_norm(
            network, tiny_pool.loader("fit"), tiny_pool.runtime, limit=10, on_batch=stop
        )
    assert not any(layer.training for layer in network.modules())
