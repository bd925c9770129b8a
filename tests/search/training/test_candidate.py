from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from search.errors import UserError
from search.training.candidate import (
    WEIGHTS,
    Candidate,
    Look,
    copy_state,
    describe_look,
    load_state,
    load_weights,
    save_candidate,
    save_state,
    save_weights,
    score_table,
)
from search.training.network import build_network
from search.training.recipe import Recipe
from search.training.scoring import Predictions

RECIPE = Recipe(
    backbone="test_vit.r160_in1k",
    architecture="test_vit",
    model_args={"img_size": 64},
    image_size=64,
    canvas=64,
    weights="none",
)
TABLE = pd.DataFrame({"img_name": ["007", "b.jpg", "c.jpg"], "target": [0, 1, 1]})
PREDICTIONS = Predictions(
    indices=np.array([0, 2]), scores=np.array([0.1, 1 - 1e-12]), targets=np.array([0, 1])
)


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    return save_candidate(
        tmp_path / "0007",
        recipe=RECIPE,
        metrics={"auc": 1.0},
        history=[Look(8, 1.0, 0.5, 1e-3, 1.0, 0.3, 2.5)],
        scores=score_table(TABLE, PREDICTIONS),
        weights=copy_state(build_network(RECIPE)),
    )


def test_everything_is_on_disk_and_comes_back(candidate: Candidate) -> None:
    assert {path.name for path in candidate.path.iterdir()} == {
        "model.safetensors",
        "recipe.yaml",
        "metrics.json",
        "history.csv",
        "scores.csv",
    }
    assert candidate.name == "0007"
    assert candidate.recipe == RECIPE
    assert candidate.metrics == {"auc": 1.0}
    assert candidate.history["train_loss"].tolist() == [0.5]
    scores = candidate.scores
    assert scores["img_name"].tolist() == ["007", "c.jpg"]
    assert scores["y_pred"].tolist() == PREDICTIONS.scores.tolist()


@pytest.mark.parametrize("name", ["NA", "nan", "null", "None", "N/A", "-1.0", "true"])
def test_any_name_comes_back_as_it_is(name: str, candidate: Candidate) -> None:
    scores = pd.DataFrame({"img_name": [name, name], "target": [0, 1], "y_pred": [0.5, math.nan]})
    scores.to_csv(candidate.path / "scores.csv", index=False)
    assert candidate.scores["img_name"].tolist() == [name, name]
    assert candidate.scores["y_pred"].isna().tolist() == [False, True]


def test_the_loaded_network_scores_as_the_saved_one(candidate: Candidate) -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = build_network(RECIPE)(images)
        assert torch.equal(candidate.load()(images), expected)


def test_report_figures_are_added_beside_the_others(candidate: Candidate) -> None:
    assert candidate.report_scores is None
    candidate.save_report(TABLE, PREDICTIONS, {"auc": 0.9})
    assert candidate.metrics == {"auc": 1.0, "report": {"auc": 0.9}}
    assert candidate.report_scores is not None
    assert len(candidate.report_scores) == 2


def test_figures_on_report_are_refused_to_who_was_trained_on_it(candidate: Candidate) -> None:
    candidate.save_report(TABLE, PREDICTIONS, {"auc": 0.9})
    replace(RECIPE, trained_on="all").save(candidate.path / "recipe.yaml")
    seen = Candidate(candidate.path)
    assert seen.report_scores is None
    with pytest.raises(UserError, match="trained on all: it has no figures on report"):
        seen.save_report(TABLE, PREDICTIONS, {"auc": 0.9})


@pytest.mark.parametrize(("auc", "told"), [(0.75, ", AUC 0.7500"), (math.nan, "")])
def test_a_look_tells_what_it_measured(auc: float, told: str) -> None:
    look = Look(8, 1.0, 0.5, 1e-3, auc, 0.3, 2.5)
    assert describe_look(look, 4) == f"epoch 1/4: loss 0.500{told}, 2.5 s"


def test_deleted_weights_are_told_with_the_remedy(candidate: Candidate) -> None:
    candidate.drop_weights()
    candidate.drop_weights()
    assert not candidate.has_weights
    with pytest.raises(UserError, match="--keep"):
        candidate.load()
    assert len(candidate.scores) == 2


@pytest.mark.parametrize("name", ["metrics.json", "scores.csv", "history.csv"])
def test_a_missing_file_is_a_user_error(name: str, candidate: Candidate) -> None:
    (candidate.path / name).unlink()
    with pytest.raises(UserError, match=name):
        _ = (candidate.metrics, candidate.scores, candidate.history)


def test_damaged_weights_are_a_user_error(candidate: Candidate) -> None:
    (candidate.path / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(UserError, match="very network"):
        candidate.load()


def test_weights_survive_the_disk(tmp_path: Path) -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    save_weights(tmp_path / "model.safetensors", copy_state(source))
    load_weights(tmp_path / "model.safetensors", target)
    assert torch.equal(source.weight, target.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_copies_do_not_follow_the_module() -> None:
    module = nn.Linear(2, 2)
    state = copy_state(module)
    before = state["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1)
    assert torch.equal(state["weight"], before)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", copy_state(nn.Linear(3, 2)))
    with pytest.raises(UserError, match="very network"):
        load_weights(tmp_path / "model.safetensors", nn.Linear(4, 2))
    with pytest.raises(UserError, match="very network"):
        load_weights(tmp_path / "model.safetensors", nn.Linear(3, 2, bias=False))


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x00" * 64])
def test_damaged_weights_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="very network"):
        load_weights(tmp_path / "model.safetensors", nn.Linear(3, 2))


def test_training_states_survive_and_code_in_them_does_not_run(tmp_path: Path) -> None:
    save_state(tmp_path / "state.pt", {"step": 3, "tensor": torch.ones(2), "rows": [{"a": 1.5}]})
    state = load_state(tmp_path / "state.pt")
    assert state["step"] == 3
    assert state["rows"] == [{"a": 1.5}]
    torch.save({"function": print}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="delete it"):
        load_state(tmp_path / "evil.pt")


def test_weights_may_be_read_by_whom_other_files_may(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", {"weight": torch.zeros(2)})
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1
