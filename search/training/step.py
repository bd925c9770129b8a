"""One optimizer step on one effective batch, and the learning rate over a training."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm

from search.machine.device import Precision, Runtime, is_out_of_memory
from search.pixels.loading.batches import Batch, Shown
from search.training.loss import Loss, mixing
from search.training.recipe import Recipe
from search.training.scoring import autocast, show

SMALLEST_LOSS_SCALE = 1.0
"""A scale that has fallen below it says that gradients overflow fp16 whatever the scale."""


class OptimizerStep:
    """Called with a batch; steps the optimizer and returns the batch's mean loss.

    Out of memory, it halves the micro-batch and tries again: the effective batch stays.

    Attributes:
        micro_batch_size: images of one forward pass now.
        precision: of the forward passes now: the recipe's, until `fall_back` is called.
        scaler: of the loss; it does nothing unless the precision is fp16.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        recipe: Recipe,
        runtime: Runtime,
    ) -> None:
        """
        Args:
            network: on the runtime's device, maybe compiled; has `image_sizes`.
            optimizer: of the network's parameters.
            loss: mean loss of a network on a (micro-)batch.
            recipe: precision, clipping, mixing, batch sizes.
            runtime: the device.
        """
        self.network, self.optimizer, self.loss = network, optimizer, loss
        self.recipe, self.runtime = recipe, runtime
        assert recipe.precision != "auto"
        self.precision: Precision = recipe.precision
        self.scaler = GradScaler(runtime.device.type, enabled=recipe.precision == "fp16")
        self.micro_batch_size = recipe.micro_batch_size or recipe.batch_size
        self._mixing = mixing(recipe)
        # Batch norm learns from the spread of at least two images.
        has_batch_norm = any(isinstance(module, _BatchNorm) for module in network.modules())
        self._smallest = 2 if has_batch_norm else 1

    def __call__(self, batch: Batch) -> Tensor:
        """One optimizer step on one effective batch; returns its mean loss, detached.

        In fp16 a loss or gradient that overflows is not stepped on, and lowers the scale.
        """
        sizes: Any = self.network.image_sizes
        shown = show(batch, sizes, self.runtime, channels_last=self.recipe.channels_last)
        if self._mixing is not None:
            # The whole batch, before it is split: in micro-batches images would lack neighbours.
            shown = self._mixing(shown)
        mean_loss = self._accumulate(shown)
        self.scaler.unscale_(self.optimizer)
        if self.recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return mean_loss

    @property
    def skips_overflows(self) -> bool:
        """Whether steps that overflow are skipped, as in fp16."""
        return bool(self.scaler.is_enabled())

    @property
    def overflows_for_good(self) -> bool:
        """Whether no loss scale keeps the gradients from overflowing; waits for the GPU."""
        return self.skips_overflows and self.scaler.get_scale() < SMALLEST_LOSS_SCALE

    def fall_back(self) -> None:
        """Goes on in fp32."""
        self.precision = "fp32"
        self.scaler = GradScaler(self.runtime.device.type, enabled=False)

    def _accumulate(self, batch: Shown) -> Tensor:
        """Gradients of the mean loss over the batch, in micro-batches that fit into memory."""
        while True:
            try:
                return self._accumulate_at(batch, self.micro_batch_size)
            except RuntimeError as error:
                if self.micro_batch_size <= self._smallest or not is_out_of_memory(error):
                    raise
            # Outside the handler, whose traceback would keep the tensors of the failed try alive.
            self.optimizer.zero_grad(set_to_none=True)
            gc.collect()
            half = (min(self.micro_batch_size, len(batch.targets)) + 1) // 2
            self.micro_batch_size = max(half, self._smallest)
            if self.runtime.on_cuda:
                torch.cuda.empty_cache()

    def _accumulate_at(self, batch: Shown, micro_batch_size: int) -> Tensor:
        mean_loss = torch.zeros((), device=self.runtime.device)
        for part in split_batch(batch, micro_batch_size, self._smallest):
            with autocast(self.runtime, self.precision):
                value = self.loss(self.network, part)
            value = value * (len(part.targets) / len(batch.targets))
            self.scaler.scale(value).backward()
            mean_loss += value.detach()
        return mean_loss


def split_batch(batch: Shown, micro_batch_size: int, smallest: int = 1) -> Iterator[Shown]:
    """Parts of nearly equal size.

    Args:
        batch: of N images.
        micro_batch_size: no part is larger, unless another would be too small then.
        smallest: no part is smaller, unless the batch is.
    """
    images = len(batch.targets)
    count = max(1, min(math.ceil(images / micro_batch_size), images // smallest))
    return iter((batch,)) if count == 1 else batch.split(count)


FUSED = ("cpu", "cuda")
"""Kinds of devices whose fused step is faster: on two CPU cores it takes a ResNet-18 10 ms instead
of 40. It repeats to the bit."""


def make_optimizer(network: nn.Module, recipe: Recipe, runtime: Runtime) -> torch.optim.Optimizer:
    """The optimizer of a recipe.

    Args:
        network: on the runtime's device; has `parameter_groups`.
        recipe: optimizer, learning rate, weight decay and lowest layer.
        runtime: the device.
    """
    trainable: Any = network
    fused: dict[str, Any] = {"fused": True} if runtime.device.type in FUSED else {}
    return create_optimizer_v2(
        trainable.parameter_groups(recipe.weight_decay, recipe.lowest_layer_scale),
        opt=recipe.optimizer,
        lr=recipe.learning_rate,
        **fused,
    )


UNSETTLED = 2**40


def training_steps(recipe: Recipe, steps_per_epoch: int) -> int:
    """Optimizer steps of a whole training; more than any has, where its end is not settled."""
    if recipe.epochs is None:
        return UNSETTLED
    return max(1, round(recipe.epochs * steps_per_epoch))


def decay_start(recipe: Recipe, steps_per_epoch: int) -> int:
    """Steps after which the rate of a constant schedule falls."""
    end = training_steps(recipe, steps_per_epoch)
    return end - round(recipe.decay_fraction * end)


class ConstantScheduler(Scheduler):
    """A linear warm-up, a constant rate, and a short fall to 0 (arXiv:2405.18392).

    Up to the fall nothing depends on where the training ends.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
    ) -> None:
        """
        Args:
            optimizer: its rates are those of the constant stretch.
            recipe: warm-up, decay and epochs.
            steps_per_epoch: optimizer steps.
        """
        super().__init__(optimizer, "lr", t_in_epochs=False)
        self._warmup = max(1, round(recipe.warmup_images / recipe.batch_size))
        self._end = training_steps(recipe, steps_per_epoch)
        self._decay_start = decay_start(recipe, steps_per_epoch)
        self.update_groups(self._get_lr(0))

    def _get_lr(self, t: int) -> list[float]:
        factor = min(1.0, (t + 1) / self._warmup)
        if t > self._decay_start:
            share = (t - self._decay_start) / (self._end - self._decay_start)
            # The form that the paper found best.
            factor *= max(0.0, 1 - math.sqrt(share))
        return [value * factor for value in self.base_values]


def make_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
) -> Scheduler:
    """The scheduler of a recipe: told of every step by `step_update` and of every epoch by `step`.

    Cosine (arXiv:1608.03983) falls over all steps after a linear warm-up; constant, see there; step
    multiplies the rate by `step_gamma` every `step_size_epochs`.
    """
    if recipe.schedule == "step":
        return StepLRScheduler(
            optimizer, decay_t=recipe.step_size_epochs, decay_rate=recipe.step_gamma
        )
    if recipe.schedule == "constant":
        return ConstantScheduler(optimizer, recipe, steps_per_epoch)
    # It warns of a training of one step, whose rate cannot fall.
    logging.getLogger("timm.scheduler.cosine_lr").setLevel(logging.ERROR)
    updates = training_steps(recipe, steps_per_epoch)
    return CosineLRScheduler(
        optimizer,
        t_initial=updates,
        warmup_t=round(recipe.warmup_fraction * updates),
        warmup_lr_init=recipe.learning_rate * 1e-2,
        t_in_epochs=False,
    )
