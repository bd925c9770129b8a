"""One process's search: open and lock the run folder, search, score on report, show what was
found."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from rich.console import Console

from search.catalogue.backbones import DEFAULT_PATH
from search.data.generated import keep_record
from search.data.inputs import canvas_of, check_data, study_name, write_data
from search.errors import UserError
from search.machine.files import BACKBONES, copy_atomically, short_path
from search.machine.interruption import Interrupted, Interruption
from search.machine.progress import tell_line
from search.pixels.canvas import describe_canvas
from search.pixels.loading.reading import Reader
from search.pixels.opening import add_altered, fill, open_quarantine, open_reader
from search.report.leaderboard import rows_from_study
from search.report.projections import write_after_trial, write_projections
from search.report.terminal import StudyProgress, introduce, print_top
from search.run.folder import alone, check_new, clean
from search.run.reserve import Reserve
from search.settings.saved import check_resumable, read_settings, write_settings
from search.settings.search import SearchSettings
from search.study.decisions.scheduler import Stop, Work, forecast, next_work
from search.study.decisions.space import BASELINE, PRESET
from search.study.driving import Search, kept_candidates
from search.study.opening import (
    POOL,
    enqueue_baseline,
    enqueue_first_trials,
    in_settled_pool,
    is_begun,
    open_study,
    recover,
    settle_pool,
)
from search.study.plan import SearchPlan, prepare
from search.study.probing import is_worth_probing, probe_pool
from search.study.report_split import score_best_on_report
from search.study.trials import claim, complete_trials, known_trials, trial_name
from search.validation.audit.warning import LEAK, leak_warnings
from search.validation.forgeries.contact_sheet import CONTACT_SHEET, write_contact_sheet


@dataclass(frozen=True, eq=False)
class _Opened:
    """A run folder that this process alone works on."""

    plan: SearchPlan
    run: Path
    study: optuna.Study
    reader: Reader
    interruption: Interruption
    console: Console


def run_search(settings: SearchSettings, console: Console, started: float | None = None) -> Path:
    """Searches, or resumes a search, and returns the run folder.

    Args:
        settings: as given by the user; defaults are filled in here.
        console: where progress and the final table go.
        started: reading of `time.monotonic` that the time limit counts from; None is now.

    Raises:
        UserError: for bad input, before anything is written.
        KeyboardInterrupt: after Ctrl-C, when everything is written.
    """
    settings = settings.resolved()
    assert settings.out is not None
    if settings.is_demo and read_settings(settings.out) is None:
        tell_line(
            console,
            f"{short_path(settings.out)} holds no run yet: searching the embedded demo set",
        )
    with _opened(settings, console, started) as opened:
        introduce(opened.plan, opened.run, console, opened.interruption.seconds_left)
        _work(opened)
    return opened.run


def run_baseline(settings: SearchSettings, console: Console, started: float | None = None) -> Path:
    """Trains the challenge's baseline as one more candidate of a run, new or existing; what else
    waits goes on waiting. Arguments and errors are those of `run_search`."""
    settings = settings.resolved()
    with _opened(settings, console, started) as opened:
        enqueue_baseline(opened.study)
        _work(opened, baseline_alone=True)
    return opened.run


@contextmanager
def _opened(settings: SearchSettings, console: Console, started: float | None) -> Iterator[_Opened]:
    """Checks everything, then opens the run folder for this process alone."""
    timeout = settings.timeout
    interruption = Interruption(None if timeout is None else timeout.total_seconds(), started)
    run = settings.out
    assert run is not None
    saved = read_settings(run)
    plan, leaks = _planned(settings, saved, console, interruption)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out must be a folder that can be made, found: {error}") from None
    try:
        with (
            alone(run),
            interruption.handling_signals(),
            interruption.amid_passes(plan.runtime.device),
        ):
            clean(settings, run, console)
            name = None if saved is None else study_name(run)
            study = open_study(settings, plan.splits.fingerprint(), name)
            if saved is None:
                source = settings.backbones or DEFAULT_PATH
                if source.resolve() != (run / BACKBONES).resolve():
                    copy_atomically(source, run / BACKBONES)
            budget = plan.catalogue.budget
            canvas = plan.space.canvas
            notes = (*plan.notes, *leaks)
            write_data(run, plan.splits, study.study_name, budget, describe_canvas(canvas), notes)
            if settings.generated is not None:
                keep_record(settings.generated, run)
            if not (run / CONTACT_SHEET).exists():
                write_contact_sheet(plan.splits, run / CONTACT_SHEET, settings.seed)
            # Last: with it the folder is a run that can be resumed.
            write_settings(settings, run)
            recover(study, run)
            quarantine = open_quarantine(run, console)
            quarantine.take_back_mended()
            with open_reader(
                plan.splits,
                canvas,
                cache=settings.cache,
                runtime=plan.runtime,
                quarantine=quarantine,
                console=console,
            ) as reader:
                narrowed = in_settled_pool(plan, study)
                yield _Opened(narrowed, run, study, reader, interruption, console)
    except StorageInternalError as error:
        raise UserError(
            f"the storage of the study must stay within reach, found: "
            f"{' '.join(str(error).split())}; the same command goes on"
        ) from error


def _planned(
    settings: SearchSettings,
    saved: Mapping[str, Any] | None,
    console: Console,
    interruption: Interruption,
) -> tuple[SearchPlan, tuple[str, ...]]:
    """What is searched, and the leaks that are known; nothing is written yet.

    Args:
        settings: resolved.
        saved: of an existing run.
        console: where progress goes.
        interruption: has the time limit; a signal ends the process there and then.

    Raises:
        UserError: for bad input, or if the time is up.
    """
    run = settings.out
    assert run is not None
    try:
        with interruption.leaving_at_once():
            if saved is None:
                check_new(run)
                plan = prepare(settings, console=console, check=interruption.check)
                leaks = _warn_of_leaks(plan, console)
                interruption.check()
                return plan, leaks
            check_resumable(settings, saved)
            plan = prepare(settings, run / BACKBONES, console, canvas_of(run), interruption.check)
            notes = check_data(run, plan.splits).get("notes") or ()
            return plan, tuple(note for note in notes if str(note).startswith(LEAK))
    except Interrupted:
        assert settings.timeout is not None
        raise UserError(
            "--timeout must leave time to search when labels are read, weights fetched and "
            f"forgeries described, found the {settings.timeout.total_seconds():g} s up before; "
            "give more: what was fetched or described is not again"
        ) from None


def _warn_of_leaks(plan: SearchPlan, console: Console) -> tuple[str, ...]:
    """What a sample of headers shows, told; never stops a search."""
    try:
        leaks = leak_warnings(plan.splits, plan.settings.seed)
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        tell_line(console, f"headers were not looked at for leaks: {problem}")
        return ()
    for line in leaks:
        tell_line(console, line)
    return leaks


def _work(opened: _Opened, *, baseline_alone: bool = False) -> None:
    """Searches, or trains the baseline alone, scores the best on report, and writes the results; an
    interruption or the time limit ends it where it can go on."""
    run, study, console = opened.run, opened.study, opened.console
    interruption = opened.interruption
    reserve = Reserve(opened.plan, run, study)
    interruption.reserved_seconds = reserve.seconds()
    is_prepared = False
    # What stops it here stops the search below, where all is told.
    with suppress(Interrupted):
        opened = _prepared(opened, baseline_alone=baseline_alone)
        is_prepared = True
    plan = opened.plan
    reserve = Reserve(plan, run, study)
    interruption.reserved_seconds = reserve.seconds()
    known = known_trials(study)
    progress = StudyProgress(
        console,
        None if baseline_alone else plan.rules.trials,
        begun=[trial_name(one) for one in known if one.state != "waiting"],
        objective=plan.settings.objective,
        best=max((trial.value or 0.0 for trial in complete_trials(study)), default=math.nan),
        seconds_ahead=lambda: _seconds_ahead(opened),
    )

    def after_trial(number: int) -> None:
        write_after_trial(run, study, number, console)
        if interruption.deadline is not None and reserve.is_due:
            started = time.monotonic()
            write_projections(run, study, console)
            reserve.measured(time.monotonic() - started)
        interruption.reserved_seconds = reserve.seconds()

    search = Search(plan, run, study, opened.reader, progress, interruption, after_trial)
    problem: Exception | None = None
    reason = ""
    try:
        with progress:
            if baseline_alone:
                _train_baseline(search)
                remains = _waiting_baselines(study) > 0
            else:
                reason = search.drive()
                remains = not is_prepared or not isinstance(_next(opened), Stop)
            stopped_by_time = interruption.timed_out and remains
            finishes = is_prepared and not (baseline_alone or interruption.requested)
            if stopped_by_time and finishes:
                interruption.reserved_seconds = reserve.results_seconds
                search.keep_best()
        interruption.reserved_seconds = reserve.results_seconds
        if not interruption.requested:
            score_best_on_report(
                kept_candidates(study, run),
                plan.splits.report,
                plan.runtime,
                opened.reader,
                console,
                interruption,
                run,
            )
    except (UserError, OSError, StorageInternalError) as error:
        # The candidates are there, and their figures on select: told first.
        problem = error
        stopped_by_time = False
    paths = write_projections(run, study, console)
    print_top(rows_from_study(study, run), console)
    for path in paths:
        tell_line(console, f"wrote {short_path(path)}")
    if problem is not None:
        raise problem
    if reason:
        tell_line(console, f"the search ended early: {reason}")
    if interruption.requested:
        tell_line(console, "interrupted: what was begun goes on from where it is")
    if stopped_by_time:
        tell_line(console, "the time limit was reached: what was begun goes on from where it is")
    if stopped_by_time or interruption.requested:
        command = "baseline" if baseline_alone else "run"
        tell_line(console, f"resume with: python -m search {command} --out {short_path(run)}")
    if interruption.requested:
        # All is written; a script must not go on as if the search had come to its end.
        raise KeyboardInterrupt


def _prepared(opened: _Opened, *, baseline_alone: bool) -> _Opened:
    """All that comes before the first trial: canvases are cached, images of select are altered, the
    pool is probed, and what is tried first waits; each is done once in a run.

    Raises:
        Interrupted: if it was interrupted; it goes on from there the next time.
    """
    study, interruption, console = opened.study, opened.interruption, opened.console
    if baseline_alone or not isinstance(_next(opened), Stop):
        fill(opened.reader, console, interruption.check)
        opened = replace(opened, plan=_with_altered(opened))
        if not baseline_alone and not is_begun(study):
            opened = _probed(opened)
    if not baseline_alone:
        enqueue_first_trials(study, opened.plan)
    return opened


def _with_altered(opened: _Opened) -> SearchPlan:
    """With the altered images that `auc_stress` is of."""
    plan = opened.plan
    splits = add_altered(
        plan.splits,
        plan.space.canvas,
        opened.run,
        seed=plan.settings.seed,
        console=opened.console,
        check=opened.interruption.check,
    )
    return replace(plan, splits=splits)


def _probed(opened: _Opened) -> _Opened:
    """With the pool that a probe leaves, where there is to be one."""
    plan, study, console = opened.plan, opened.study, opened.console
    if not plan.settings.probe or POOL in study.user_attrs or not is_worth_probing(plan):
        return opened
    probes = probe_pool(
        plan, opened.run, opened.reader, opened.interruption, partial(tell_line, console)
    )
    settle_pool(study, probes)
    return replace(opened, plan=in_settled_pool(plan, study))


def _next(opened: _Opened) -> Work:
    """What the search would do next."""
    known, left = known_trials(opened.study), opened.interruption.seconds_left
    return next_work(known, opened.plan.rules, left)


def _seconds_ahead(opened: _Opened) -> float | None:
    """How long the search will go on; None before anything was measured."""
    left = opened.interruption.seconds_left
    known = known_trials(opened.study)
    speeds = [one.seconds / one.images for one in known if one.images]
    if left is not None or not speeds:
        return left
    return forecast(known, opened.plan.rules, median(speeds))


def _waiting_baselines(study: optuna.Study) -> int:
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return sum(trial.user_attrs.get(PRESET) == BASELINE for trial in waiting)


def _train_baseline(search: Search) -> None:
    """Trains the baseline if it waits; one that is complete already stays."""
    waiting = search.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    for trial in waiting:
        if search.interruption.must_stop:
            return  # what comes before it may not be there
        if trial.user_attrs.get(PRESET) == BASELINE:
            reason = search.run_trial(claim(search.study, trial))
            if reason is not None:
                raise UserError(f"the baseline failed: {reason}")
