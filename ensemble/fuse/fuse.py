"""Fusing: several candidates inside one module that keeps the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from rich.console import Console
from scipy.special import logit

from ensemble.fuse.head_fit import MOST_IMAGES, fit_head, trunk_outputs
from ensemble.fuse.joint import FUSED, JointTraining, joint_recipe
from ensemble.fuse.knapsack import Knapsack, check_members, choose_members
from ensemble.network.heads import HeadKind, head_cost, head_overhead
from ensemble.network.model import (
    FusedNetwork,
    HeadSpec,
    ModelSpec,
    check_budget,
    feature_size,
    fuse_networks,
    keep_merged,
    summarise,
)
from ensemble.network.training import settle
from ensemble.pool.pool import Pool
from search.catalogue.timm_models import build_on_meta
from search.machine.files import file_sha256
from search.machine.interruption import Interruption
from search.machine.progress import tell_line
from search.pixels.opening import fill
from search.training.candidate import WEIGHTS, Candidate, Look
from search.training.loss import training_batches
from search.training.objective import NAMES, Yardstick
from search.training.recipe import Recipe
from search.training.train import CHECKPOINT_MINUTES

HIDDEN_SIZE = 64
"""Units of the MLP head."""


def run_fuse(
    pool: Pool,
    *,
    members: Sequence[str] | None = None,
    head: HeadKind = "weights",
    finetune_epochs: int = 0,
    discard: bool = False,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    console: Console | None = None,
    interruption: Interruption | None = None,
) -> Candidate:
    """Chooses members, fuses them, fits the head, and keeps the model in merged/fused.

    Args:
        pool: the candidates.
        members: names; None chooses the set that is best on select and fits the budget.
        head: see `ensemble.network.heads`.
        finetune_epochs: epochs of training trunks and head together; the result is kept only if it
            is better on select.
        discard: delete an unfinished joint training of other settings or members.
        checkpoint_minutes: save the state of a joint training so often.
        console: is told what happens.
        interruption: asked between batches, and between the sets that are chosen from.

    Raises:
        UserError: if the members are unknown, fewer than two, or over the budget, or an unfinished
            joint training would have to be discarded.
        Interrupted: if asked to stop; the model is not written then, and the same command goes on
            from the last batch of a joint training.
    """
    console = console or Console(quiet=True)
    interruption = interruption or Interruption()
    head_spec = HeadSpec(head, HIDDEN_SIZE if head == "mlp" else 0)
    chosen = find_members(pool, members, head_spec, interruption.check)
    tell_line(console, f"fusing {', '.join(c.name for c in chosen)}, head {head}")
    model = fuse_networks([c.load() for c in chosen], head_spec, pool.settings.seed)
    check_budget(model, pool.catalogue.budget, f"the fused network of {len(chosen)} members")
    recipe = joint_recipe(chosen[0].recipe, model.image_size, finetune_epochs, pool)
    joint: JointTraining | None = None
    if finetune_epochs:
        hashes = [[c.name, file_sha256(c.path / WEIGHTS)] for c in chosen]
        joint = JointTraining(pool, model, recipe, {"members": hashes, "head": asdict(head_spec)})
        leftover = joint.leftover()
        settle([leftover] if leftover else [], discard=discard, console=console)

    if joint is not None or head != "mean":
        fill(pool.reader, console, interruption.check)

    def fit() -> dict[str, Any]:
        if head == "mean":
            return {}
        return _fit_head(pool, model, chosen[0].recipe, console, interruption)

    history: tuple[Look, ...] = ()
    if joint is None:
        figures = fit()
        recipe = replace(recipe, precision="fp32")
    else:
        recipe, history, figures = joint.complete(fit, console, interruption, checkpoint_minutes)
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
        on_batch=interruption.check,
    )
    if joint is not None:
        joint.training.clear()
    tell_line(console, summarise(candidate))
    return candidate


def find_members(
    pool: Pool,
    names: Sequence[str] | None,
    head: HeadSpec,
    check: Callable[[], None] = lambda: None,
) -> tuple[Candidate, ...]:
    """The candidates to fuse, best on select first.

    Args:
        pool: the candidates.
        names: of the members; None chooses them.
        head: takes its part of the budget.
        check: called before each set is valued; what it raises ends the choice.

    Raises:
        UserError: if the named ones, or any two, do not fit the budget together with the head.
    """
    everyone = pool.candidates if names is None else pool.choose(names)
    scores = pool.judged_scores([c.name for c in everyone])
    averages_logits = head.kind == "weights"
    if averages_logits:
        # A margin above 36 is a probability of 1 in double precision.
        scores = logit(scores.clip(np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg))
    knapsack = Knapsack(
        names=tuple(c.name for c in everyone),
        scores=scores,
        is_log_odds=averages_logits,
        yardstick=pool.yardstick,
        costs=np.array([_cost(c, head) for c in everyone], np.int64),
        room=pool.catalogue.budget - head_overhead(head.kind, head.hidden_size),
    )
    if names is None:
        return tuple(everyone[index] for index in choose_members(knapsack, check=check))
    check_members(knapsack, tuple(range(len(everyone))), check)
    return everyone


def _cost(candidate: Candidate, head: HeadSpec) -> tuple[int, int]:
    """Parameters by thop and exactly that a candidate brings, its part of the head included."""
    metrics, recipe = candidate.metrics, candidate.recipe
    size = 0
    if head.kind == "mlp":
        size = feature_size(build_on_meta(recipe.architecture, recipe.model_args))
    extra = head_cost(head.kind, size, head.hidden_size)
    return metrics["params_thop"] + extra, metrics["params_exact"] + extra


def _fit_head(
    pool: Pool, model: FusedNetwork, recipe: Recipe, console: Console, interruption: Interruption
) -> dict[str, Any]:
    """Fits the head on fit, in the best member's augmentation: trunks know the images as they are
    too well. Chooses on select."""
    check = interruption.check
    loader = training_batches(pool.splits.fit, recipe, pool.reader)
    on_fit = trunk_outputs(model, loader, pool.runtime, check, limit=MOST_IMAGES)
    select = pool.loader("select")
    on_select = trunk_outputs(model, select, pool.runtime, check)
    yardstick = Yardstick.for_table(select.table, pool.objective)
    found = fit_head(model.head, on_fit, on_select, yardstick, seed=pool.settings.seed, check=check)
    tell_line(
        console,
        f"head fitted on {len(on_fit.targets):,} images: {NAMES[pool.objective]} "
        f"{found.reached:.4f} on select, {found.start:.4f} with equal weights",
    )
    return {"head_epoch": found.best_epoch, "equal_weights": found.start}
