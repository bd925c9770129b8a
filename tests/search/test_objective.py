from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, create_trial

from search.objective import FEWEST_COMPLETE, _TrialTraining
from search.outcome import ROW
from search.space import BASELINE, PRESET
from search.training.recipe import Recipe
from search.training.records import EpochRecord

RECIPE = Recipe(backbone="test_resnet.r160_in1k", architecture="test_resnet", epochs=3)


class Harsh(BasePruner):
    """Finds every trial lagging behind, and counts how often it was asked."""

    asked = 0

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        self.asked += 1
        return True


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
    training = _TrialTraining(objective, trial, RECIPE, {})
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
