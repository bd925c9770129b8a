"""The leaderboard of studies whose trials ended in every way a trial can end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial

from search.errors import UserError
from search.leaderboard import COLUMNS, INTEGERS, TEXTS, rows_from_study, write_leaderboard

DESIGN = (
    "rank, candidate, state, backbone, pretraining, params_thop, params_exact, gmacs, image_size, "
    "epochs, auc, auc_low, auc_high, auc_report, tpr_at_fpr_1e-2, tpr_at_fpr_5e-3, "
    "tpr_at_fpr_1e-3, accuracy, log_loss, tp, fp, tn, fn, learning_rate, weight_decay, "
    "augmentation, batch_size, train_seconds, images_per_second, peak_memory_mb, seed, reason, path"
)


def add(
    study: optuna.Study,
    state: TrialState = TrialState.COMPLETE,
    value: float | None = None,
    **attributes: Any,
) -> None:
    study.add_trial(create_trial(state=state, value=value, user_attrs=attributes))


def add_complete(study: optuna.Study, auc: float, **row: Any) -> None:
    number = len(study.trials)
    row = {"auc": auc, "path": f"candidates/{number:04d}", **row}
    add(study, value=auc, state_="", **{"state": "complete"}, candidate=f"{number:04d}", row=row)


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize")


def test_columns_are_the_designs_in_its_order() -> None:
    assert ", ".join(COLUMNS) == DESIGN
    assert set(TEXTS) | set(INTEGERS) <= set(COLUMNS)


def test_an_empty_study_has_an_empty_leaderboard(study: optuna.Study, tmp_path: Path) -> None:
    table = rows_from_study(study, tmp_path)
    assert list(table.columns) == list(COLUMNS)
    assert table.empty
    write_leaderboard(table, tmp_path / "leaderboard.csv")
    assert (tmp_path / "leaderboard.csv").read_text("utf-8") == ",".join(COLUMNS) + "\n"
