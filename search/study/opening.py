"""The Optuna study of a run: created or opened, recovered after a kill, prepared."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from search.errors import UserError
from search.machine.files import CANDIDATES
from search.settings.search import SearchSettings
from search.study.decisions.space import BASELINE, PRESET
from search.study.plan import SearchPlan
from search.study.prior import Probe, ordered
from search.study.storage import open_storage
from search.study.trials import (
    PAUSED,
    RECIPE,
    RESTING,
    ROW,
    STATE,
    UNTIL,
    add_rejected,
    claim,
    counted_trials,
    looks_of,
    new_trial,
    paused_trials,
    put_back,
    record_outcome,
    tell_complete,
    trial_name,
)
from search.training.candidate import Candidate
from search.training.objective import NAMES
from search.training.train import free_fields

FINGERPRINT = "fingerprint"
"""User attribute of a study: of the splits that its trials were trained and scored on."""

POOL = "pool"
"""User attribute of a study that was probed: the backbones that are searched, best first."""

DEFAULT = "default"
"""Value of the user attribute `preset` of a backbone's default, enqueued before the search."""


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
    # Optuna logs each trial, failed ones with a traceback; the progress display tells them.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(settings.out, settings.storage)
    if saved_name is None:
        study = _create(storage, settings.out.name)
        study.set_user_attr(FINGERPRINT, fingerprint)
    else:
        study = _load(storage, saved_name, settings.out)
    if study.user_attrs.get(FINGERPRINT, fingerprint) != fingerprint:
        raise UserError(
            f"the study '{study.study_name}' must be of this run's images, found one of others; "
            "choose another --storage or --out"
        )
    with warnings.catch_warnings():
        # It has been experimental since Optuna 3 and kept its meaning.
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([f"{NAMES[settings.objective]} on select"])
    return study


def _create(storage: BaseStorage, name: str) -> optuna.Study:
    # An empty one is what a process left that was killed before it wrote its settings.
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True
    )
    if study.get_trials(deepcopy=False):
        raise UserError(
            f"the storage must have no study '{name}' yet, found one with trials; choose another "
            "--out, whose last part names the study"
        )
    return study


def _load(storage: BaseStorage, name: str, run: Path) -> optuna.Study:
    try:
        return optuna.load_study(storage=storage, study_name=name)
    except KeyError:
        raise UserError(
            f"the storage must have the study '{name}' of {run}, found none; restore it, start in "
            "the folder that a relative --storage is meant from, or choose another --out"
        ) from None


def recover(study: optuna.Study, run: Path) -> None:
    """Takes up trials that a killed process left running: the run's lock proves that nobody works
    on them.

    A trial whose candidate is complete on disk is told complete, also one that was put back amid
    that; any other waits to go on from its checkpoint, under its number. What a finished trial
    would have gone on from is deleted.
    """
    for trial in counted_trials(study):
        Candidate(run / CANDIDATES / trial_name(trial)).drop_checkpoint()
    for found in paused_trials(study):
        candidate = Candidate(run / CANDIDATES / trial_name(found))
        if candidate.is_complete and _is_of(candidate, found):
            tell_complete(study, claim(study, found), candidate)
    for found in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        candidate = Candidate(run / CANDIDATES / trial_name(found))
        running = optuna.Trial(study, found._trial_id)
        if candidate.is_complete and _is_of(candidate, found):
            tell_complete(study, running, candidate)
            continue
        looks, until = looks_of(found), found.user_attrs.get(UNTIL)
        is_done = until is not None and bool(looks) and looks[-1][0] >= until
        reason = RESTING if is_done else "the process ended while it was running"
        record_outcome(running, PAUSED, reason)
        put_back(study, running)


def _is_of(candidate: Candidate, trial: FrozenTrial) -> bool:
    """Whether a complete folder is a trial's: the study may have lost one that had its number."""
    begun = trial.user_attrs.get(RECIPE)
    try:
        found = asdict(candidate.recipe)
        _ = candidate.metrics
    except UserError:
        return False
    # As a storage gives it back, without tuples.
    same: dict[str, Any] = json.loads(json.dumps(found))
    # One that was taken as it was ended elsewhere than was thought.
    free = free_fields(candidate.recipe)
    return begun is None or all(
        same.get(name) == value for name, value in begun.items() if name not in free
    )


def enqueue_first_trials(study: optuna.Study, plan: SearchPlan) -> None:
    """Tells which backbones are rejected, and enqueues the challenge's baseline and one sensible
    default of each allowed backbone, the best probe first, each once in a study: a process that was
    killed amid this goes on with it."""
    trials = study.get_trials(deepcopy=False)
    rejected = {
        trial.user_attrs[ROW]["backbone"]
        for trial in trials
        if trial.user_attrs.get(STATE) == "rejected" and not trial.params
    }
    for _, verdict in plan.rejected:
        if verdict.backbone not in rejected:
            add_rejected(study, verdict, plan.catalogue.budget)
    presets = {trial.user_attrs.get(PRESET) for trial in trials}
    if BASELINE not in presets:
        enqueue_baseline(study)
    order: list[str] = study.user_attrs.get(POOL, [])
    rank = {name: place for place, name in enumerate(order)}
    for backbone in sorted(plan.space.backbones, key=lambda one: rank.get(one.name, len(rank))):
        preset = f"{DEFAULT}:{backbone.name}"
        if preset not in presets:
            new_trial(study, plan.space.centre(backbone), plan.space, **{PRESET: preset})


def is_begun(study: optuna.Study) -> bool:
    """Whether a search has any configuration but the baseline."""
    presets = (trial.user_attrs.get(PRESET) for trial in study.get_trials(deepcopy=False))
    return any(str(preset).startswith(f"{DEFAULT}:") for preset in presets)


def settle_pool(study: optuna.Study, probes: Sequence[Probe]) -> None:
    """Records what is searched, before the first trial: a resumed search keeps to it, whatever
    becomes of `probe.csv`."""
    study.set_user_attr(POOL, [probe.backbone for probe in ordered(probes) if probe.kept])


def in_settled_pool(plan: SearchPlan, study: optuna.Study) -> SearchPlan:
    """The plan with the backbones alone that a probe has left; all, if the study was not probed.

    They stay in the file's order: what is drawn must not hang on the last digit of a probe.
    """
    names = study.user_attrs.get(POOL)
    if names is None:
        return plan
    backbones = tuple(one for one in plan.space.backbones if one.name in names)
    return replace(plan, space=replace(plan.space, backbones=backbones))


def enqueue_baseline(study: optuna.Study) -> None:
    """Enqueues the challenge's baseline, unless the study has it or is about to."""
    waiting_or_better = (TrialState.WAITING, TrialState.RUNNING, TrialState.COMPLETE)
    trials = study.get_trials(deepcopy=False, states=waiting_or_better)
    if not any(trial.user_attrs.get(PRESET) == BASELINE for trial in trials):
        study.enqueue_trial({}, user_attrs={PRESET: BASELINE})
