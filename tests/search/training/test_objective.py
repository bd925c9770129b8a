from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from search.data.splits import Splits
from search.errors import UserError
from search.settings.data import Objective
from search.training.metrics import mean_auc_of_alterations, measure, roc_auc, split_by_novelty
from search.training.objective import PARTS, Yardstick, check_objective, needs_altered, value_of
from search.training.scoring import (
    Predictions,
    altered_of_a_look,
    described,
    measure_predictions,
    with_altered,
)

FIGURES = {"auc": 0.9, "auc_unseen": 0.6, "auc_stress": 0.75}

# Two reals, two fakes of a method that fit has, two of one that it lacks.
TARGETS = np.array([0, 0, 1, 1, 1, 1])
UNSEEN = np.array([False] * 4 + [True] * 2)
SCORES = np.array([0.1, 0.4, 0.8, 0.9, 0.2, 0.3])


@pytest.mark.parametrize(
    ("objective", "expected"),
    [("auc", 0.9), ("auc_unseen", 0.6), ("auc_stress", 0.75), ("mean", 0.75)],
)
def test_an_objective_is_the_mean_of_its_parts(objective: Objective, expected: float) -> None:
    assert value_of(FIGURES, objective) == pytest.approx(expected)
    assert needs_altered(objective) == ("auc_stress" in PARTS[objective])


def test_the_mean_is_over_what_was_measured() -> None:
    assert value_of({"auc": 0.9, "auc_stress": 0.7}, "mean") == pytest.approx(0.8)
    assert value_of({"auc": 0.9, "auc_unseen": None}, "mean") == 0.9


def test_what_was_not_measured_cannot_be_gone_by() -> None:
    with pytest.raises(UserError, match="measured by --objective auc_unseen"):
        value_of({"auc": 0.9}, "auc_unseen")


def test_fakes_are_told_apart_by_their_methods() -> None:
    assert split_by_novelty(SCORES, TARGETS, UNSEEN) == (1.0, 0.5)
    assert split_by_novelty(SCORES, TARGETS, np.zeros(6, np.bool_)) == (0.75, None)
    only_fakes = np.ones(6, np.int64)
    assert split_by_novelty(SCORES, only_fakes, UNSEEN) == (None, None)
    metrics = measure(SCORES, TARGETS, unseen=UNSEEN)
    assert (metrics.auc, metrics.auc_seen, metrics.auc_unseen) == (0.75, 1.0, 0.5)
    assert "auc_stress" not in metrics.to_dict()


def test_stress_is_the_mean_over_alterations_without_the_images_as_they_are() -> None:
    scores = np.array([0.9, 0.1, 0.1, 0.9, 0.5, 0.5])
    targets = np.array([0, 1] * 3)
    alterations = np.array([-1, -1, 0, 0, 1, 1])
    assert mean_auc_of_alterations(scores, targets, alterations) == 0.75
    assert mean_auc_of_alterations(scores, targets, np.full(6, -1)) is None
    # An alteration of which only a class could be read says nothing.
    assert mean_auc_of_alterations(scores[:5], targets[:5], alterations[:5]) is None


@pytest.fixture
def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Select, and three of its images altered twice."""
    select = pd.DataFrame({"target": TARGETS, "unseen": UNSEEN, "group": list("abcdef")})
    altered = pd.concat([select.iloc[[0, 2, 4]].assign(alteration=n) for n in (0, 1)])
    return select, altered


def test_altered_images_count_for_stress_alone(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    table = with_altered(*tables)
    assert table["alteration"].tolist() == [-1] * 6 + [0] * 3 + [1] * 3
    scores = np.concatenate([SCORES, [0.1, 0.9, 0.9], [0.9, 0.1, 0.95]])
    targets = table["target"].to_numpy()
    # In another order than the table's, as broken images leave it, or a shuffled loader.
    order = np.random.default_rng(0).permutation(len(table))
    predictions = Predictions(order, scores[order], targets[order])
    found = measure_predictions(described(predictions, table))
    plain = measure(SCORES, TARGETS, np.arange(6), unseen=UNSEEN)
    assert replace(found, auc_stress=None) == plain
    assert found.auc_stress == 0.75


@pytest.mark.parametrize("objective", list(PARTS))
def test_a_yardstick_is_what_metrics_say(
    tables: tuple[pd.DataFrame, pd.DataFrame], objective: Objective
) -> None:
    table = with_altered(*tables)
    scores = np.random.default_rng(1).random(len(table))
    targets = table["target"].to_numpy()
    predictions = described(Predictions(np.arange(len(table)), scores, targets), table)
    expected = value_of(measure_predictions(predictions).to_dict(), objective)
    yardstick = Yardstick.for_table(table, objective)
    assert yardstick.value(scores) == pytest.approx(expected)
    rows = np.random.default_rng(2).permutation(len(table))
    assert yardstick.of(rows).value(scores[rows]) == pytest.approx(expected)


def test_of_equal_values_the_lower_log_loss_is_better() -> None:
    yardstick = Yardstick("auc", np.array([0, 1]))
    sure, unsure = np.array([0.1, 0.9]), np.array([0.4, 0.6])
    assert yardstick.value(sure) == yardstick.value(unsure) == roc_auc(sure, [0, 1])
    assert yardstick.quality(sure) > yardstick.quality(unsure)


def test_unseen_methods_must_be_among_the_images_of_a_look() -> None:
    without = pd.DataFrame({"target": [0, 1], "unseen": [False, False]})
    some = without.assign(unseen=[False, True])
    nothing_held_out: Any = Splits(without, without, without)
    held_out: Any = Splits(without, some, some)
    for look in (without, without.drop(columns="unseen")):
        with pytest.raises(UserError, match="use --split unseen, or --objective auc"):
            check_objective("auc_unseen", nothing_held_out, look)
        check_objective("mean", nothing_held_out, look)
    objectives: tuple[Objective, ...] = ("auc_unseen", "mean")
    for objective in objectives:
        check_objective(objective, held_out, some)
        with pytest.raises(UserError, match="use a larger --select-limit"):
            check_objective(objective, held_out, without)
    check_objective("auc_stress", held_out, without)


def test_the_altered_images_of_a_look_are_whole_images() -> None:
    """However large groups are."""
    select = pd.DataFrame(
        {"img_name": [f"{n}.png" for n in range(40)], "target": [0, 1] * 20, "group": "one"}
    )
    altered = pd.concat([select.assign(alteration=n) for n in range(4)], ignore_index=True)
    splits: Any = Splits(select, select, select, altered=altered)
    part = altered_of_a_look(splits, 24, seed=0)
    assert part["img_name"].nunique() == 6
    assert part["alteration"].value_counts().tolist() == [6] * 4
    assert set(part["target"]) == {0, 1}
    assert altered_of_a_look(splits, 1, seed=0)["target"].nunique() == 2
