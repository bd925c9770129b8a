"""A study in its folder, and candidates as a training leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from search.settings.search import SearchSettings
from search.study.opening import open_study
from search.training.candidate import METRICS, WEIGHTS, Candidate
from search.training.recipe import Recipe

RECIPE = Recipe(backbone="test_resnet.r160_in1k", architecture="test_resnet", canvas=224, epochs=3)
VERDICT = SimpleNamespace(
    allowed=True,
    backbone="b",
    pretraining="p",
    params_thop=1,
    params_exact=1,
    gmacs=1.0,
    image_size=32,
    reasons=(),
)


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    return open_study(SearchSettings(out=tmp_path).resolved(), "abc")


def leave_complete(folder: Path, auc: float = 0.75, **more: Any) -> Candidate:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(b"weights")
    metrics = {"auc": auc, "params_exact": 1, "path": f"candidates/{folder.name}", **more}
    (folder / METRICS).write_text(json.dumps(metrics))
    return Candidate(folder)
