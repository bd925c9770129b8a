from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ensemble.distill import losses
from ensemble.distill.outputs import TeacherOutputs
from ensemble.distill.student import DistillationLoss, LossWeights, Student
from search.machine.device import Runtime
from search.pixels.loading.batches import Batch, Shown
from search.training.loop import Training
from search.training.network import build_network
from search.training.recipe import Recipe
from search.training.scoring import evaluate, show

CPU = Runtime(torch.device("cpu"))
FEATURES = 6
RECIPE = Recipe(
    backbone="test_resnet",
    architecture="test_resnet",
    image_size=32,
    canvas=32,
    weights="none",
    epochs=4,
    batch_size=8,
    learning_rate=2e-3,
)
WEIGHTS = LossWeights(match="bce", temperature=2.0, hard_label=0.25, relation=0.5, feature=0.0)


class MemoryLoader:
    """Noise images, half of them brighter: those that the teacher, not the label, calls fake."""

    def __init__(self, size: int = 32) -> None:
        generator = torch.Generator().manual_seed(0)
        self.bright = torch.arange(size) // 2 % 2
        noise = torch.randint(0, 128, (size, 3, 32, 32), generator=generator)
        self.images = (noise + 80 * self.bright.view(-1, 1, 1, 1)).to(torch.uint8)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.bright) // 8

    def __iter__(self) -> Iterator[Batch]:
        return (batch for _, batch in self.numbered())

    def numbered(self, start: int = 0, sizes: Collection[int] = ()) -> Iterator[tuple[int, Batch]]:
        for number, rows in enumerate(torch.arange(len(self.bright)).split(8)[start:], start):
            yield number, Batch(self.images[rows], self.targets[rows], rows, torch.zeros_like(rows))

    @property
    def targets(self) -> Tensor:
        return self.bright


class UselessLabels(MemoryLoader):
    @property
    def targets(self) -> Tensor:
        return torch.arange(len(self.bright)) % 2


def teacher(batch: Shown) -> TeacherOutputs:
    """Calls bright images fake; its features are functions of the brightness, too."""
    brightness = batch.images.mean(dim=(1, 2, 3))
    margins = 30 * (brightness - 0.4)
    scales = torch.linspace(-1, 1, FEATURES)
    return TeacherOutputs(margins, losses.normalise_features(margins[:, None] * scales + scales**2))


def batch_of_eight() -> Shown:
    return show(next(iter(MemoryLoader())), [32], CPU)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"match": "mse"},
        {"hard_label": 0.0, "relation": 0.0},
        {"hard_label": 1.0, "relation": 0.0},
        {"feature": 0.7},
    ],
)
def test_the_loss_is_the_weighted_sum_of_its_parts(changes: dict[str, Any]) -> None:
    weights = replace(WEIGHTS, **changes)
    student = Student(build_network(RECIPE), FEATURES if weights.feature else 0)
    batch = batch_of_eight()
    taught = teacher(batch)
    logits = student(batch.images)
    match = (
        losses.margin_bce(logits, taught.margins, 2.0)
        if weights.match == "bce"
        else losses.margin_mse(logits, taught.margins)
    )
    expected = (1 - weights.hard_label) * match
    expected += weights.hard_label * losses.hard_label(logits, batch.targets)
    expected += weights.relation * losses.relation(logits, taught.margins)
    if weights.feature:
        projected, _ = student.forward_with_projection(batch.images)
        assert taught.features is not None
        expected += weights.feature * losses.feature_matching(projected, taught.features)
    torch.testing.assert_close(DistillationLoss(teacher, weights)(student, batch), expected)


@pytest.mark.parametrize("lowest_layer_scale", [1.0, 0.7])
@pytest.mark.parametrize("feature_size", [0, FEATURES])
def test_every_parameter_is_in_one_group(feature_size: int, lowest_layer_scale: float) -> None:
    student = Student(build_network(RECIPE), feature_size)
    groups = student.parameter_groups(0.05, lowest_layer_scale)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in student.parameters())


def test_the_projection_is_the_same_for_one_seed() -> None:
    first, second, other = (Student(build_network(RECIPE), FEATURES, seed) for seed in (1, 1, 2))
    for student in (first, second, other):
        assert student.projection is not None
    assert torch.equal(first.projection.weight, second.projection.weight)  # type: ignore[union-attr]
    assert not torch.equal(first.projection.weight, other.projection.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("feature", [0.0, 1.0])
def test_training_teaches_a_student_what_labels_do_not_say(
    feature: float, ema_decay: float
) -> None:
    recipe = replace(RECIPE, ema_decay=ema_decay)
    network = build_network(recipe)
    student = Student(network, FEATURES if feature else 0)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    loss = DistillationLoss(teacher, replace(WEIGHTS, hard_label=0.0, feature=feature))
    training = Training(student, UselessLabels(), loss, recipe, CPU)
    for epoch in range(1, recipe.epochs + 1):
        training.run(epoch * training.steps)
        training.look(evaluate(training.averaged, MemoryLoader(), CPU))  # type: ignore[arg-type]
    assert training.best is not None
    assert training.best.metrics.auc > 0.95
    student.load_state_dict(training.best_state)
    after = student.state_dict()
    assert ("projection.weight" in after) == bool(feature)
    trained = [name for name in after if name.endswith("weight")]
    assert all(not torch.equal(before[name], after[name]) for name in trained)
    # What is kept is a plain network, without the projection.
    assert set(network.state_dict()) == set(build_network(recipe).state_dict())
    alone = evaluate(network, MemoryLoader(), CPU)  # type: ignore[arg-type]
    assert alone.metrics.auc == training.best.metrics.auc
