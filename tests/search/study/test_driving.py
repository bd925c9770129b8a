from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.pruners import HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.trial import TrialState

from search.errors import UserError
from search.interruption import Interruption
from search.settings import SearchSettings
from search.study.driving import (
    FAILURES_TO_STOP,
    counted_trials,
    drive,
    enqueue_baseline,
    make_pruner,
    open_study,
    recover,
)
from search.study.space import BASELINE, PRESET
from search.study.trials import REASON, ROW, STATE, TrialFailed


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return open_study(SearchSettings(out=tmp_path, pruner="none").resolved(), "abc")


def test_a_renamed_run_keeps_its_study(study: optuna.Study, tmp_path: Path) -> None:
    study.enqueue_trial({})
    renamed = tmp_path.rename(tmp_path.with_name("renamed"))
    settings = SearchSettings(out=renamed, pruner="none").resolved()
    assert len(open_study(settings, "abc", study.study_name).trials) == 1
    with pytest.raises(UserError, match=r"must have the study 'renamed' of .* found none"):
        open_study(settings, "abc", "renamed")


def test_a_storage_never_mixes_runs(study: optuna.Study, tmp_path: Path) -> None:
    settings = SearchSettings(out=tmp_path, pruner="none").resolved()
    assert open_study(settings, "abc").trials == []  # left by a process that was killed at once
    study.enqueue_trial({})
    with pytest.raises(UserError, match="found one with trials"):
        open_study(settings, "abc")
    with pytest.raises(UserError, match="images, found one of others"):
        open_study(settings, "xyz", study.study_name)


def test_a_pruned_trial_leaves_nothing_in_memory(study: optuna.Study, tmp_path: Path) -> None:
    class Heavy:
        """Stands for a network and its optimizer."""

    alive: list[int] = []
    left: list[weakref.ref[Heavy]] = []

    def objective(trial: optuna.Trial) -> float:
        alive.append(sum(ref() is not None for ref in left))
        heavy = Heavy()
        left.append(weakref.ref(heavy))
        trial.set_user_attr(STATE, "pruned")
        raise optuna.TrialPruned

    pruning: Any = objective
    settings = SimpleNamespace(trials=4, keep=3)
    pruning.plan, pruning.run = SimpleNamespace(settings=settings), tmp_path
    pruning.interruption = Interruption()
    gc.disable()
    try:
        drive(study, pruning, lambda *_: None)
    finally:
        gc.enable()
    assert alive == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("asha", SuccessiveHalvingPruner), ("hyperband", HyperbandPruner), ("none", NopPruner)],
)
def test_pruners_by_name(name: str, kind: type) -> None:
    assert isinstance(make_pruner(name, 4), kind)


def test_asha_looks_first_after_a_quarter_of_the_epochs() -> None:
    study = optuna.create_study(direction="maximize", pruner=make_pruner("asha", 8))
    outcomes = []
    for auc in (0.9, 0.6):
        trial = study.ask()
        trial.report(auc, step=1)
        first = trial.should_prune()
        trial.report(auc, step=2)
        outcomes.append((first, trial.should_prune()))
        study.tell(trial, auc)
    assert outcomes == [(False, False), (False, True)]


def test_the_baseline_is_enqueued_once(study: optuna.Study) -> None:
    enqueue_baseline(study)
    enqueue_baseline(study)
    assert [trial.user_attrs for trial in study.trials] == [{PRESET: BASELINE}]
    trial = study.ask()
    trial.set_user_attr(STATE, "failed")
    study.tell(trial, state=TrialState.FAIL)
    enqueue_baseline(study)
    assert len(study.trials) == 2


def test_rejected_and_interrupted_trials_do_not_count(study: optuna.Study) -> None:
    stale: dict[str, Any] = {}  # told by another process, for want of a sign of life
    interrupted = {STATE: "failed", "interrupted": True}
    for attributes in ({STATE: "complete"}, {STATE: "rejected"}, interrupted, stale):
        trial = study.ask()
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        study.tell(trial, state=TrialState.FAIL)
    study.ask()  # still running
    assert [trial.number for trial in counted_trials(study)] == [0]


def test_a_trial_that_was_killed_after_its_candidate_was_kept_is_complete(
    study: optuna.Study, tmp_path: Path
) -> None:
    kept, lost = study.ask(), study.ask()
    lost.suggest_float("x", 0, 1)
    for trial in (kept, lost):
        folder = tmp_path / "candidates" / f"{trial.number:04d}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text("{}")
    kept.set_user_attr(ROW, {"auc": 0.75})
    kept.set_user_attr(STATE, "complete")
    recover(study, tmp_path)
    first, second, again = study.trials
    assert (first.state, first.value) == (TrialState.COMPLETE, 0.75)
    assert second.state == TrialState.FAIL
    assert "process ended" in second.user_attrs[REASON]
    assert again.state == TrialState.WAITING
    assert again.system_attrs["fixed_params"] == second.params


def test_a_study_of_failures_is_stopped(study: optuna.Study, tmp_path: Path) -> None:
    calls: list[int] = []

    class Failing:
        plan = SimpleNamespace(settings=SimpleNamespace(trials=20, keep=3))
        run = tmp_path
        interruption = Interruption()

        def __call__(self, trial: optuna.Trial) -> float:
            calls.append(trial.number)
            trial.set_user_attr(STATE, "failed")
            trial.set_user_attr(REASON, "out of paper")
            raise TrialFailed

    objective: Any = Failing()
    with pytest.raises(UserError, match=r"first 3 trials all failed.*out of paper"):
        drive(study, objective, lambda study, trial: None)
    assert len(calls) == FAILURES_TO_STOP
