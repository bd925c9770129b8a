"""Training a fused network's trunks and head together, after they were trained apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console
from torch import nn

from ensemble.network.model import FusedNetwork
from ensemble.network.training import MergeTraining, costs_of, epochs_of
from ensemble.pool import Pool
from search.interruption import Interrupted, Interruption
from search.training.candidate import WEIGHTS, EpochRecord, copy_state, load_weights
from search.training.device import resolve_precision
from search.training.recipe import Recipe
from search.training.train import CHECKPOINT_MINUTES, Classification

FUSED = "fused"

FINETUNE_RATE = 0.1
"""Of the best member's learning rate: trained trunks need smaller steps than untrained ones."""


def joint_recipe(best: Recipe, image_size: int, epochs: int, pool: Pool) -> Recipe:
    """The recipe of the joint training: the best member's, with smaller steps, at the fused
    network's image size, computed as this machine can.

    No mixup and no averaging: the few epochs start from trained networks.
    """
    return replace(
        best,
        image_size=image_size,
        epochs=epochs,
        learning_rate=best.learning_rate * FINETUNE_RATE,
        mixup_alpha=0.0,
        cutmix_alpha=0.0,
        ema_decay=0.0,
        freeze_norm_fraction=1.0,
        precision=resolve_precision("auto", pool.runtime.device),
        compile=False,
        seed=pool.settings.seed,
    )


class FusedClassification(Classification):
    """A fused network, its head fitted, that learns the labels."""

    def __init__(
        self, pool: Pool, model: FusedNetwork, recipe: Recipe, made_from: Mapping[str, Any]
    ) -> None:
        super().__init__(recipe, pool.splits, pool.runtime, pool.quarantine)
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
        console: Console,
        interruption: Interruption,
        checkpoint_minutes: float = CHECKPOINT_MINUTES,
    ) -> tuple[tuple[EpochRecord, ...], dict[str, Any]]:
        """Trains the model, whose head must be fitted; it stays as it was if no epoch is better on
        select.

        Args:
            console: is told what happens.
            interruption: asked between batches.
            checkpoint_minutes: see `train`.

        Returns:
            One record an epoch, and figures for metrics.json.

        Raises:
            Interrupted: if asked to stop; the same training goes on from its last batch.
        """
        start, state = self._evaluate(interruption), copy_state(self.model)
        try:
            candidate = self.training.complete(console, interruption, checkpoint_minutes)
        except Interrupted as reason:
            console.print(f"{reason}: the same command goes on from there", highlight=False)
            raise
        metrics = candidate.metrics
        reached = metrics["auc"]
        kept = reached > start
        if kept:
            load_weights(candidate.path / WEIGHTS, self.model)
        else:
            self.model.load_state_dict(state)
        console.print(
            f"joint training: AUC {reached:.4f} on select after {start:.4f}, "
            f"{'kept' if kept else 'not kept'}",
            highlight=False,
            soft_wrap=True,
        )
        return epochs_of(candidate), {
            **costs_of(candidate),
            "finetune_kept": kept,
            "best_epoch": metrics["best_epoch"] if kept else 0,
        }

    def _evaluate(self, interruption: Interruption) -> float:
        size, check = self.model.image_size, interruption.check
        return self.pool.evaluate(self.model, "select", size, check).metrics.auc
