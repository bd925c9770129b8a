from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ensemble.pool.pool import Pool
from ensemble.teachers import choose_teachers, greedy_ensemble, plan_teachers
from search.errors import UserError
from search.machine.interruption import Interrupted
from search.training.metrics import roc_auc
from search.training.objective import Yardstick
from tests.stopping import StopAfter

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def random_scores(seed: int, models: int, images: int = 40) -> tuple[Floats, Integers]:
    generator = np.random.default_rng(seed)
    targets = np.arange(images) % 2
    strengths = generator.uniform(0, 1.5, (models, 1))
    margins = strengths * (2 * targets - 1) + generator.normal(size=(models, images))
    return 1 / (1 + np.exp(-margins)), targets


def plain_greedy(scores: Floats, targets: Integers, rounds: int) -> Floats:
    """Caruana's selection as the paper tells it, with bags written out."""
    yardstick = Yardstick("auc", targets)
    bag: list[int] = []
    bags = []
    for _ in range(rounds):
        options = [[*bag, model] for model in range(len(scores))]
        # Python's max keeps the first of equals.
        bag = max(options, key=lambda option: yardstick.quality(scores[option].mean(axis=0)))
        bags.append(bag)
    best = max(bags, key=lambda option: yardstick.quality(scores[option].mean(axis=0)))
    return np.bincount(best, minlength=len(scores)) / len(best)


@pytest.mark.parametrize("seed", range(8))
def test_greedy_selection_is_the_papers(seed: int) -> None:
    scores, targets = random_scores(seed, models=5)
    found = greedy_ensemble(scores, Yardstick("auc", targets), rounds=12)
    expected = plain_greedy(scores, targets, rounds=12)
    reached = [roc_auc(weights @ scores, targets) for weights in (found, expected)]
    assert reached[0] == pytest.approx(reached[1], abs=1e-12)
    np.testing.assert_allclose(found, expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 10))
def test_weights_are_convex_and_never_worse_than_the_best(
    seed: int, models: int, rounds: int
) -> None:
    scores, targets = random_scores(seed, models, images=20)
    weights = greedy_ensemble(scores, Yardstick("auc", targets), rounds)
    assert weights.sum() == pytest.approx(1)
    assert (weights >= 0).all()
    best = max(roc_auc(row, targets) for row in scores)
    assert roc_auc(weights @ scores, targets) >= best - 1e-12


def test_models_that_complete_each_other_are_mixed() -> None:
    targets = np.array([0, 0, 1, 1])
    scores = np.array([[0.1, 0.9, 0.9, 0.6], [0.6, 0.1, 0.6, 0.9], [0.6, 0.6, 0.5, 0.5]])
    assert greedy_ensemble(scores, Yardstick("auc", targets), rounds=2).tolist() == [0.5, 0.5, 0.0]


def test_a_solved_split_is_decided_by_the_log_loss() -> None:
    targets = np.array([0, 1])
    scores = np.array([[0.4, 0.6], [0.1, 0.9]])
    assert greedy_ensemble(scores, Yardstick("auc", targets)).tolist() == [0.0, 1.0]


def test_the_chosen_teachers_are_measured_on_select(tiny_pool: Pool) -> None:
    teachers = choose_teachers(tiny_pool)
    assert sum(teachers.weights) == pytest.approx(1)
    assert set(teachers.names) <= set(tiny_pool.names)
    assert teachers.select_auc >= tiny_pool.best.metrics["auc"]
    on_select = teachers.scores(tiny_pool.select)
    assert teachers.select_auc == roc_auc(on_select, tiny_pool.select["target"])
    assert "not submittable" in teachers.describe()
    assert "report" not in teachers.describe()


def test_named_teachers_weigh_alike(tiny_pool: Pool) -> None:
    teachers = choose_teachers(tiny_pool, ["0003", "0000", "0003"])
    assert teachers.names == ("0003", "0000")
    assert teachers.weights == (0.5, 0.5)
    expected = tiny_pool.select[["0003", "0000"]].mean(axis=1)
    np.testing.assert_allclose(teachers.scores(tiny_pool.select), expected)


def test_a_stop_reaches_the_choice_of_teachers(tiny_pool: Pool) -> None:
    with pytest.raises(Interrupted):
        plan_teachers(tiny_pool, "auto", check=StopAfter(10).check)


def test_an_unknown_teacher_is_refused(tiny_pool: Pool) -> None:
    with pytest.raises(UserError, match="0009"):
        choose_teachers(tiny_pool, ["0009"])
