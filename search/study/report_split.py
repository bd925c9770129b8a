"""The report split: the best candidates are scored on it once, at the end, and nothing chooses by
it."""

from __future__ import annotations

from pathlib import Path

import optuna
import pandas as pd
from rich.console import Console

from search.data.inputs import canvas_of, check_data, read_splits
from search.errors import UserError
from search.machine.device import Runtime, default_workers, resolve_device
from search.machine.files import short_path
from search.machine.interruption import Interrupted, Interruption
from search.machine.progress import tell_line
from search.pixels.loading.reading import Reader
from search.pixels.opening import open_quarantine, open_reader
from search.settings.search import SearchSettings
from search.study.driving import kept_candidates
from search.training.candidate import Candidate, complete_refits, score_on_report


def score_what_is_missing(
    settings: SearchSettings,
    study: optuna.Study,
    run: Path,
    console: Console,
    interruption: Interruption,
) -> None:
    """Scores kept candidates, and refits that were not trained on it, on report where that is
    missing and can be done here."""
    refits = [refit for refit in complete_refits(run) if not refit.has_seen("report")]
    missing = [c for c in [*kept_candidates(study, run), *refits] if c.report_scores is None]
    if not missing:
        return
    try:
        splits = read_splits(settings)
        check_data(run, splits)
        device = resolve_device(settings.device)
    except UserError as error:
        names = ", ".join(candidate.name for candidate in missing)
        tell_line(console, f"candidates without scores on report are left blank: {names} ({error})")
        return
    workers = default_workers(device) if settings.workers is None else settings.workers
    runtime = Runtime(device, workers)
    reading = open_reader(
        splits,
        canvas_of(run),
        cache=settings.cache,
        runtime=runtime,
        quarantine=open_quarantine(run, console),
        console=console,
    )
    with reading as reader, interruption.amid_passes(device):
        score_best_on_report(missing, splits.report, runtime, reader, console, interruption, run)


def score_best_on_report(
    candidates: list[Candidate],
    table: pd.DataFrame,
    runtime: Runtime,
    reader: Reader,
    console: Console,
    interruption: Interruption,
    run: Path,
) -> None:
    """Fills in scores and figures on report, best candidates first, until the time is up.

    The only use of the report split in a search; nothing chooses by it.
    """
    missing = [candidate for candidate in candidates if candidate.report_scores is None]
    for done, candidate in enumerate(missing):
        try:
            interruption.check()
            tell_line(console, f"scoring candidate {candidate.name} on report")
            try:
                network = candidate.load()
            except UserError as error:
                tell_line(console, f"left without scores on report: {error}")
                continue
            score_on_report(candidate, network, table, runtime, reader, interruption.check)
        except (RuntimeError, FloatingPointError) as error:
            # Damaged weights, or an image that does not fit into memory: the others are scored.
            reason = " ".join(str(error).split())[:300]
            tell_line(
                console, f"candidate {candidate.name} could not be scored on report: {reason}"
            )
            continue
        except Interrupted:
            names = ", ".join(candidate.name for candidate in missing[done:])
            tell_line(
                console,
                f"not scored on report: {names}; `python -m search report --out "
                f"{short_path(run)}` scores them",
            )
            return
