"""Fusing: several candidates inside one module that keeps the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from rich.console import Console
from scipy.special import logit

from ensemble.head_fit import fit_head, trunk_outputs
from ensemble.heads import HeadKind, head_cost, head_overhead
from ensemble.members import Knapsack, check_members, choose_members
from ensemble.merged import check_budget, keep_merged, summarise
from ensemble.model import FusedNetwork, HeadSpec, ModelSpec, feature_size, fuse_networks
from ensemble.pool import Pool
from search.candidate import Candidate
from search.data.augment import train_transform
from search.data.loaders import Loader, train_loader
from search.interruption import Interruption
from search.timm_models import build_on_meta
from search.training.loop import fit
from search.training.loss import ClassificationLoss
from search.training.recipe import Recipe
from search.training.records import EpochRecord, FitResult, StepRecord

FUSED = "fused"
HIDDEN_SIZE = 64
"""Units of the MLP head."""

FINETUNE_RATE = 0.1
"""Of the best member's learning rate: trained trunks need smaller steps than untrained ones."""


def run_fuse(
    pool: Pool,
    *,
    members: Sequence[str] | None = None,
    head: HeadKind = "weights",
    finetune_epochs: int = 0,
    console: Console | None = None,
    interruption: Interruption | None = None,
) -> Candidate:
    """Chooses members, fuses them, fits the head, and keeps the model in merged/fused.

    Args:
        pool: the candidates.
        members: names; None chooses the set with the best AUC on select that fits the budget.
        head: see `ensemble.heads`.
        finetune_epochs: epochs of training trunks and head together; the result is kept only if it
            is better on select.
        console: is told what happens.
        interruption: asked between batches.

    Raises:
        UserError: if the members are unknown, fewer than two, or over the budget.
        Interrupted: if asked to stop; nothing is written then.
    """
    console = console or Console(quiet=True)
    fusing = _Fusing(pool, console, interruption or Interruption())
    head_spec = HeadSpec(head, HIDDEN_SIZE if head == "mlp" else 0)
    chosen = find_members(pool, members, head_spec)
    console.print(
        f"fusing {', '.join(c.name for c in chosen)}, head {head}", highlight=False, soft_wrap=True
    )
    model = fuse_networks([c.load() for c in chosen], head_spec, pool.settings.seed)
    check_budget(model, pool.catalogue.budget, f"the fused network of {len(chosen)} members")
    figures: dict[str, Any] = {}
    if head != "mean":
        figures |= fusing.fit_head(model, chosen[0].recipe)
    recipe = joint_recipe(chosen[0].recipe, model.image_size, finetune_epochs, pool)
    history: tuple[EpochRecord, ...] = ()
    if finetune_epochs:
        history, more = fusing.finetune(model, recipe)
        figures |= more
    names = tuple(c.name for c in chosen)
    spec = ModelSpec(
        kind="fused",
        trunks=tuple(c.recipe for c in chosen),
        head=head_spec,
        method="fused",
        merged_from=names,
        overrides=pool.overrides(names),
    )
    candidate = keep_merged(
        pool,
        FUSED,
        model,
        spec,
        replace(recipe, backbone=" + ".join(t.backbone for t in spec.trunks), architecture=FUSED),
        history=history,
        figures=figures,
        on_batch=fusing.interruption.check,
    )
    console.print(summarise(candidate), highlight=False, soft_wrap=True)
    return candidate


def find_members(pool: Pool, names: Sequence[str] | None, head: HeadSpec) -> tuple[Candidate, ...]:
    """The candidates to fuse, best on select first.

    Raises:
        UserError: if the named ones, or any two, do not fit the budget together with the head.
    """
    everyone = pool.candidates if names is None else pool.choose(names)
    scores = pool.select_scores([c.name for c in everyone])
    averages_logits = head.kind == "weights"
    if averages_logits:
        # A margin above 36 is a probability of 1 in double precision.
        scores = logit(scores.clip(np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg))
    knapsack = Knapsack(
        names=tuple(c.name for c in everyone),
        scores=scores,
        is_log_odds=averages_logits,
        targets=pool.select_targets,
        costs=np.array([_cost(c, head) for c in everyone], np.int64),
        room=pool.catalogue.budget - head_overhead(head.kind, head.hidden_size),
    )
    if names is None:
        return tuple(everyone[index] for index in choose_members(knapsack))
    check_members(knapsack, tuple(range(len(everyone))))
    return everyone


def joint_recipe(best: Recipe, image_size: int, epochs: int, pool: Pool) -> Recipe:
    """The recipe of the joint training: the best member's, with smaller steps, at the fused
    network's image size, computed as this machine can.

    No mixup and no averaging: the few epochs start from trained networks.
    """
    on_cuda = pool.runtime.on_cuda
    precision: Literal["fp32", "bf16", "fp16"] = best.precision if on_cuda else "fp32"
    return replace(
        best,
        image_size=image_size,
        epochs=epochs,
        learning_rate=best.learning_rate * FINETUNE_RATE,
        mixup_alpha=0.0,
        cutmix_alpha=0.0,
        ema_decay=0.0,
        freeze_norm_fraction=1.0,
        precision=precision,
        compile=False,
        seed=pool.settings.seed,
    )


def _cost(candidate: Candidate, head: HeadSpec) -> tuple[int, int]:
    """Parameters by thop and exactly that a candidate brings, its part of the head included."""
    metrics, recipe = candidate.metrics, candidate.recipe
    size = 0
    if head.kind == "mlp":
        size = feature_size(build_on_meta(recipe.architecture, recipe.model_args))
    extra = head_cost(head.kind, size, head.hidden_size)
    return metrics["params_thop"] + extra, metrics["params_exact"] + extra


@dataclass(frozen=True)
class _Fusing:
    """Training on a pool's images, told to a console."""

    pool: Pool
    console: Console
    interruption: Interruption

    def fit_head(self, model: FusedNetwork, recipe: Recipe) -> dict[str, Any]:
        """Fits the head on fit, in the best member's augmentation: trunks know the images as they
        are too well. Chooses on select."""
        pool, check = self.pool, self.interruption.check
        loader = _fit_loader(pool, replace(recipe, image_size=model.image_size))
        on_fit = trunk_outputs(model, loader, pool.runtime, check)
        select = pool.loader("select", model.image_size)
        on_select = trunk_outputs(model, select, pool.runtime, check)
        found = fit_head(model.head, on_fit, on_select, seed=pool.settings.seed)
        self.console.print(
            f"head fitted on {len(on_fit.targets):,} images: AUC {found.select_auc:.4f} on select, "
            f"{found.start_auc:.4f} with equal weights",
            highlight=False,
            soft_wrap=True,
        )
        return {"head_epoch": found.best_epoch, "equal_weights_auc": found.start_auc}

    def finetune(
        self, model: FusedNetwork, recipe: Recipe
    ) -> tuple[tuple[EpochRecord, ...], dict[str, Any]]:
        """Trains trunks and head together; the start stays if no epoch is better on select."""
        start = self._evaluate(model)
        state = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
        result = self._fit(model, recipe)
        reached = result.best.metrics.auc
        kept = reached > start
        if not kept:
            model.load_state_dict(state)
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

    def _evaluate(self, model: FusedNetwork) -> float:
        size, check = model.image_size, self.interruption.check
        return self.pool.evaluate(model, "select", size, check).metrics.auc

    def _fit(self, model: FusedNetwork, recipe: Recipe) -> FitResult:
        pool, check = self.pool, self.interruption.check
        counts = np.bincount(pool.splits.fit["target"], minlength=2)

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
            model,
            _fit_loader(pool, recipe),
            ClassificationLoss(recipe, (int(counts[0]), int(counts[1]))),
            recipe,
            evaluate=lambda module: pool.evaluate(module, "select", model.image_size, check),
            runtime=pool.runtime,
            on_epoch=on_epoch,
            on_step=on_step,
        )


def _fit_loader(pool: Pool, recipe: Recipe) -> Loader:
    return train_loader(
        pool.splits.fit,
        train_transform(recipe.augmentation, recipe.augmentation_strength, recipe.image_size),
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        balance=recipe.class_balance == "sampler",
        workers=pool.runtime.workers,
        quarantine=pool.quarantine,
        pin_memory=pool.runtime.on_cuda,
    )
