from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.data.splits import Splits
from search.pixels.loading.batches import Shown
from search.pixels.loading.reading import Reader
from search.training.loss import (
    ClassificationLoss,
    classification_loss,
    mixing,
    training_batches,
)
from search.training.recipe import Recipe

RECIPE = Recipe(backbone="test_resnet.r160_in1k", architecture="test_resnet", canvas=224)


class Fixed(nn.Module):
    """Logits that do not depend on the images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[: len(images)]


def make_batch(targets: list[int]) -> Shown:
    size = len(targets)
    return Shown(
        images=torch.rand(size, 3, 8, 8),
        targets=torch.tensor(targets),
        indices=torch.arange(size),
        seeds=torch.zeros(size, dtype=torch.int64),
    )


LOGITS = torch.tensor([[0.3, -0.2], [1.0, 2.0], [-1.0, 0.5], [0.0, 0.0], [2.0, -3.0]])
TARGETS = [0, 1, 1, 0, 1]


def test_plain_is_cross_entropy() -> None:
    value = ClassificationLoss(RECIPE, (2, 3))(Fixed(LOGITS), make_batch(TARGETS))
    torch.testing.assert_close(value, F.cross_entropy(LOGITS, torch.tensor(TARGETS)))


def test_label_smoothing_is_torchs() -> None:
    loss = ClassificationLoss(replace(RECIPE, label_smoothing=0.1), (2, 3))
    expected = F.cross_entropy(LOGITS, torch.tensor(TARGETS), label_smoothing=0.1)
    torch.testing.assert_close(loss(Fixed(LOGITS), make_batch(TARGETS)), expected)


def test_balanced_weights_make_the_classes_count_the_same() -> None:
    loss = ClassificationLoss(replace(RECIPE, class_balance="loss"), (10, 40))
    per_image = F.cross_entropy(LOGITS, torch.tensor(TARGETS), reduction="none")
    weights = torch.tensor([[50 / 20, 50 / 80][target] for target in TARGETS])
    torch.testing.assert_close(
        loss(Fixed(LOGITS), make_batch(TARGETS)), (weights * per_image).mean()
    )


def test_reals_that_are_shown_as_fakes_count_as_fakes() -> None:
    recipe = replace(RECIPE, class_balance="loss", self_blended=0.25)
    table = pd.DataFrame({"target": [0] * 40 + [1] * 20})
    loss = classification_loss(table, recipe)
    assert loss.weight is not None
    torch.testing.assert_close(loss.weight, torch.tensor([1.0, 1.0]))


def test_a_recipe_has_fakes_mixed_with_reals_and_nothing_else_changed(splits: Splits) -> None:
    recipe = replace(RECIPE, canvas=32)
    plain, mixed = (
        list(training_batches(splits.fit, replace(recipe, mixed_with_real=share), Reader(32)))
        for share in (0.0, 1.0)
    )
    changed = []
    for own, batch in zip(plain, mixed, strict=True):
        assert torch.equal(own.indices, batch.indices)
        assert torch.equal(own.targets, batch.targets)
        differ = (own.canvases != batch.canvases).flatten(1).any(1)
        changed += batch.targets[differ].tolist()
    assert changed
    assert set(changed) == {1}


@pytest.mark.parametrize(
    "changes", [{"mixup_alpha": 0.4}, {"cutmix_alpha": 1.0}, {"mixup_alpha": 1, "cutmix_alpha": 1}]
)
@pytest.mark.parametrize("targets", [TARGETS, TARGETS[:4]])
def test_mixed_batches_of_any_size_give_a_gradient(
    changes: dict[str, Any], targets: list[int]
) -> None:
    torch.manual_seed(0)
    recipe = replace(RECIPE, **changes)
    mix = mixing(recipe)
    assert mix is not None
    mixed = mix(make_batch(targets))
    assert mixed.images.shape == (len(targets), 3, 8, 8)
    torch.testing.assert_close(mixed.targets.sum(dim=1), torch.ones(len(targets)))
    network = Fixed(LOGITS.clone())
    value = ClassificationLoss(recipe, (2, 3))(network, mixed)
    value.backward()
    assert torch.isfinite(value)
    assert network.logits.grad is not None
    assert (network.logits.grad[: len(targets)].abs().sum(dim=1) > 0).all()


def test_a_mixed_target_weighs_what_is_shown() -> None:
    torch.manual_seed(1)
    mix = mixing(replace(RECIPE, mixup_alpha=1.0))
    assert mix is not None
    batch = make_batch([0, 1, 1, 0, 1])
    images = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 8, 8).clone()
    mixed = mix(replace(batch, images=images))
    # Image i is mixed with image i - 1: both shares can be read off its brightness.
    share = (mixed.images[1:, 0, 0, 0] - torch.arange(4.0)).double()
    labels = torch.tensor([0.0, 1, 1, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(
        mixed.targets[1:, 1].double(), share * labels[1:] + (1 - share) * labels[:-1]
    )


def test_a_recipe_without_mixing_mixes_nothing() -> None:
    assert mixing(RECIPE) is None
