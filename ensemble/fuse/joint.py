"""Training a fused network's trunks and head together, after they were trained apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from torch import nn

from ensemble.network.model import FusedNetwork
from ensemble.network.training import Leftover, MergeTraining, costs_of, looks_of
from ensemble.pool.pool import Pool
from search.machine.files import read_json, write_json_atomically
from search.machine.interruption import Interruption
from search.machine.progress import tell_line
from search.training.candidate import (
    WEIGHTS,
    Look,
    copy_state,
    load_weights,
    save_weights,
)
from search.training.objective import NAMES, value_of
from search.training.recipe import Recipe
from search.training.train import CHECKPOINT_MINUTES, Classification

FUSED = "fused"

HEAD, START = "head.safetensors", "start.json"
"""What a joint training starts from, in its folder: the fitted head, and what is known of it."""

FINETUNE_RATE = 0.1
"""Of the best member's learning rate: trained trunks need smaller steps than untrained ones."""


def joint_recipe(best: Recipe, image_size: int, epochs: int, pool: Pool) -> Recipe:
    """The recipe of the joint training: the best member's, with smaller steps, at the fused
    network's image size, in the arithmetic that is the fastest for it.

    No mixup and no averaging: the few epochs start from trained networks. Their number is known, so
    that the rate falls over all of them.
    """
    return replace(
        best,
        image_size=image_size,
        epochs=epochs,
        learning_rate=best.learning_rate * FINETUNE_RATE,
        mixup_alpha=0.0,
        cutmix_alpha=0.0,
        schedule="cosine",
        ema_decay=0.0,
        average_power=None,
        freeze_norm_fraction=1.0,
        precision="auto",
        compile=False,
        seed=pool.settings.seed,
    )


class FusedClassification(Classification):
    """A fused network, its head fitted, that learns the labels."""

    def __init__(
        self, pool: Pool, model: FusedNetwork, recipe: Recipe, made_from: Mapping[str, Any]
    ) -> None:
        super().__init__(recipe, pool.splits, pool.reader)
        self.model, self.made_from = model, made_from

    def identity(self) -> Mapping[str, Any]:
        """What the network was made from."""
        return self.made_from

    def network(self, *, start: bool) -> nn.Module:
        """The network as it is: other weights may be loaded over its own."""
        del start
        return self.model


class JointTraining:
    """One joint training of a fused network, from its start to the decision to keep it.

    The start, a fitted head and its objective on select, is kept in the training's folder: it is
    made once, however often the training stops.

    Attributes:
        training: see `MergeTraining`.
    """

    def __init__(
        self, pool: Pool, model: FusedNetwork, recipe: Recipe, made_from: Mapping[str, Any]
    ) -> None:
        """
        Args:
            pool: the images, and the device.
            model: trained in place.
            recipe: see `joint_recipe`.
            made_from: what the model was made from, as plain values.
        """
        self.pool, self.model = pool, model
        task = FusedClassification(pool, model, recipe, made_from)
        self.training = MergeTraining(pool, FUSED, recipe, task)

    def complete(
        self,
        fit: Callable[[], Mapping[str, Any]],
        console: Console,
        interruption: Interruption,
        checkpoint_minutes: float = CHECKPOINT_MINUTES,
    ) -> tuple[Recipe, tuple[Look, ...], dict[str, Any]]:
        """Fits the model's head, then trains all of it; it stays as it was fitted if no epoch is
        better on select.

        Args:
            fit: fits the head in place and returns figures of that.
            console: is told what happens.
            interruption: asked between batches.
            checkpoint_minutes: see `train`.

        Returns:
            The recipe as it was computed, one record an epoch, and figures for metrics.json.

        Raises:
            Interrupted: if asked to stop; the same training goes on from its last batch.
        """
        figures, start = self._started(fit, console, interruption)
        state = copy_state(self.model)
        candidate = self.training.complete(console, interruption, checkpoint_minutes)
        metrics = candidate.metrics
        reached = value_of(metrics, self.pool.objective)
        kept = reached > start
        # As if an earlier process had trained it: rounding depends on the layout, and scores must
        # not depend on when the training stopped.
        laid_out: Any = self.model
        laid_out.to(memory_format=torch.contiguous_format)
        if kept:
            load_weights(candidate.path / WEIGHTS, self.model)
        else:
            self.model.load_state_dict(state)
        tell_line(
            console,
            f"joint training: {NAMES[self.pool.objective]} {reached:.4f} on select after "
            f"{start:.4f}, "
            f"{'kept' if kept else 'not kept'}",
        )
        return (
            candidate.recipe,
            looks_of(candidate),
            {
                **figures,
                **costs_of(candidate),
                "finetune_kept": kept,
                "best_epoch": metrics["best_epoch"] if kept else 0,
            },
        )

    def leftover(self) -> Leftover | None:
        """What an earlier command began from other settings or members, if it is in the way."""
        found = self._kept_start()
        begun = found and Leftover(
            self.training.folder, "a fitted head", self.training.wanted, found["training"]
        )
        return self.training.leftover() or (begun if begun and begun.changed else None)

    def _started(
        self, fit: Callable[[], Mapping[str, Any]], console: Console, interruption: Interruption
    ) -> tuple[dict[str, Any], float]:
        """Makes the model the start of the training, or takes up the one that was kept; returns
        the figures of its fitting, and its objective on select."""
        folder = self.training.folder
        kept = self._kept_start()
        if kept is None:
            if (folder / START).exists():
                tell_line(console, f"{folder / START} cannot be read: the head is fitted anew")
            figures = dict(fit())
            folder.mkdir(parents=True, exist_ok=True)
            save_weights(folder / HEAD, copy_state(self.model.head))
            kept = {"training": self.training.wanted, "figures": figures, "objective": None}
            # Last: with it the head is taken up.
            write_json_atomically(folder / START, kept)
        else:
            load_weights(folder / HEAD, self.model.head)
        if kept["objective"] is None:
            kept["objective"] = self._evaluate(interruption)
            write_json_atomically(folder / START, kept)
        return kept["figures"], kept["objective"]

    def _kept_start(self) -> dict[str, Any] | None:
        """start.json, of whichever training; None if there is none that can be read."""
        try:
            content = read_json(self.training.folder / START)
        except (OSError, ValueError):
            return None
        return content if content.keys() == {"training", "figures", "objective"} else None

    def _evaluate(self, interruption: Interruption) -> float:
        found = self.pool.evaluate(self.model, "select", interruption.check)
        return value_of(found.metrics.to_dict(), self.pool.objective)
