from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from search.study.decisions.layout import Known, Point
from search.study.decisions.space import BASELINE, PRESET
from search.study.trials import (
    LOOKS,
    PAUSED,
    REASON,
    ROW,
    STATE,
    UNTIL,
    add_rejected,
    claim,
    complete_trials,
    counted_trials,
    known_trials,
    new_trial,
    paused_trials,
    put_back,
    record_outcome,
    reject,
    searched_trials,
)

SPACE: Any = SimpleNamespace(distributions={"x": FloatDistribution(0, 1)})
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
    for x in (0.25, 0.75):
        new_trial(study, {"x": x}, SPACE)
    trial = claim(study, study.trials[0])
    before = dict(trial.params)
    assert before == {"x": 0.25}
    record_outcome(trial, PAUSED, "interrupted by the user", {"auc": 0.6})
    put_back(study, trial)
    (paused,) = paused_trials(study)
    assert paused.number == 0
    again = claim(study, paused)
    assert again.number == 0
    assert paused_trials(study) == []
    assert again.params == before
    assert len(study.trials) == 2


def test_a_certain_waiting_trial_can_be_claimed(study: optuna.Study) -> None:
    for x in (0.25, 0.5, 0.75):
        new_trial(study, {"x": x}, SPACE)
    assert claim(study, study.trials[2]).params == {"x": 0.75}
    assert [trial.state.name for trial in study.trials] == ["WAITING", "WAITING", "RUNNING"]


def test_order_and_counts(study: optuna.Study) -> None:
    def add(value: float | None, state: str, told: TrialState, **row: Any) -> None:
        attributes = {STATE: state, ROW: {"params_exact": 2, **row}}
        preset = {PRESET: BASELINE} if row.get("baseline") else {}
        study.add_trial(create_trial(value=value, state=told, user_attrs=attributes | preset))

    add(0.7, "complete", TrialState.COMPLETE)
    add(0.9, "complete", TrialState.COMPLETE, baseline=True)
    add(0.7, "complete", TrialState.COMPLETE, params_exact=1)
    add(None, "failed", TrialState.FAIL)
    add(None, "pruned", TrialState.PRUNED)
    add(None, "rejected", TrialState.PRUNED)
    study.ask()  # still running
    assert [trial.number for trial in complete_trials(study)] == [1, 2, 0]
    assert [trial.number for trial in searched_trials(study)] == [2, 0]
    assert [trial.number for trial in counted_trials(study)] == [0, 1, 2, 3, 4]


def test_the_scheduler_is_told_of_every_trial_but_rejected_ones(study: optuna.Study) -> None:
    new_trial(study, {}, SPACE, **{PRESET: BASELINE})
    new_trial(study, {"x": 0.5}, SPACE)
    add_rejected(study, VERDICT, budget=200)
    new_trial(study, {"x": 0.5}, SPACE)
    trial = claim(study, study.trials[1])
    trial.set_user_attr(LOOKS, [[100, 2.0, 0.6, 9.0], [200, 4.5, 0.7, 20.0]])
    trial.set_user_attr(UNTIL, 200)
    record_outcome(trial, PAUSED, "others are trained first", {})
    put_back(study, trial)
    failed = claim(study, study.trials[3])
    record_outcome(failed, "failed", "no paper", {})
    study.tell(failed, state=TrialState.FAIL)
    points = (Point(100, 2.0, 0.6), Point(200, 4.5, 0.7))
    assert known_trials(study) == [
        Known(0, "waiting", is_baseline=True),
        Known(1, "paused", points, 200),
        Known(3, "failed"),
    ]
