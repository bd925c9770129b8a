from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import torch
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from search.data.quarantine import Quarantine
from search.errors import UserError
from search.interruption import Interrupted, Interruption
from search.report.terminal import StudyProgress
from search.study.space import BASELINE, PRESET
from search.study.trials import (
    FEWEST_COMPLETE,
    INTERRUPTED,
    REASON,
    ROW,
    Objective,
    TrialFailed,
    TrialTraining,
)
from search.training.candidate import EpochRecord
from search.training.recipe import Recipe

RECIPE = Recipe(backbone="test_resnet.r160_in1k", architecture="test_resnet", epochs=3)


class Harsh(BasePruner):
    """Finds every trial lagging behind, and counts how often it was asked."""

    asked = 0

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        self.asked += 1
        return True


def allowing_plan() -> Any:
    """A plan whose only backbone keeps the rules."""
    verdict = SimpleNamespace(
        allowed=True,
        backbone="b",
        pretraining="p",
        params_thop=1,
        params_exact=1,
        gmacs=1.0,
        image_size=32,
    )
    backbone = SimpleNamespace(name=RECIPE.backbone)
    space = SimpleNamespace(recipe=lambda _: RECIPE, backbones=(), baseline=backbone)
    return SimpleNamespace(space=space, judge=lambda *_: verdict)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),  # a second Ctrl-C
        (Interrupted("interrupted by the user"), TrialFailed),
        (UserError("at most 5% may be broken"), UserError),
        (RuntimeError("a worker was terminated"), TrialFailed),
    ],
)
def test_a_trial_that_was_stopped_is_queued_again(
    error: BaseException,
    raised: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Any) -> float:
        raise error

    monkeypatch.setattr(TrialTraining, "complete", fail)
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.25}, user_attrs={PRESET: "anything"})
    trial = study.ask()
    plan = allowing_plan()
    interruption = Interruption()
    interruption.requested = isinstance(error, RuntimeError)
    progress = StudyProgress(Console(quiet=True), 1)
    objective = Objective(plan, tmp_path, Quarantine(None), progress, interruption)
    study._thread_local.in_optimize_loop = True
    with pytest.raises(raised):
        objective(trial)
    assert trial.user_attrs[INTERRUPTED]
    (again,) = [t for t in study.trials if t.state == TrialState.WAITING]
    assert again.system_attrs["fixed_params"] == {"x": 0.25}
    assert again.user_attrs == {PRESET: "anything"}
    assert progress.finished == 0


@pytest.mark.parametrize(
    ("text", "raised"),
    [
        ("CUDA error: an illegal memory access", UserError),
        ("CUDA error: out of memory", TrialFailed),
    ],
)
def test_a_lost_gpu_ends_the_search_and_no_other_trial(
    text: str, raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> float:
        raise torch.AcceleratorError(text)

    monkeypatch.setattr(TrialTraining, "complete", fail)
    trial = optuna.create_study().ask()
    progress = StudyProgress(Console(quiet=True), 1)
    objective = Objective(allowing_plan(), tmp_path, Quarantine(None), progress, Interruption())
    with pytest.raises(raised):
        objective(trial)
    # It counts: one that kills the GPU each time must not be tried for ever.
    assert progress.finished == 1
    assert INTERRUPTED not in trial.user_attrs
    assert text in trial.user_attrs[REASON]


def pruned_after(epoch: int, *, complete: int, preset: str | None = None) -> tuple[bool, int]:
    pruner = Harsh()
    study = optuna.create_study(direction="maximize", pruner=pruner)
    row = {"params_exact": 1}
    study.add_trial(create_trial(value=0.5, user_attrs={ROW: row, PRESET: BASELINE}))
    study.add_trials([create_trial(value=0.7, user_attrs={ROW: row})] * complete)
    trial = study.ask()
    trial.set_user_attr(PRESET, preset)
    objective: Any = SimpleNamespace(
        progress=SimpleNamespace(epoch=lambda _: None), run=Path("nowhere")
    )
    training = TrialTraining(objective, trial, RECIPE, {})
    try:
        training._on_epoch(EpochRecord(epoch, 0.6, 1e-3, 0.5, 0.7, 1.0))
    except optuna.TrialPruned:
        return True, pruner.asked
    return False, pruner.asked


@pytest.mark.parametrize(
    ("complete", "pruned"), [(0, False), (FEWEST_COMPLETE - 1, False), (FEWEST_COMPLETE, True)]
)
def test_nothing_is_pruned_before_there_is_something_to_merge(complete: int, pruned: bool) -> None:
    assert pruned_after(1, complete=complete) == (pruned, 1)


def test_the_last_epoch_and_the_baseline_are_not_asked_about() -> None:
    assert pruned_after(RECIPE.epochs, complete=FEWEST_COMPLETE) == (False, 0)
    assert pruned_after(1, complete=FEWEST_COMPLETE, preset=BASELINE) == (False, 0)
