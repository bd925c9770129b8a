from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search.errors import Interrupted
from search.machine.device import AUTOCAST_DTYPES, Runtime
from search.pixels.loading.batches import Batch, Shown
from search.training.loop import NonFiniteLossError, StepRecord, Training
from search.training.loss import ClassificationLoss, Loss
from search.training.network import build_network
from search.training.recipe import Recipe
from search.training.scoring import Evaluation, evaluate, predict, show
from search.training.step import split_batch
from tests.search.training.small import SMALL
from tests.stopping import StopAfter

CPU = Runtime(torch.device("cpu"))
RECIPE = Recipe(
    backbone="test_resnet.r160_in1k",
    architecture=SMALL,
    image_size=32,
    canvas=32,
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
        return (batch for _, batch in self.numbered())

    def numbered(self, start: int = 0, sizes: Collection[int] = ()) -> Iterator[tuple[int, Batch]]:
        order = torch.arange(len(self.targets))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.epoch)
            order = torch.randperm(len(order), generator=generator)
        for number, indices in enumerate(order.split(self.batch_size)):
            if number < start:
                continue
            yield (
                number,
                Batch(
                    canvases=self.images[indices],
                    targets=self.targets[indices],
                    indices=indices,
                    seeds=torch.zeros_like(indices),
                ),
            )


def begin(recipe: Recipe, loss: Loss | None = None, size: int = 48) -> Training:
    return Training(
        build_network(recipe),
        MemoryLoader(size, recipe.batch_size),
        loss or ClassificationLoss(recipe, (24, 24)),
        recipe,
        CPU,
    )


def run(recipe: Recipe, loss: Loss | None = None, **arguments: Any) -> Training:
    """Trains to the end, with a look after each epoch."""
    training = begin(recipe, loss)
    select = MemoryLoader(shuffle=False)
    while training.done < training.end:
        training.run(training.done + training.steps, **arguments)
        training.look(evaluate(training.averaged, select, CPU))
    return training


@pytest.mark.parametrize(
    ("batch_size", "size", "epochs", "steps"),
    [
        # 6, 48 and 2,400 steps an epoch: few images are looked at after an epoch, many after 2,000.
        (8, 48, 8, [6, 12, 24, 48]),
        (8, 48, 3, [6, 12, 18]),
        (8, 48, 0.5, [3]),
        (100, 4_800, 3, [20, 40, 80, 144]),
        (100, 4_800, 0.1, [5]),
        (3_000, 240_000, 1, [1, 2, 4, 8, 16, 32, 64, 80]),
    ],
)
def test_looks_come_as_the_images_double(
    batch_size: int, size: int, epochs: float, steps: list[int]
) -> None:
    class Counted:
        def __len__(self) -> int:
            return size // batch_size

    recipe = replace(RECIPE, batch_size=batch_size, epochs=epochs)
    training = Training(
        build_network(recipe), Counted(), ClassificationLoss(recipe, (24, 24)), recipe, CPU
    )  # type: ignore[arg-type]
    found = []
    while training.looked < training.end:
        training.looked = training.next_look
        found.append(training.looked)
    assert found == steps


def test_a_batch_that_is_cut_short_leaves_no_gradients() -> None:
    recipe = replace(RECIPE, epochs=1)
    whole, cut = begin(recipe), begin(recipe)
    whole.run(whole.end)
    stop = StopAfter(40)
    with pytest.raises(Interrupted), stop.amid_passes(CPU.device, 0.0):
        cut.run(cut.end)
    assert 0 < cut.done < cut.end
    assert all(parameter.grad is None for parameter in cut.network.parameters())
    cut.run(cut.end)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, cut.network.state_dict()[name]), name


@pytest.mark.parametrize(("looked", "expected"), [(35, 40), (36, 80), (40, 80), (72, 144)])
def test_no_look_comes_right_after_a_pause(looked: int, expected: int) -> None:
    """Which was looked at."""
    training = begin(replace(RECIPE, batch_size=100, epochs=3))
    training.steps, training.end = 48, 144
    training.looked = looked
    assert training.next_look == expected


@pytest.mark.parametrize("stops", [[18], [1, 2, 3, 18], [5, 6, 7, 13, 18], [12, 18], [100]])
def test_where_a_training_is_looked_at_changes_nothing(stops: list[int]) -> None:
    """In the middle of an epoch, at its end, or across several."""
    training, whole = begin(RECIPE), run(RECIPE)
    select = MemoryLoader(shuffle=False)
    images = []
    for until in stops:
        training.run(min(until, training.end))
        images.append(training.look(evaluate(training.averaged, select, CPU)).images)
    assert images == [8 * min(until, 18) for until in stops]
    assert training.done == whole.done == 18
    assert training.history[-1].epoch == 3
    for name, value in whole.network.state_dict().items():
        assert torch.equal(training.network.state_dict()[name], value), name


def test_the_best_look_is_remembered() -> None:
    training = begin(RECIPE)
    template = evaluate(build_network(RECIPE), MemoryLoader(shuffle=False), CPU)
    states = []
    for auc in (0.6, 0.9, 0.7):
        training.run(training.done + training.steps)
        states.append({name: t.clone() for name, t in training.network.state_dict().items()})
        training.look(Evaluation(template.predictions, replace(template.metrics, auc=auc)))
    assert training.best_epoch == 2
    assert training.best is not None
    assert training.best.metrics.auc == 0.9
    assert all(torch.equal(training.best_state[name], states[1][name]) for name in states[1])


def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch() -> None:
    # Without batch statistics, accumulation is exact up to rounding.
    recipe = replace(RECIPE, epochs=1, freeze_norm_fraction=1.0)
    whole = run(recipe).network.state_dict()
    parts = run(replace(recipe, micro_batch_size=3)).network.state_dict()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
@pytest.mark.parametrize("batch_size", [7, 8])
def test_mixing_does_not_depend_on_the_micro_batch(
    alphas: tuple[float, float], batch_size: int
) -> None:
    """An image alone in its micro-batch is mixed, and none is dropped from an odd one."""
    recipe = replace(
        RECIPE,
        epochs=1,
        batch_size=batch_size,
        freeze_norm_fraction=1.0,
        mixup_alpha=alphas[0],
        cutmix_alpha=alphas[1],
    )
    seen: list[Shown] = []
    plain = ClassificationLoss(recipe, (24, 24))

    def looks(network: nn.Module, batch: Shown) -> Tensor:
        seen.append(batch)
        return plain(network, batch)

    run(recipe, looks)
    whole = seen.copy()
    seen.clear()
    run(replace(recipe, micro_batch_size=3), looks)
    images = torch.cat([batch.images for batch in seen])
    assert torch.equal(images, torch.cat([batch.images for batch in whole]))
    targets = torch.cat([batch.targets for batch in seen])
    assert torch.equal(targets, torch.cat([batch.targets for batch in whole]))
    assert targets.shape == (6 * batch_size, 2)
    assert ((targets > 0) & (targets < 1)).any()


def test_out_of_memory_halves_the_micro_batch_and_goes_on() -> None:
    plain = ClassificationLoss(RECIPE, (24, 24))
    sizes: list[int] = []

    def hungry(network: nn.Module, batch: Shown) -> Tensor:
        sizes.append(len(batch.targets))
        if len(batch.targets) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(network, batch)

    training = run(replace(RECIPE, epochs=1), hungry)
    assert sizes[:3] == [8, 4, 2]
    assert set(sizes[2:]) == {2}
    assert training.step.micro_batch_size == 2
    assert sum(sizes[2:]) == 48


@pytest.mark.parametrize(("architecture", "smallest"), [("test_resnet", 2), ("test_vit", 1)])
def test_batch_norm_is_left_two_images(architecture: str, smallest: int) -> None:
    """One image of one pixel has no spread: torch refuses to train batch norm on it."""
    sizes: list[int] = []

    def starved(network: nn.Module, batch: Shown) -> Tensor:
        sizes.append(len(batch.targets))
        raise torch.OutOfMemoryError("CUDA out of memory")

    arguments = {"img_size": 32} if architecture == "test_vit" else {}
    recipe = replace(RECIPE, architecture=architecture, model_args=arguments)
    with pytest.raises(torch.OutOfMemoryError):
        run(recipe, starved)
    assert sizes == [8, 4, 2, 1][: 4 if smallest == 1 else 3]


@pytest.mark.parametrize(
    ("images", "micro", "smallest", "sizes"),
    [
        (8, 8, 1, [8]),
        (8, 3, 1, [3, 3, 2]),
        (5, 2, 1, [2, 2, 1]),
        (5, 2, 2, [3, 2]),
        (3, 2, 2, [3]),
        (1, 2, 2, [1]),
        (7, 3, 2, [3, 2, 2]),
    ],
)
def test_parts_of_a_batch(images: int, micro: int, smallest: int, sizes: list[int]) -> None:
    (batch,) = (show(batch, [32], CPU) for batch in MemoryLoader(images, images))
    parts = list(split_batch(batch, micro, smallest))
    assert [len(part.targets) for part in parts] == sizes
    assert torch.equal(torch.cat([part.indices for part in parts]), batch.indices)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_ends_the_training(value: float) -> None:
    def broken(network: nn.Module, batch: Shown) -> Tensor:
        return network(batch.images).sum() * value

    with pytest.raises(NonFiniteLossError, match=r"the loss must be finite.*epoch 1.*0\.002"):
        run(RECIPE, broken)


class Overflows:
    """A loss that overflows fp16 in some of its calls, and spoils the statistics as it does."""

    def __init__(self, calls: range) -> None:
        self.plain = ClassificationLoss(RECIPE, (24, 24))
        self.calls, self.made = calls, 0
        self.seen: list[torch.dtype] = []

    def __call__(self, network: nn.Module, batch: Shown) -> Tensor:
        value = self.plain(network, batch)
        self.seen.append(torch.get_autocast_dtype("cpu"))
        self.made += 1
        if torch.is_autocast_enabled("cpu") and self.made - 1 in self.calls:
            layer = next(m for m in network.modules() if isinstance(m, _BatchNorm))
            assert layer.running_mean is not None
            layer.running_mean.data.fill_(math.inf)  # behind autograd
            return value * math.inf
        return value


def fp16(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Recipe:
    """A recipe in fp16, on a CPU that computes it in bf16."""
    monkeypatch.setitem(AUTOCAST_DTYPES, "fp16", torch.bfloat16)
    return replace(RECIPE, precision="fp16", epochs=2, ema_decay=0.9, **changes)


def test_one_overflow_of_fp16_skips_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    training = run(fp16(monkeypatch), Overflows(range(2, 3)), tell=told.append)
    assert told == []
    assert training.step.precision == "fp16"
    assert all(math.isfinite(record.train_loss) for record in training.history)
    assert all(tensor.isfinite().all() for tensor in training.averaged.state_dict().values())


def test_lasting_overflow_of_fp16_goes_on_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    training = run(fp16(monkeypatch), Overflows(range(10**6)), tell=told.append)
    assert len(told) == 1
    assert "goes on in fp32" in told[0]
    assert training.step.precision == "fp32"
    assert training.best is not None
    assert training.history[-1].train_loss < 0.7
    assert all(tensor.isfinite().all() for tensor in training.averaged.state_dict().values())


@pytest.mark.parametrize(("overflows", "precision"), [(0, "bf16"), (10**6, "fp32")])
def test_going_on_elsewhere_is_in_what_is_fast_there_unless_it_had_overflowed(
    overflows: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = fp16(monkeypatch) if overflows else replace(RECIPE, precision="fp32", epochs=2)
    state = run(recipe, Overflows(range(overflows))).state_dict()
    for elsewhere in ("bf16", "fp32", "bf16"):
        there = begin(replace(recipe, precision=elsewhere))
        there.load_state_dict(state)
        state = there.state_dict()
    assert there.step.precision == precision


def test_frozen_batch_norm_keeps_its_statistics() -> None:
    start = build_network(RECIPE).state_dict()
    frozen = run(replace(RECIPE, freeze_norm_fraction=1.0)).network.state_dict()
    free = run(RECIPE).network.state_dict()
    means = [name for name in start if name.endswith("running_mean")]
    assert all(torch.equal(frozen[name], start[name]) for name in means)
    assert not any(torch.equal(free[name], start[name]) for name in means)


def test_the_learning_rate_rises_and_falls() -> None:
    training = run(replace(RECIPE, warmup_fraction=0.3))
    rates = [record.learning_rate for record in training.history]
    assert rates[0] > rates[1] > rates[2]
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


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


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_in_an_average_a_step_counts_for_its_number_to_a_power(power: float) -> None:
    """arXiv:2110.10832 for a power of 0; nearly so for others, arXiv:2312.02696."""
    recipe = replace(RECIPE, average_power=power, average_after_images=16, epochs=2)
    training, states = begin(recipe), []

    def keep(record: StepRecord) -> None:
        weights = training.network.state_dict()
        states.append({name: value.clone() for name, value in weights.items()})

    training.run(training.end, keep)
    averaged = training.averaged.state_dict()
    assert len(states) == 12
    for name, value in averaged.items():
        if value.is_floating_point():
            kept = torch.stack([state[name] for state in states[2:]])
            numbers = torch.arange(len(kept), dtype=torch.double)
            # (n + 1) ... (n + power), which is n to the power when n is large.
            counts = torch.ones(len(kept), dtype=torch.double)
            for more in range(1, round(power) + 1):
                counts *= numbers + more
            mean = (kept * (counts / counts.sum()).view(-1, *[1] * value.dim())).sum(0)
            torch.testing.assert_close(value, mean.to(value.dtype), rtol=1e-4, atol=1e-6)
