from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from search.machine.device import Runtime
from search.training import step as module
from search.training.network import build_network
from search.training.recipe import Recipe
from search.training.step import make_optimizer

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
