from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from search.study.space import BASELINE, PRESET
from search.study.trials import (
    PAUSED,
    REASON,
    ROW,
    STATE,
    add_rejected,
    claim,
    complete_trials,
    counted_trials,
    paused_trials,
    put_back,
    record_outcome,
    reject,
    searched_trials,
    trial_seconds,
)

VERDICT: Any = SimpleNamespace(
    backbone="huge",
    reasons=("params_exact 300.0M is over the budget of 200.0M", "and more"),
    params_exact=300,
    params_thop=200,
    gmacs=1.0,
    pretraining="ImageNet-1K",
    image_size=32,
)


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize")


def test_rejected_backbones_take_no_waiting_trials_place(study: optuna.Study) -> None:
    study.enqueue_trial({"x": 0.5})
    add_rejected(study, VERDICT, budget=200)
    waiting, rejected = study.trials
    assert waiting.state is TrialState.WAITING
    assert rejected.state is TrialState.PRUNED
    assert rejected.user_attrs[STATE] == "rejected"
    assert rejected.user_attrs[REASON].endswith("; and more")
    assert rejected.user_attrs[ROW]["backbone"] == "huge"
    assert list(rejected.constraints.values())[-1] == pytest.approx(0.5)
    assert counted_trials(study) == []


def test_a_rejected_trial_is_infeasible_to_optuna_and_to_its_dashboard(study: optuna.Study) -> None:
    trial = study.ask()
    reject(trial, VERDICT, budget=200)
    study.tell(trial, state=TrialState.PRUNED)
    (rejected,) = study.trials
    assert rejected.system_attrs["constraints"] == [pytest.approx(0.5)]
    assert rejected.system_attrs["constraints:rules"] == pytest.approx(0.5)
    assert rejected.user_attrs[STATE] == "rejected"


def test_provenance_has_no_measure(study: optuna.Study) -> None:
    within = SimpleNamespace(**{**vars(VERDICT), "params_exact": 100, "params_thop": 100})
    verdict: Any = within
    add_rejected(study, verdict, budget=200)
    assert study.trials[0].system_attrs["constraints"] == [1.0]


def test_a_trial_that_was_put_back_goes_on_under_its_number(study: optuna.Study) -> None:
    study.enqueue_trial({"x": 0.25})
    study.enqueue_trial({"x": 0.75})
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.suggest_float("y", 0, 1)
    before = dict(trial.params)
    record_outcome(trial, PAUSED, "interrupted by the user", {"auc": 0.6})
    put_back(study, trial)
    (paused,) = paused_trials(study)
    assert paused.number == 0
    again = claim(study, paused)
    assert again.number == 0
    assert paused_trials(study) == []
    assert {name: again.suggest_float(name, 0, 1) for name in ("x", "y")} == before
    assert len(study.trials) == 2


def test_a_certain_waiting_trial_can_be_claimed(study: optuna.Study) -> None:
    for x in (0.25, 0.5, 0.75):
        study.enqueue_trial({"x": x})
    assert claim(study, study.trials[2]).suggest_float("x", 0, 1) == 0.75
    assert [trial.state.name for trial in study.trials] == ["WAITING", "WAITING", "RUNNING"]


def test_order_and_counts(study: optuna.Study) -> None:
    def add(value: float | None, state: str, told: TrialState, **row: Any) -> None:
        attributes = {STATE: state, ROW: {"params_exact": 2, **row}}
        preset = {PRESET: BASELINE} if row.get("baseline") else {}
        study.add_trial(create_trial(value=value, state=told, user_attrs=attributes | preset))

    taken = {"train_seconds": 2.0, "score_seconds": 0.75, "wait_seconds": 0.25}
    add(0.7, "complete", TrialState.COMPLETE, **taken)
    add(0.9, "complete", TrialState.COMPLETE, baseline=True, train_seconds=2.0)
    add(0.7, "complete", TrialState.COMPLETE, params_exact=1)
    add(None, "failed", TrialState.FAIL, train_seconds=9.0)
    add(None, "pruned", TrialState.PRUNED, train_seconds=1.0)
    add(None, "rejected", TrialState.PRUNED)
    study.ask()  # still running
    assert [trial.number for trial in complete_trials(study)] == [1, 2, 0]
    assert [trial.number for trial in searched_trials(study)] == [2, 0]
    assert [trial.number for trial in counted_trials(study)] == [0, 1, 2, 3, 4]
    assert trial_seconds(study) == [3.0, 2.0, 1.0]
