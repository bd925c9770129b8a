"""The learning rate over a training."""

from __future__ import annotations

import logging

import torch
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler

from search.training.recipe import Recipe


def make_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
) -> Scheduler:
    """The scheduler of a recipe: told of every step by `step_update` and of every epoch by `step`.

    Cosine (arXiv:1608.03983) falls over all steps after a linear warm-up; step multiplies the rate
    by `step_gamma` every `step_size_epochs`.
    """
    if recipe.schedule == "step":
        return StepLRScheduler(
            optimizer, decay_t=recipe.step_size_epochs, decay_rate=recipe.step_gamma
        )
    # It warns of a training of one step, whose rate cannot fall.
    logging.getLogger("timm.scheduler.cosine_lr").setLevel(logging.ERROR)
    updates = max(1, recipe.epochs * steps_per_epoch)
    return CosineLRScheduler(
        optimizer,
        t_initial=updates,
        warmup_t=round(recipe.warmup_fraction * updates),
        warmup_lr_init=recipe.learning_rate * 1e-2,
        t_in_epochs=False,
    )
