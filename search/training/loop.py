"""The one training loop: candidates, students and fused networks all go through `fit`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search.data.batches import Loader
from search.training.candidate import EpochRecord, copy_state, load_state, save_state
from search.training.device import Runtime, seed_everything
from search.training.loss import Loss
from search.training.recipe import Recipe
from search.training.scoring import Evaluation, Evaluator
from search.training.step import OptimizerStep, make_scheduler

FINITE_CHECK_STEPS = 20
"""Steps between two looks at the summed loss; a look waits for the GPU, and NaN stays in a sum."""


class Trainable(Protocol):
    """What `fit` asks of a module besides being one."""

    def parameter_groups(self, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
        """Groups for a torch optimizer, each with its `lr_scale`."""


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite."""


def fit(
    network: nn.Module,
    loader: Loader,
    loss: Loss,
    recipe: Recipe,
    *,
    evaluate: Evaluator,
    runtime: Runtime,
    on_epoch: Callable[[EpochRecord], None] = lambda _: None,
    on_step: Callable[[StepRecord], None] = lambda _: None,
    state_file: Path | None = None,
) -> FitResult:
    """Trains a network and leaves in it the weights of the epoch with the best AUC.

    Args:
        network: maps (N, 3, H, W) RGB in [0, 1] to logits (N, 2); has `parameter_groups`.
        loader: training batches of `recipe.batch_size` images.
        loss: mean loss of a network on a (micro-)batch.
        recipe: optimizer, schedule, averaging, precision, seed.
        evaluate: scores a network on the split that is selected on; called after every epoch.
        runtime: the device.
        on_epoch: told of every finished epoch; what it raises ends the training.
        on_step: told of every step; what it raises ends the training.
        state_file: where the state is kept after every epoch; if it exists, training goes on from
            it, with the same result as if it had never stopped.

    Raises:
        NonFiniteLossError: if the loss becomes NaN or infinite.
        torch.OutOfMemoryError: if a single image does not fit into memory.
    """
    training = _Training(network, loader, loss, recipe, runtime)
    first_epoch = training.restore(state_file) if state_file and state_file.exists() else 0
    if runtime.on_cuda:
        torch.cuda.reset_peak_memory_stats(runtime.device)
    for epoch in range(first_epoch, recipe.epochs):
        train_loss, seconds = training.run_epoch(epoch, on_step)
        evaluation = evaluate(training.averaged)
        record = EpochRecord(
            epoch=epoch + 1,
            train_loss=train_loss,
            learning_rate=training.head_learning_rate(),
            select_auc=evaluation.metrics.auc,
            select_log_loss=evaluation.metrics.log_loss,
            seconds=seconds,
        )
        training.keep(record, evaluation)
        if state_file:
            training.save(state_file)
        on_epoch(record)
    network.load_state_dict(training.best_state)
    seconds = sum(record.seconds for record in training.history)
    return FitResult(
        history=tuple(training.history),
        # A resumed training may have found its best before the break, scores not kept.
        best=training.best_evaluation or evaluate(network),
        best_epoch=training.best_epoch,
        train_seconds=seconds,
        images_per_second=training.images_seen / seconds if seconds else 0.0,
        peak_memory_mb=(
            torch.cuda.max_memory_allocated(runtime.device) / 2**20 if runtime.on_cuda else None
        ),
        micro_batch_size=training.step.micro_batch_size,
    )


class _Training:
    """The mutable state of one fit."""

    def __init__(
        self, network: nn.Module, loader: Loader, loss: Loss, recipe: Recipe, runtime: Runtime
    ) -> None:
        self.loader, self.recipe, self.runtime = loader, recipe, runtime
        self.network = network.to(runtime.device)
        if recipe.channels_last:
            # torch before 2.15 has no types for this argument.
            self.network = cast(Any, self.network).to(memory_format=torch.channels_last)
        # The compiled module shares its parameters with the network.
        compiled = self.network
        if recipe.compile:
            compiled = cast(nn.Module, torch.compile(self.network))
        self.ema = (
            # Its own warm-up: a short fit must not average over its random start.
            ModelEmaV3(self.network, decay=recipe.ema_decay, use_warmup=True)
            if recipe.ema_decay > 0
            else None
        )
        self.optimizer = create_optimizer_v2(
            _groups(network, recipe), opt=recipe.optimizer, lr=recipe.learning_rate
        )
        self.steps = len(loader)
        self.scheduler = make_scheduler(self.optimizer, recipe, self.steps)
        self.step = OptimizerStep(compiled, self.optimizer, loss, recipe, runtime)
        self.history: list[EpochRecord] = []
        self.images_seen = 0
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] = {}
        self.best_evaluation: Evaluation | None = None

    @property
    def averaged(self) -> nn.Module:
        """What is evaluated and kept: the average of the weights where one is made."""
        return self.network if self.ema is None else self.ema.module

    def head_learning_rate(self) -> float:
        """The largest learning rate among the groups, which is the head's."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def run_epoch(self, epoch: int, on_step: Callable[[StepRecord], None]) -> tuple[float, float]:
        """Trains for one epoch; returns its mean loss and its seconds."""
        # Reseeding by epoch makes a resumed training repeat what an unbroken one does.
        seed_everything(self.recipe.seed * 100_003 + epoch)
        self.loader.set_epoch(epoch)
        self.network.train()
        frozen_steps = round(self.recipe.freeze_norm_fraction * self.recipe.epochs * self.steps)
        total = torch.zeros((), device=self.runtime.device)
        looked_total, looked_images, images = 0.0, 0, 0
        started = time.perf_counter()
        step, is_frozen = 0, False
        for step, batch in enumerate(self.loader, start=1):
            update = epoch * self.steps + step
            if is_frozen != (update <= frozen_steps):
                is_frozen = not is_frozen
                _set_batch_norm(self.network, training=not is_frozen)
            total += self.step(batch) * len(batch.targets)
            images += len(batch.targets)
            self.scheduler.step_update(update)
            if self.ema is not None:
                self.ema.update(self.network, step=update)
            mean_loss = None
            if step % FINITE_CHECK_STEPS == 0 or step == self.steps:
                current = total.item()
                mean_loss = (current - looked_total) / (images - looked_images)
                self._check_finite(mean_loss, epoch, step)
                looked_total, looked_images = current, images
            elapsed = time.perf_counter() - started
            on_step(StepRecord(epoch, step, self.steps, mean_loss, images / elapsed))
        self._check_finite(mean := total.item() / max(images, 1), epoch, step)
        self.scheduler.step(epoch + 1)
        self.images_seen += images
        return mean, time.perf_counter() - started

    def keep(self, record: EpochRecord, evaluation: Evaluation) -> None:
        """Adds an epoch to the history, and remembers its weights if they are the best yet."""
        best_before = max((row.select_auc for row in self.history), default=-math.inf)
        self.history.append(record)
        if record.select_auc > best_before or not self.best_state:
            self.best_epoch = record.epoch
            self.best_state = copy_state(self.averaged)
            self.best_evaluation = evaluation

    def save(self, path: Path) -> None:
        save_state(
            path,
            {
                "network": self.network.state_dict(),
                "averaged": None if self.ema is None else self.ema.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.step.scaler.state_dict(),
                "history": [asdict(record) for record in self.history],
                "images_seen": self.images_seen,
                "micro_batch_size": self.step.micro_batch_size,
                "best_epoch": self.best_epoch,
                "best_state": self.best_state,
            },
        )

    def restore(self, path: Path) -> int:
        """Takes up a saved state; returns the number of epochs it has finished."""
        state = load_state(path)
        self.network.load_state_dict(state["network"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step.scaler.load_state_dict(state["scaler"])
        self.history = [EpochRecord(**row) for row in state["history"]]
        self.images_seen = state["images_seen"]
        self.step.micro_batch_size = state["micro_batch_size"]
        self.best_epoch, self.best_state = state["best_epoch"], state["best_state"]
        finished = len(self.history)
        self.scheduler.step_update(finished * self.steps)
        self.scheduler.step(finished)
        return finished

    def _check_finite(self, value: float, epoch: int, step: int) -> None:
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"the loss must be finite, found {value} in epoch {epoch + 1} by step {step} of "
                f"{self.steps}; a lower learning rate (now {self.recipe.learning_rate:g}) may help"
            )


def _groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    trainable: Trainable = network  # type: ignore[assignment]
    return trainable.parameter_groups(recipe.weight_decay, recipe.layer_decay)


def _set_batch_norm(network: nn.Module, *, training: bool) -> None:
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.train(training)


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step tells a progress display."""

    epoch: int  # from 0
    step: int  # finished steps of this epoch
    steps: int  # of one epoch
    loss: float | None  # mean since the last look; None between looks
    images_per_second: float


@dataclass(frozen=True)
class FitResult:
    """A finished training; the network handed to `fit` holds the weights of the best epoch."""

    history: tuple[EpochRecord, ...]
    best: Evaluation
    best_epoch: int  # from 1
    train_seconds: float  # training steps only, without evaluation
    images_per_second: float
    peak_memory_mb: float | None  # CUDA's peak; None elsewhere
    micro_batch_size: int  # what was left of it after running out of memory
