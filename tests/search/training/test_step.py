from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from search.machine.device import Runtime
from search.training import step as module
from search.training.network import build_network
from search.training.recipe import Recipe
from search.training.step import decay_start, make_optimizer, make_scheduler

CPU = Runtime(torch.device("cpu"))
RECIPE = Recipe(
    backbone="test_resnet.r160_in1k",
    architecture="test_resnet",
    image_size=32,
    canvas=32,
    weights="none",
    learning_rate=1e-2,
)


@pytest.mark.parametrize("channels_last", [False, True])
def test_fused_steps_are_those_of_the_plain_optimizer(
    channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever layout weights and gradients have in memory."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    found = []
    for fused in (("cpu",), ()):
        monkeypatch.setattr(module, "FUSED", fused)
        network: Any = cast(Any, build_network(RECIPE).train()).to(memory_format=layout)
        optimizer = make_optimizer(network, RECIPE, CPU)
        assert optimizer.defaults.get("fused") is (True if fused else None)
        images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        # One gradient for both: batch norm would make much of a rounding.
        network(images.contiguous(memory_format=layout))[:, 0].sum().backward()
        for _ in range(3):
            optimizer.step()
        found.append(network.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-5, atol=1e-6)


def rates(recipe: Recipe, steps_per_epoch: int) -> list[float]:
    """Of each step of a training."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=recipe.learning_rate)
    scheduler = make_scheduler(optimizer, recipe, steps_per_epoch)
    found = []
    for step in range(recipe.epochs * steps_per_epoch):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step_update(step + 1)
    return found


CONSTANT = replace(
    RECIPE, schedule="constant", epochs=4, batch_size=8, warmup_images=32, decay_fraction=0.25
)


def test_a_constant_rate_rises_stays_and_falls() -> None:
    found = np.array(rates(CONSTANT, 10)) / RECIPE.learning_rate
    assert decay_start(CONSTANT, 10) == 30
    np.testing.assert_allclose(found[:4], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(found[4:31], 1.0)
    # 1 - sqrt(n / N), arXiv:2405.18392
    np.testing.assert_allclose(found[30:], 1 - np.sqrt(np.arange(10) / 10))


def test_a_constant_rate_does_not_know_its_end_before_it_falls() -> None:
    longer = replace(CONSTANT, epochs=9)
    assert rates(longer, 10)[:31] == rates(CONSTANT, 10)[:31]


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_constant_rate_without_a_stretch(fraction: float) -> None:
    found = rates(replace(CONSTANT, decay_fraction=fraction, warmup_images=0), 10)
    assert found[0] == RECIPE.learning_rate
    assert (found[-1] == RECIPE.learning_rate) is (fraction == 0.0)
    assert all(rate > 0 for rate in found)
