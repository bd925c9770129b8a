"""Training a fused network's trunks and head together, after they were trained apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from ensemble.network.model import FusedNetwork, merged_folder
from ensemble.network.unfinished import UnfinishedTraining
from ensemble.pool import Pool
from search.interruption import Interrupted, Interruption
from search.training.candidate import EpochRecord, copy_state
from search.training.device import resolve_precision
from search.training.loop import FitResult, StepRecord, fit
from search.training.loss import classification_loss, training_batches
from search.training.recipe import Recipe

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


class JointTraining:
    """One joint training of a fused network, from its start to the decision to keep it."""

    def __init__(
        self,
        pool: Pool,
        model: FusedNetwork,
        recipe: Recipe,
        console: Console,
        interruption: Interruption,
    ) -> None:
        """
        Args:
            pool: the images, and the device.
            model: its head fitted; trained in place.
            recipe: see `joint_recipe`.
            console: is told what happens.
            interruption: asked between batches.
        """
        self.pool, self.model, self.recipe = pool, model, recipe
        self.console, self.interruption = console, interruption
        self._unfinished: UnfinishedTraining | None = None

    def complete(
        self, start_identity: Mapping[str, Any]
    ) -> tuple[tuple[EpochRecord, ...], dict[str, Any]]:
        """Trains; the start stays if no epoch is better on select.

        Args:
            start_identity: what the model was made from, as plain values.

        Returns:
            One record an epoch, and figures for metrics.json.

        Raises:
            Interrupted: if asked to stop; the same training goes on after its last epoch.
        """
        start, state = self._evaluate(), copy_state(self.model)
        identity = {**start_identity, "recipe": asdict(self.recipe)}
        folder = merged_folder(self.pool.run, FUSED)
        self._unfinished = UnfinishedTraining(folder, identity, self.console, "joint training")
        try:
            result = self._fit(self._unfinished)
        except Interrupted:
            if self._unfinished.state_file.exists():
                self.console.print("interrupted: the same command goes on after the last epoch")
            raise
        reached = result.best.metrics.auc
        kept = reached > start
        if not kept:
            self.model.load_state_dict(state)
        self.console.print(
            f"joint training: AUC {reached:.4f} on select after {start:.4f}, "
            f"{'kept' if kept else 'not kept'}",
            highlight=False,
            soft_wrap=True,
        )
        return result.history, {
            "finetune_kept": kept,
            "best_epoch": result.best_epoch if kept else 0,
            "micro_batch_size": result.micro_batch_size,
            "train_seconds": round(result.train_seconds, 2),
        }

    def clear(self) -> None:
        """Removes what an interrupted training would go on from, once the model is kept."""
        if self._unfinished is not None:
            self._unfinished.clear()

    def _evaluate(self) -> float:
        size, check = self.model.image_size, self.interruption.check
        return self.pool.evaluate(self.model, "select", size, check).metrics.auc

    def _fit(self, unfinished: UnfinishedTraining) -> FitResult:
        pool, recipe, check = self.pool, self.recipe, self.interruption.check
        size, table = self.model.image_size, pool.splits.fit

        def on_step(_: StepRecord) -> None:
            check()

        def on_epoch(record: EpochRecord) -> None:
            self.console.print(
                f"  epoch {record.epoch}/{recipe.epochs}: loss {record.train_loss:.3f}, "
                f"AUC {record.select_auc:.4f}, {record.seconds:.1f} s",
                highlight=False,
                soft_wrap=True,
            )

        return fit(
            self.model,
            training_batches(table, recipe, pool.runtime, pool.quarantine),
            classification_loss(table, recipe),
            recipe,
            evaluate=lambda module: pool.evaluate(module, "select", size, check),
            runtime=pool.runtime,
            on_epoch=on_epoch,
            on_step=on_step,
            state_file=unfinished.state_file,
        )
