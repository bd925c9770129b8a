from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from search.run.reserve import LARGEST_RESERVE, RESULTS_SECONDS, SLOWER, Reserve
from search.study.trials import LOOKS, PAUSED, ROW, STATE, UNTIL


def plan(minutes: float | None, **rules: Any) -> Any:
    """Of a search with 100 images of select, 50 of them altered, and 150 of report."""
    timeout = None if minutes is None else timedelta(minutes=minutes)
    return SimpleNamespace(
        settings=SimpleNamespace(timeout=timeout, keep=2),
        splits=SimpleNamespace(select=range(100), altered=range(50), report=range(150)),
        images_of_a_look=40,
        rules=SimpleNamespace(**{"prolongs": True, **rules}),
    )


def add(study: optuna.Study, looks: int, score_seconds: float, *, state: str = PAUSED) -> None:
    is_complete = state == "complete"
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE if is_complete else TrialState.WAITING,
            value=0.5 if is_complete else None,
            user_attrs={
                STATE: state,
                UNTIL: 100,
                LOOKS: [[100 * (number + 1), 1.0, 0.5, 1.0] for number in range(looks)],
                ROW: {"score_seconds": score_seconds, "params_exact": 1},
            },
        )
    )


def test_one_candidate_can_be_kept_at_the_end_of_the_time(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    reserve = Reserve(plan(60), tmp_path, study)
    assert (reserve.seconds_to_keep_one(), reserve.seconds()) == (0.0, RESULTS_SECONDS)
    add(study, 2, 16.0)  # 0.2 s an image
    add(study, 1, 4.0)
    # A look, select, its altered images and report, of the slowest.
    assert reserve.seconds_to_keep_one() == pytest.approx(SLOWER * 340 * 0.2)
    assert reserve.seconds() == pytest.approx(SLOWER * 340 * 0.2 + RESULTS_SECONDS)
    add(study, 1, 4.0, state="complete")
    assert reserve.seconds_to_keep_one() == 0.0


def test_what_is_kept_back_is_a_third_at_most(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    add(study, 1, 400.0)
    reserve = Reserve(plan(1), tmp_path, study)
    assert reserve.seconds() == reserve.seconds_to_keep_one() == LARGEST_RESERVE * 60


def test_writing_the_results_is_measured_whenever_the_trials_have_doubled(tmp_path: Path) -> None:
    """Once was after the first: hundreds took longer than was kept back."""
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial({})  # waits: the results have nothing of it
    reserve, measured = Reserve(plan(60), tmp_path, study), list[int]()
    assert not reserve.is_due
    for trials in range(1, 18):
        add(study, 1, 4.0)
        if reserve.is_due:
            measured.append(trials)
            reserve.measured(10.0 * trials)
        assert reserve.results_seconds >= 10.0 * trials
    assert measured == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("given", [{"minutes": None}, {"minutes": 60, "prolongs": False}])
def test_nothing_is_kept_back_for_what_will_not_be_done(
    given: dict[str, Any], tmp_path: Path
) -> None:
    study = optuna.create_study(direction="maximize")
    add(study, 1, 4.0)
    reserve = Reserve(plan(**given), tmp_path, study)
    assert reserve.seconds() == (0.0 if given["minutes"] is None else RESULTS_SECONDS)
