"""A merged model on disk: counted, scored on select and report, kept with its spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ensemble.choice import COMPARISON
from ensemble.model import SPEC, FusedNetwork, ModelSpec
from ensemble.origin import judge_recipe
from ensemble.pool import Pool
from search.candidate import METRICS, REPORT_SCORES, WEIGHTS, Candidate, save_candidate, score_table
from search.errors import UserError
from search.rules import Counts, count_parameters, counter, over_budget
from search.training.checkpoint import copy_state
from search.training.network import Network
from search.training.recipe import Recipe
from search.training.records import EpochRecord

MERGED = "merged"


def merged_folder(run: Path, name: str) -> Path:
    """Where a run keeps a merged model: "soup-greedy", "soup-uniform", "fused", "distilled"."""
    return run / MERGED / name


def merged_models(run: Path) -> tuple[Candidate, ...]:
    """The merged models of a run that are complete, by name."""
    paths = sorted((run / MERGED).glob(f"*/{METRICS}"))
    return tuple(Candidate(path.parent) for path in paths if (path.parent / SPEC).exists())


def check_budget(model: Network | FusedNetwork, budget: int, what: str) -> Counts:
    """Counts a model both ways.

    Args:
        model: its own image size is counted at.
        budget: largest number of parameters, for both counts.
        what: names the model in the error.

    Raises:
        UserError: if a count is over the budget: which, and by how much.
    """
    counts = count_parameters(model, model.image_size)
    if over_budget(counts, budget):
        excess = max(counts.params_exact, counts.params_thop) - budget
        raise UserError(
            f"{what} must have at most {budget:,} parameters, found {counts.params_exact:,} "
            f"exactly and {counts.params_thop:,} by thop: {excess:,} too many"
        )
    return counts


def keep_merged(
    pool: Pool,
    name: str,
    model: Network | FusedNetwork,
    spec: ModelSpec,
    recipe: Recipe,
    *,
    history: Sequence[EpochRecord] = (),
    figures: Mapping[str, Any] | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Candidate:
    """Counts and scores a finished model and writes its folder.

    Nothing is written before it was scored. What the folder held before is replaced file by file;
    metrics.json goes first and comes last, so that a folder with it is whole. A comparison that was
    made before is gone.

    Args:
        pool: whose run it belongs to.
        name: of its folder, see `merged_folder`.
        model: in its final state.
        spec: rebuilds it.
        recipe: what it was trained with, if it was; only for people to read where it is fused.
        history: one record an epoch of its own training.
        figures: further entries of metrics.json.
        on_batch: called between batches; what it raises ends the scoring.

    Raises:
        UserError: if either count of its parameters is over the budget.
    """
    counts = check_budget(model, pool.catalogue.budget, f"the model of {name}")
    select = pool.evaluate(model, "select", model.image_size, on_batch)
    report = pool.evaluate(model, "report", model.image_size, on_batch)
    metrics = {
        **_row(pool, spec, counts, model.image_size),
        **(figures or {}),
        **select.metrics.to_dict(),
    }
    folder = merged_folder(pool.run, name)
    folder.mkdir(parents=True, exist_ok=True)
    # The weights too: what is killed here must not leave old weights under a new origin. And a
    # comparison recommends what it measured, not what took its place.
    stale = [folder / name for name in (METRICS, REPORT_SCORES, WEIGHTS)]
    for path in (pool.run / COMPARISON, *stale):
        path.unlink(missing_ok=True)
    spec.save(folder / SPEC)
    candidate = save_candidate(
        folder,
        recipe=recipe,
        metrics=metrics,
        history=history,
        scores=score_table(pool.splits.select, select.predictions),
        weights=copy_state(model),
    )
    candidate.save_report(pool.splits.report, report.predictions, report.metrics.to_dict())
    return candidate


def summarise(candidate: Candidate) -> str:
    """One line for the terminal."""
    metrics = candidate.metrics
    return (
        f"{candidate.name}: {metrics['params_exact'] / 1e6:.1f}M parameters exactly, "
        f"{metrics['params_thop'] / 1e6:.1f}M by thop, AUC {metrics['auc']:.4f} on select, "
        f"{metrics['report']['auc']:.4f} on report"
    )


def _row(pool: Pool, spec: ModelSpec, counts: Counts, image_size: int) -> dict[str, Any]:
    """The columns of leaderboard.csv that are no figures, and where the model comes from."""
    origins = [judge_recipe(recipe, pool.catalogue) for recipe in spec.trunks]
    teachers = [teacher.pretraining for teacher in spec.teachers]
    return {
        "method": spec.method,
        "backbone": " + ".join(recipe.backbone for recipe in spec.trunks),
        "pretraining": "; ".join(
            dict.fromkeys([*(origin.pretraining for origin in origins), *teachers])
        ),
        "params_thop": counts.params_thop,
        "params_exact": counts.params_exact,
        "gmacs": counts.macs / 1e9,
        "counter": counter(),
        "image_size": image_size,
        "members": list(spec.merged_from),
        "overrides": list(spec.overrides),
        "notes": list(spec.notes),
    }
