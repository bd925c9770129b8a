"""`search refit`: a candidate's recipe, trained as long as told on more than it was searched on.

The result lies in refits/NAME as a candidate does. What it was trained on is written in its recipe,
and no split that it has seen measures it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from search.data.inputs import canvas_of
from search.data.splits import SEEN
from search.machine.files import short_path
from search.machine.interruption import Interrupted, Interruption
from search.machine.progress import Bars, tell_line
from search.machine.seconds import SECONDS
from search.pixels.loading.reading import Reader
from search.pixels.opening import add_altered, fill, open_quarantine, open_reader
from search.report.page import auc_text
from search.report.projections import write_projections
from search.report.recorded import report_figures_of
from search.run.folder import alone, clean, study_of
from search.run.refit_plan import Refit, plan_refit
from search.run.reserve import RESULTS_SECONDS
from search.settings.saved import load_settings
from search.settings.subcommands import RefitSettings
from search.study.decisions.pace import ended, next_stretch
from search.study.report_split import score_best_on_report
from search.training.candidate import HISTORY, RECIPE, Candidate
from search.training.recipe import Recipe
from search.training.shown import ShownTraining
from search.training.train import train


def run_refit(
    settings: RefitSettings, console: Console, started: float | None = None
) -> Candidate | None:
    """Trains a chosen recipe, or goes on with that, and scores it on report if it has not seen it.

    Args:
        settings: as given by the user.
        console: where progress and the result go.
        started: reading of `time.monotonic` that the time limit counts from; None is now.

    Returns:
        The refit; None if the time was up before it was complete.

    Raises:
        UserError: for bad input, before anything is trained.
        KeyboardInterrupt: after Ctrl-C, when its state is saved.
    """
    search = settings.applied(load_settings(settings.run))
    assert search.out is not None
    run = search.out
    timeout = None if settings.timeout is None else settings.timeout.total_seconds()
    interruption = Interruption(timeout, started)
    candidate: Candidate | None = None
    with alone(run), interruption.handling_signals():
        clean(search, run, console)
        try:
            refit = plan_refit(settings, search, console, interruption)
            with interruption.amid_passes(refit.runtime.device):
                candidate = _completed(refit, console, interruption)
        except Interrupted as reason:
            tell_line(console, f"{reason}: the same command goes on from there")
        else:
            paths = write_projections(run, study_of(search, run, console), console)
            for path in paths:
                tell_line(console, f"wrote {short_path(path)}")
            _tell(candidate, run, console)
    if interruption.requested:
        # A script must not go on as if it had come to its end.
        raise KeyboardInterrupt
    return candidate


def _completed(refit: Refit, console: Console, interruption: Interruption) -> Candidate:
    """Trains a refit to its end and scores it.

    Raises:
        Interrupted: if the training was interrupted; nothing is lost.
    """
    assert refit.search.out is not None
    run, unseen = refit.search.out, refit.splits.seen_by(refit.recipe.trained_on)
    with open_reader(
        refit.splits,
        canvas_of(run),
        cache=refit.search.cache,
        runtime=refit.runtime,
        quarantine=open_quarantine(run, console),
        console=console,
    ) as reader:
        if not Candidate(refit.folder).is_complete:
            fill(reader, console, interruption.check)
            if not unseen.select.empty:
                splits = add_altered(
                    refit.splits,
                    reader.side,
                    run,
                    seed=refit.search.seed,
                    console=console,
                    check=interruption.check,
                )
                refit = replace(refit, splits=splits)
        candidate = _train(refit, reader, console, interruption)
        interruption.reserved_seconds = min(interruption.reserved_seconds, RESULTS_SECONDS)
        if not unseen.report.empty:
            options = (refit.runtime, reader, console, interruption, run)
            score_best_on_report([candidate], unseen.report, *options)
    return candidate


def _train(refit: Refit, reader: Reader, console: Console, interruption: Interruption) -> Candidate:
    """Trains a refit to its end, which the time settles where it is not known.

    Raises:
        Interrupted: if it was interrupted; nothing is lost.
    """
    recipe, folder = refit.recipe, refit.folder
    if not Candidate(folder).is_complete:
        folder.mkdir(parents=True, exist_ok=True)
        recipe.save(folder / RECIPE)
        _tell_begin(refit, console)
    with Bars(console, time_left=True, transient=True) as bars:
        bar = bars.add("training", unit="batches")

        def go(recipe: Recipe, until: int | None = None) -> Candidate:
            return train(
                recipe,
                refit.splits,
                folder,
                until,
                interruption,
                runtime=refit.runtime,
                reader=reader,
                watch=ShownTraining(console, bar, recipe.epochs),
                facts=replace(refit, recipe=recipe).facts,
                checkpoint_minutes=refit.search.checkpoint_minutes,
            )

        before = looks = _looks(folder)
        while recipe.epochs is None:
            left, done = interruption.seconds_left, _images(looks)
            assert left is not None
            stretch = next_stretch(
                done,
                # Only what this command has measured: the machine may be another one.
                _seconds_per_image(looks.iloc[len(before) :], _images(before)),
                left - refit.scoring_seconds,
                decay_fraction=recipe.decay_fraction,
                first_look=refit.first_look,
            )
            if stretch.is_last:
                recipe = ended(recipe, stretch.images, done, refit.steps)
                recipe.save(folder / RECIPE)
                tell_line(console, f"the time settles its end: {recipe.epochs:.3g} epochs")
            else:
                go(recipe, stretch.images)
                looks = _looks(folder)
        return go(recipe)


def _looks(folder: Path) -> pd.DataFrame:
    path = folder / HISTORY
    empty = pd.DataFrame(columns=["images", *SECONDS], dtype=float)
    return Candidate(folder).history if path.exists() else empty


def _images(looks: pd.DataFrame) -> int:
    return 0 if looks.empty else int(looks["images"].iloc[-1])


def _seconds_per_image(looks: pd.DataFrame, before: int) -> float | None:
    """Of looks that follow one another, the first of them after so many images."""
    images = _images(looks) - before
    return float(looks[list(SECONDS)].to_numpy().sum()) / images if images > 0 else None


def _tell_begin(refit: Refit, console: Console) -> None:
    recipe = refit.recipe
    told = recipe.epochs is not None
    length = f"{recipe.epochs:.3g} epochs" if told else "as long as --timeout lets it"
    tell_line(
        console,
        f"{refit.folder.name}: the recipe of candidate {refit.candidate.name} ({recipe.backbone}, "
        f"{recipe.image_size} px) on {' and '.join(SEEN[recipe.trained_on])}, "
        f"{refit.images:,} images, {length}",
    )


def _tell(candidate: Candidate, run: Path, console: Console) -> None:
    """What came of it, and what to do with it."""
    metrics, name = candidate.metrics, candidate.name
    figures = []
    for split, found in (("select", metrics), ("report", report_figures_of(metrics))):
        if candidate.has_seen(split):
            figures.append(f"none on {split}, which it was trained on")
        else:
            figures.append(f"AUC {auc_text(found)} on {split}")
    tell_line(console, f"{name}: {float(metrics['epochs']):.3g} epochs; {'; '.join(figures)}")
    where = short_path(run)
    tell_line(console, f"beside the merged models: python -m ensemble compare --run {where}")
    tell_line(console, f"to hand it in: python -m ensemble submit --run {where} --model {name} ...")
