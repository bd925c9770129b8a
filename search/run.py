"""One process's work on a run folder: lock it, search, score on report, write what was found."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial
from rich.console import Console

from search.catalogue.backbones import DEFAULT_PATH
from search.data.inputs import check_data, study_name, write_data
from search.data.quarantine import Quarantine
from search.errors import UserError
from search.interruption import Interrupted, Interruption
from search.report.leaderboard import rows_from_study, write_leaderboard
from search.report.page import write_report
from search.report.terminal import StudyProgress, describe_run, introduce, print_top, short_path
from search.settings import (
    SearchSettings,
    check_resumable,
    load_settings,
    read_settings,
    write_settings,
)
from search.study.driving import (
    counted_trials,
    drive,
    enqueue_baseline,
    enqueue_first_trials,
    open_study,
    recover,
    trial_seconds,
)
from search.study.plan import Plan, prepare
from search.study.storage import JOURNAL, drop_torn_line
from search.study.trials import Objective, complete_trials, kept_candidates

BACKBONES = "backbones.yaml"
LOCK = ".lock"
LEADERBOARD = "leaderboard.csv"
QUARANTINE = "quarantine.csv"


def run_search(settings: SearchSettings, console: Console) -> Path:
    """Searches, or resumes a search, and returns the run folder.

    Args:
        settings: as given by the user; defaults are filled in here.
        console: where progress and the final table go.

    Raises:
        UserError: for bad input, before anything is written.
        KeyboardInterrupt: after Ctrl-C, when everything is written.
    """
    settings = settings.resolved()
    assert settings.out is not None
    if settings.is_demo and read_settings(settings.out) is None:
        console.print(
            f"{short_path(settings.out)} holds no run yet: searching the embedded demo set",
            highlight=False,
            soft_wrap=True,
        )
    with _opened(settings, console) as (plan, run, study):
        enqueue_first_trials(study, plan, run)
        _search(plan, run, study, console)
    return run


def run_baseline(settings: SearchSettings, console: Console) -> Path:
    """Trains the challenge's baseline as one more candidate of a run, new or existing."""
    settings = settings.resolved()
    with _opened(settings, console) as (plan, run, study):
        before = len(counted_trials(study))
        enqueue_baseline(study)
        waiting = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        is_next = bool(waiting) and waiting[0].user_attrs.get("preset") == "baseline"
        if waiting and not is_next:
            raise UserError(
                f"{run} has {len(waiting)} trials waiting before the baseline; finish them with "
                f"`python -m search run --out {run}`"
            )
        once = replace(plan, settings=replace(plan.settings, trials=before + is_next))
        _search(once, run, study, console)
    return run


def write_run_report(out: Path, console: Console) -> list[Path]:
    """Scores the kept candidates on report where that is missing, and writes leaderboard.csv,
    plots and report.html of an existing run; returns their paths.

    Raises:
        UserError: if the folder holds no search.
    """
    settings = load_settings(out)
    assert settings.out is not None
    run = settings.out
    plan = prepare(settings, run / BACKBONES, for_training=False)
    check_data(run, plan.splits)
    study = open_study(settings, plan.splits.fingerprint(), study_name(run))
    quarantine = open_quarantine(run, console)
    interruption = Interruption()
    progress = StudyProgress(console, 0)
    objective = Objective(plan, run, quarantine, progress, interruption)
    try:
        with FileLock(run / LOCK, timeout=0), interruption.handling_signals():
            score_on_report(objective, study, run, console)
    except Timeout:
        console.print("the search is running: the report split is left to its end")
    return _write_results(plan, run, study, console)


def score_on_report(objective: Objective, study: optuna.Study, run: Path, console: Console) -> None:
    """Fills in scores and figures on report of the candidates whose weights are kept.

    The only use of the report split in a search; nothing chooses by it.
    """
    table = objective.plan.splits.report
    missing = [c for c in kept_candidates(study, run) if c.report_scores is None]
    for candidate in missing:
        console.print(f"scoring candidate {candidate.name} on report", highlight=False)
        network = candidate.load()
        evaluation = objective.evaluator(network.image_size, "report")(network)
        candidate.save_report(table, evaluation.predictions, evaluation.metrics.to_dict())


def open_quarantine(run: Path, console: Console) -> Quarantine:
    """The quarantine of a run, which tells of what it sets aside."""
    return Quarantine(
        run / QUARANTINE,
        tell=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
    )


@contextmanager
def _opened(
    settings: SearchSettings, console: Console
) -> Iterator[tuple[Plan, Path, optuna.Study]]:
    """Checks everything, then opens the run folder for this process alone."""
    run = settings.out
    assert run is not None
    saved = read_settings(run)
    if saved is None:
        plan = prepare(settings)
    else:
        check_resumable(settings, saved)
        plan = prepare(settings, run / BACKBONES)
        check_data(run, plan.splits)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out must be a folder that can be made, found: {error}") from None
    try:
        with FileLock(run / LOCK, timeout=0):
            if settings.storage is None and drop_torn_line(run):
                console.print(
                    f"{JOURNAL} ended in the middle of a line, which is dropped: a trial that was "
                    "running then is tried again",
                    highlight=False,
                    soft_wrap=True,
                )
            name = None if saved is None else study_name(run)
            study = open_study(settings, plan.splits.fingerprint(), name)
            if saved is None:
                source = settings.backbones or DEFAULT_PATH
                if source.resolve() != (run / BACKBONES).resolve():
                    shutil.copyfile(source, run / BACKBONES)
                write_data(run, plan.splits, study.study_name)
            write_settings(settings, run)
            if settings.storage is None:
                recover(study, run)
            yield plan, run, study
    except Timeout:
        raise UserError(
            f"{run} must be searched by one process at a time, and another one is at it; wait for "
            "it, or choose another --out"
        ) from None


def _search(plan: Plan, run: Path, study: optuna.Study, console: Console) -> None:
    timeout = plan.settings.timeout
    interruption = Interruption(None if timeout is None else timeout.total_seconds())
    assert plan.settings.trials is not None
    progress = StudyProgress(
        console,
        plan.settings.trials,
        finished=len(counted_trials(study)),
        best=max((trial.value or 0.0 for trial in complete_trials(study)), default=math.nan),
        durations=trial_seconds(study),
        seconds_left=lambda: interruption.seconds_left,
    )
    quarantine = open_quarantine(run, console)
    quarantine.take_back_mended()
    objective = Objective(plan, run, quarantine, progress, interruption)

    def after_trial(study: optuna.Study, _trial: FrozenTrial) -> None:
        try:
            write_leaderboard(rows_from_study(study, run), run / LEADERBOARD)
        except OSError as error:
            # A spreadsheet that holds the file open must not cost the night.
            console.print(f"{LEADERBOARD} is left as it was: {error}", soft_wrap=True)

    introduce(plan, run, console)
    problem: UserError | None = None
    with interruption.handling_signals():
        try:
            with progress:
                drive(study, objective, after_trial)
        finally:
            write_leaderboard(rows_from_study(study, run), run / LEADERBOARD)
        stopped = interruption.must_stop
        if interruption.requested:
            console.print("interrupted: the running trial was closed and will be tried again")
        else:
            if stopped:
                # First what there is: a machine that is lent for a time may be taken away now.
                _write_results(plan, run, study, console)
            try:
                # The time limit is for trials; scoring the kept ones is part of the result.
                interruption.deadline = None
                score_on_report(objective, study, run, console)
            except Interrupted:
                console.print("interrupted while scoring on report")
            except UserError as error:
                # The candidates are there, and their figures on select: told first.
                problem = error
    paths = _write_results(plan, run, study, console)
    leaderboard = rows_from_study(study, run)
    print_top(leaderboard, console)
    for path in paths:
        console.print(f"wrote {short_path(path)}", highlight=False, soft_wrap=True)
    if stopped or interruption.requested:
        console.print(
            f"resume with: python -m search run --out {short_path(run)}",
            highlight=False,
            soft_wrap=True,
        )
    if problem is not None:
        raise problem
    if interruption.requested:
        # All is written; a script must not go on as if the search had come to its end.
        raise KeyboardInterrupt


def _write_results(plan: Plan, run: Path, study: optuna.Study, console: Console) -> list[Path]:
    leaderboard = rows_from_study(study, run)
    write_leaderboard(leaderboard, run / LEADERBOARD)
    with console.status("drawing plots"):
        paths = write_report(run, study, leaderboard, describe_run(plan))
    report = next(path for path in paths if path.suffix == ".html")
    return [run / LEADERBOARD, report, run / "plots"]
