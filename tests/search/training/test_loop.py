from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search.data.batches import Batch
from search.training.candidate import EpochRecord
from search.training.device import Runtime
from search.training.loop import FitResult, NonFiniteLossError, StepRecord, fit
from search.training.loss import ClassificationLoss, Loss
from search.training.network import build_network
from search.training.recipe import Recipe
from search.training.scoring import Evaluation, evaluate, predict

CPU = Runtime(torch.device("cpu"))
RECIPE = Recipe(
    backbone="test_resnet.r160_in1k",
    architecture="test_resnet",
    image_size=32,
    weights="none",
    epochs=3,
    batch_size=8,
    learning_rate=2e-3,
)


class MemoryLoader:
    """Batches from memory in an order that depends on the epoch, as the real loader's does.

    Fakes are brighter than reals, so that a network can learn the difference at once.
    """

    def __init__(self, size: int = 48, batch_size: int = 8, *, shuffle: bool = True) -> None:
        generator = torch.Generator().manual_seed(0)
        self.targets = torch.arange(size) % 2
        noise = torch.randint(0, 128, (size, 3, 32, 32), generator=generator)
        self.images = (noise + 80 * self.targets.view(-1, 1, 1, 1)).to(torch.uint8)
        self.batch_size, self.shuffle = batch_size, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.targets) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        order = torch.arange(len(self.targets))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.epoch)
            order = torch.randperm(len(order), generator=generator)
        for indices in order.split(self.batch_size):
            yield Batch(
                images=self.images[indices],
                targets=self.targets[indices],
                indices=indices,
                seeds=torch.zeros_like(indices),
            )


def run(
    recipe: Recipe, loss: Loss | None = None, **arguments: Any
) -> tuple[FitResult, dict[str, Tensor]]:
    network = build_network(recipe)
    select = MemoryLoader(shuffle=False)
    result = fit(
        network,
        MemoryLoader(),
        loss or ClassificationLoss(recipe, (24, 24)),
        recipe,
        evaluate=lambda module: evaluate(module, select, CPU),
        runtime=CPU,
        **arguments,
    )
    return result, network.state_dict()


def assert_same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def timeless(history: tuple[EpochRecord, ...]) -> list[EpochRecord]:
    return [replace(record, seconds=0.0) for record in history]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "adam", "schedule": "step", "step_size_epochs": 1, "warmup_fraction": 0.0},
        {"ema_decay": 0.9},
        {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "label_smoothing": 0.1},
        {"class_balance": "loss", "layer_decay": 0.7, "drop_path": 0.1},
        {"micro_batch_size": 3, "gradient_clip": None},
        {"precision": "bf16", "channels_last": True},
        {"freeze_norm_fraction": 0.5},
    ],
)
def test_every_setting_learns_and_repeats(changes: dict[str, Any]) -> None:
    recipe = replace(RECIPE, **changes)
    result, state = run(recipe)
    again, state_again = run(recipe)
    assert len(result.history) == 3
    assert all(math.isfinite(record.train_loss) for record in result.history)
    assert result.best.metrics.auc > 0.9
    assert timeless(again.history) == timeless(result.history)
    assert_same_state(state, state_again)


def test_the_network_is_left_with_the_best_epoch() -> None:
    aucs = iter([0.6, 0.9, 0.7])
    states: list[dict[str, Tensor]] = []
    network = build_network(RECIPE)
    template = evaluate(network, MemoryLoader(shuffle=False), CPU)

    def scripted(module: nn.Module) -> Evaluation:
        states.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
        return replace(template, metrics=replace(template.metrics, auc=next(aucs)))

    result = fit(
        network,
        MemoryLoader(),
        ClassificationLoss(RECIPE, (24, 24)),
        RECIPE,
        evaluate=scripted,
        runtime=CPU,
    )
    assert result.best_epoch == 2
    assert result.best.metrics.auc == 0.9
    assert_same_state(network.state_dict(), states[1])


class StopError(Exception):
    pass


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_broken_training_goes_on_as_if_it_had_never_stopped(
    ema_decay: float, tmp_path: Path
) -> None:
    recipe = replace(RECIPE, ema_decay=ema_decay, mixup_alpha=0.2)
    unbroken, expected = run(recipe)
    state_file = tmp_path / "state.pt"

    def stop_after_two(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise StopError

    with pytest.raises(StopError):
        run(recipe, state_file=state_file, on_epoch=stop_after_two)
    seen: list[int] = []
    resumed, state = run(
        recipe, state_file=state_file, on_epoch=lambda record: seen.append(record.epoch)
    )
    assert seen == [3]
    assert timeless(resumed.history) == timeless(unbroken.history)
    assert resumed.best.metrics == unbroken.best.metrics
    assert_same_state(state, expected)


def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch() -> None:
    # Without batch statistics, accumulation is exact up to rounding.
    recipe = replace(RECIPE, epochs=1, freeze_norm_fraction=1.0)
    _, whole = run(recipe)
    _, parts = run(replace(recipe, micro_batch_size=3))
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-3, atol=1e-4)


def test_out_of_memory_halves_the_micro_batch_and_goes_on() -> None:
    plain = ClassificationLoss(RECIPE, (24, 24))
    sizes: list[int] = []

    def hungry(network: nn.Module, batch: Batch) -> Tensor:
        sizes.append(len(batch.targets))
        if len(batch.targets) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(network, batch)

    result, _ = run(replace(RECIPE, epochs=1), hungry)
    assert sizes[:3] == [8, 4, 2]
    assert set(sizes[2:]) == {2}
    assert result.micro_batch_size == 2
    assert sum(sizes[2:]) == 48


def test_out_of_memory_with_a_single_image_ends_the_training() -> None:
    def starved(network: nn.Module, batch: Batch) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        run(RECIPE, starved)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_ends_the_training(value: float) -> None:
    def broken(network: nn.Module, batch: Batch) -> Tensor:
        return network(batch.images).sum() * value

    with pytest.raises(NonFiniteLossError, match=r"the loss must be finite.*epoch 1.*0\.002"):
        run(RECIPE, broken)


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    start = build_network(RECIPE).state_dict()
    _, frozen = run(replace(RECIPE, freeze_norm_fraction=1.0))
    _, free = run(RECIPE)
    means = [name for name in start if name.endswith("running_mean")]
    assert all(torch.equal(frozen[name], start[name]) for name in means)
    assert not any(torch.equal(free[name], start[name]) for name in means)


def test_the_learning_rate_rises_and_falls() -> None:
    rates: list[float] = []
    recipe = replace(RECIPE, warmup_fraction=0.3)
    result, _ = run(recipe, on_epoch=lambda record: rates.append(record.learning_rate))
    assert rates[0] > rates[1] > rates[2]
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert rates == [record.learning_rate for record in result.history]


def test_steps_are_told() -> None:
    records: list[StepRecord] = []
    run(replace(RECIPE, epochs=2), on_step=records.append)
    assert [(record.epoch, record.step) for record in records] == [
        (epoch, step) for epoch in range(2) for step in range(1, 7)
    ]
    assert records[5].loss is not None
    assert all(record.steps == 6 for record in records)


def test_predictions_keep_order_and_leave_evaluation_mode() -> None:
    network = build_network(RECIPE).train()
    loader = MemoryLoader(size=20, batch_size=6, shuffle=False)
    asked: list[int] = []
    predictions = predict(network, loader, CPU, on_batch=lambda: asked.append(1))
    assert predictions.indices.tolist() == list(range(20))
    assert predictions.targets.tolist() == loader.targets.tolist()
    assert not network.training
    assert len(asked) == 4
    with torch.inference_mode():
        expected = network(loader.images.float() / 255).softmax(1)[:, 1]
    np.testing.assert_allclose(predictions.scores, expected.numpy(), atol=1e-6)


def test_scores_that_are_not_finite_are_an_error() -> None:
    network = build_network(RECIPE)
    with torch.no_grad():
        next(network.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="20 of 20 scores"):
        predict(network, MemoryLoader(size=20, shuffle=False), CPU)
