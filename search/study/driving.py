"""The Optuna study of a run: create, resume, drive."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from search.errors import UserError
from search.settings import SearchSettings
from search.study.plan import Plan
from search.study.space import BASELINE, PRESET
from search.study.storage import open_storage
from search.study.trials import (
    INTERRUPTED,
    REASON,
    STATE,
    Objective,
    TrialFailed,
    complete_trials,
    drop_surplus_weights,
    enqueue_again,
    reject,
)
from search.training.candidate import METRICS

FAILURES_TO_STOP = 3
"""A study whose first so many trials all fail is stopped: the next would fail as well."""

FINGERPRINT = "fingerprint"
"""User attribute of a study: of the splits that its trials were trained and scored on."""

PREPARED = "prepared"
"""User attribute of a study whose first trials have been enqueued."""


def open_study(
    settings: SearchSettings, fingerprint: str, saved_name: str | None = None
) -> optuna.Study:
    """Creates the study of a run, or opens it.

    Args:
        settings: resolved; the last part of `out` names a new study.
        fingerprint: of the splits, so that a shared storage never mixes trials of other images.
        saved_name: of an existing run, whose folder may have been renamed since; None creates.

    Raises:
        UserError: if a new run's storage has a study of its name already, or an old one's has none.
    """
    assert settings.out is not None
    assert settings.epochs is not None
    # Optuna logs each trial, failed ones with a traceback; the progress display tells them.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(settings.out, settings.storage, enqueue_again)
    pruner = make_pruner(settings.pruner, settings.epochs)
    if saved_name is None:
        study = _create(storage, settings.out.name, pruner)
        study.set_user_attr(FINGERPRINT, fingerprint)
    else:
        study = _load(storage, saved_name, pruner, settings.out)
    if study.user_attrs.get(FINGERPRINT, fingerprint) != fingerprint:
        raise UserError(
            f"the study '{study.study_name}' must be of this run's images, found one of others; "
            "choose another --storage or --out"
        )
    with warnings.catch_warnings():
        # Both have been experimental since Optuna 3 and kept their meaning.
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(["AUC on select"])
        # Another seed for each resumption, or TPE would draw its first random numbers once more.
        study.sampler = TPESampler(
            seed=(settings.seed + len(study.get_trials(deepcopy=False))) % 2**32,
            multivariate=True,
            group=True,
        )
    return study


def _create(storage: BaseStorage, name: str, pruner: BasePruner) -> optuna.Study:
    # An empty one is what a process left that was killed before it wrote its settings.
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", pruner=pruner, load_if_exists=True
    )
    if study.get_trials(deepcopy=False):
        raise UserError(
            f"the storage must have no study '{name}' yet, found one with trials; choose another "
            "--out, whose last part names the study"
        )
    return study


def _load(storage: BaseStorage, name: str, pruner: BasePruner, run: Path) -> optuna.Study:
    try:
        return optuna.load_study(storage=storage, study_name=name, pruner=pruner)
    except KeyError:
        raise UserError(
            f"the storage must have the study '{name}' of {run}, found none; restore it, start in "
            "the folder that a relative --storage is meant from, or choose another --out"
        ) from None


def make_pruner(name: str, epochs: int) -> BasePruner:
    """The pruner that compares trials after the same number of epochs.

    ASHA (arXiv:1810.05934) looks first after a quarter of the epochs, then each time they have
    doubled, and lets the better half go on: of the few trials that a competitor can pay for, a
    third would leave too little to merge. Hyperband (arXiv:1603.06560) runs several brackets and
    wants more than ten trials in each.
    """
    first = max(1, epochs // 4)
    if name == "asha":
        return SuccessiveHalvingPruner(min_resource=first, reduction_factor=2)
    if name == "hyperband":
        return HyperbandPruner(min_resource=first, max_resource=epochs, reduction_factor=3)
    return NopPruner()


def recover(study: optuna.Study, run: Path) -> None:
    """Closes trials that a killed process left running.

    A trial whose candidate was already complete is told as complete; any other is closed as failed
    and enqueued again. Only for storages without heartbeats, whose runs are locked to one process.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        folder = run / "candidates" / f"{trial.number:04d}"
        if trial.user_attrs.get(STATE) == "complete" and (folder / METRICS).exists():
            value = trial.user_attrs["row"]["auc"]
            study.tell(trial.number, value)
            continue
        _set(study, trial, STATE, "failed")
        _set(study, trial, REASON, "the process ended while it was running")
        _set(study, trial, INTERRUPTED, True)
        enqueue_again(study, trial)
        study.tell(trial.number, state=TrialState.FAIL)


def enqueue_first_trials(study: optuna.Study, plan: Plan, run: Path) -> None:
    """Once in a study: tells which backbones are rejected, and enqueues the challenge's baseline
    and one sensible default of each allowed backbone."""
    if study.user_attrs.get(PREPARED):
        return
    for _, verdict in plan.rejected:
        trial = study.ask()
        reject(trial, run, verdict, plan.catalogue.budget)
        study.tell(trial, state=TrialState.PRUNED)
    enqueue_baseline(study)
    for backbone in plan.space.backbones:
        # A process may have been killed amid this.
        study.enqueue_trial(plan.space.default_parameters(backbone), skip_if_exists=True)
    study.set_user_attr(PREPARED, True)


def enqueue_baseline(study: optuna.Study) -> None:
    """Enqueues the challenge's baseline, unless the study has it or is about to."""
    waiting_or_better = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)
    trials = study.get_trials(deepcopy=False, states=waiting_or_better)
    if not any(trial.user_attrs.get(PRESET) == BASELINE for trial in trials):
        study.enqueue_trial({}, user_attrs={PRESET: BASELINE})


def counted_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that count towards --trials: finished ones that were neither rejected by the rules
    nor interrupted."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished()
        # Without a state: its process was killed, and another one told Optuna.
        and trial.user_attrs.get(STATE, "rejected") != "rejected"
        and not trial.user_attrs.get(INTERRUPTED)
    ]


def trial_seconds(study: optuna.Study) -> list[float]:
    """How long each trial took that came to its end or was pruned, in seconds."""
    return [
        trial.duration.total_seconds()
        for trial in counted_trials(study)
        if trial.duration is not None and trial.state is not TrialState.FAIL
    ]


def drive(
    study: optuna.Study,
    objective: Objective,
    on_trial: Callable[[optuna.Study, FrozenTrial], None],
) -> None:
    """Runs trials until --trials or --timeout is reached or Ctrl-C is pressed.

    Args:
        study: from `open_study`.
        objective: what a trial is.
        on_trial: called after every finished trial.

    Raises:
        UserError: if the data are at fault, or nothing but failures comes.
    """
    settings = objective.plan.settings
    assert settings.trials is not None
    failures: list[str] = []

    def after_trial(study: optuna.Study, trial: FrozenTrial) -> None:
        drop_surplus_weights(study, objective.run, settings.keep)
        on_trial(study, trial)
        if trial.user_attrs.get(STATE) == "failed" and not trial.user_attrs.get(INTERRUPTED):
            failures.append(str(trial.user_attrs.get(REASON)))
        hopeless = len(failures) == FAILURES_TO_STOP and not complete_trials(study)
        if hopeless or objective.interruption.must_stop:
            study.stop()

    # In rounds: a trial that the rules reject does not count, and another one takes its turn.
    while not objective.interruption.must_stop:
        remaining = settings.trials - len(counted_trials(study))
        if remaining <= 0:
            break
        study.optimize(
            objective,
            n_trials=remaining,
            catch=(TrialFailed,),
            callbacks=[after_trial],
            # The traceback of a pruned trial keeps its network and its workers alive otherwise.
            gc_after_trial=True,
        )
        if len(failures) >= FAILURES_TO_STOP and not complete_trials(study):
            raise UserError(
                f"the first {len(failures)} trials all failed, the last with: {failures[-1]}"
            )


def _set(study: optuna.Study, trial: FrozenTrial, name: str, value: Any) -> None:
    study._storage.set_trial_user_attr(trial._trial_id, name, value)
