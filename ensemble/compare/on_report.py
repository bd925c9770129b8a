"""Scores of all models on report side by side, of the images that every one of them could read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rich.console import Console

from ensemble.network.model import merged_models
from ensemble.pool.alignment import align_scores
from ensemble.pool.pool import Pool
from search.errors import UserError
from search.machine.progress import tell_line
from search.training.candidate import REPORT_SCORES, complete_refits, score_on_report


def with_all_models(
    pool: Pool, console: Console, on_batch: Callable[[], None] = lambda: None
) -> Pool:
    """The pool, its report with a column for the best single candidate, every merged model and
    every refit that has not seen it, by the model's folder relative to the run.

    An image that was broken while one of them was scored is left out for all. A refit that was not
    scored on report is scored now.

    Args:
        pool: of the run.
        console: is told of images that are left out.
        on_batch: called after every batch that is scored; what it raises ends that.

    Raises:
        UserError: if a merged model has no scores, or was scored on other images, or too many
            images are lacking.
    """
    refits = complete_refits(pool.run)
    for refit in refits:
        if not refit.has_seen("report") and refit.report_scores is None:
            table, network = pool.splits.report, refit.load()
            score_on_report(refit, network, table, pool.runtime, pool.reader, on_batch)
    scores = {}
    for model in (pool.best, *merged_models(pool.run), *refits):
        if model.has_seen("report"):
            continue
        found = model.report_scores
        if found is None:
            raise UserError(
                f"{model.path} must hold scores on report, but {REPORT_SCORES} is gone; make this "
                "model anew"
            )
        scores[model.path.relative_to(pool.run).as_posix()] = found
    split = pool.splits.report
    aligned = align_scores(
        scores,
        split,
        set(split["img_name"]) - set(pool.report["img_name"]),
        limit_fraction=pool.reader.quarantine.limit_fraction,
        tell=lambda line: tell_line(console, line),
    )
    return replace(pool, report=pool.report.merge(aligned[["img_name", *scores]], on="img_name"))
