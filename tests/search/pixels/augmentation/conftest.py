"""Views as they are made on a CPU, and as on any other device."""

from __future__ import annotations

import pytest
from torch import Tensor

from search.pixels.augmentation.alterations import OPERATIONS, alter_together
from search.pixels.augmentation.geometry import crop_resize_together, down_and_up


def _down_and_up(images: Tensor, parameters: Tensor) -> Tensor:
    """Never of one image alone, for which a CPU has a way of its own."""
    return down_and_up(images.repeat(2, 1, 1, 1), parameters.repeat(2, 1))[: len(images)]


@pytest.fixture(params=["one by one", "together"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with both ways of altering and cropping a batch."""
    if request.param == "together":
        monkeypatch.setattr("search.pixels.augmentation.augment.alter", alter_together)
        monkeypatch.setattr("search.pixels.augmentation.augment.crop_resize", crop_resize_together)
        monkeypatch.setitem(OPERATIONS, "down_and_up", _down_and_up)
