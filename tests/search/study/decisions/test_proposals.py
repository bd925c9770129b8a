from __future__ import annotations

from dataclasses import replace

import numpy as np

from search.study.decisions.proposals import FEWEST_TO_LEARN, propose
from search.study.decisions.space import BACKBONE, LEARNING_RATE, Parameters
from tests.search.study.decisions.test_space import SMALL, SPACE


def worth(parameters: Parameters) -> float:
    """A high learning rate is good, and so is one backbone."""
    return 0.6 + 0.2 * parameters[LEARNING_RATE] + 0.1 * (parameters[BACKBONE] == SMALL[2].name)


def test_the_first_draws_are_around_the_centre() -> None:
    """However many backbones there are: their centres alone teach TPE nothing but to go away."""
    few = [(SPACE.centre(backbone), 0.7) for backbone in SMALL]
    assert len(few) > FEWEST_TO_LEARN
    drawn = [propose(SPACE, few, number)[LEARNING_RATE] for number in range(40)]
    assert abs(np.mean(drawn) - 0.5) < 0.1
    assert len(set(drawn)) == 40
    assert propose(SPACE, few, 7) == propose(SPACE, few, 7)
    assert propose(replace(SPACE, seed=4), few, 7) != propose(SPACE, few, 7)


def test_later_ones_are_drawn_from_what_was_good() -> None:
    space = replace(SPACE, backbones=SMALL[:4])
    results = [(own, worth(own)) for own in map(space.centre, space.backbones)]
    for number in range(4, 30):
        own = propose(space, results, number)
        results.append((own, worth(own)))
    first = np.mean([auc for _, auc in results[:4]])
    last = np.mean([auc for _, auc in results[-10:]])
    assert last > first + 0.08
    again = propose(space, results, 30)
    assert again == propose(space, results, 30)


def test_half_of_the_draws_are_around_the_best() -> None:
    results = [(SPACE.centre(backbone), 0.7) for backbone in SMALL]
    best = SPACE.centre(SMALL[1]) | {LEARNING_RATE: 0.95}
    results.append((best, 0.8))
    drawn = [propose(SPACE, results, number) for number in range(200)]
    around = [one for one in drawn if one[BACKBONE] == SMALL[1].name and one[LEARNING_RATE] > 0.8]
    assert 60 <= len(around) <= 110


def test_what_is_not_in_the_space_is_left_out() -> None:
    outside = {**SPACE.centre(SMALL[0]), "weight_decay": 9.0}
    gone = {BACKBONE: "gone"}
    results = [(outside, 0.9), (gone, 0.9), *[(SPACE.centre(one), 0.7) for one in SMALL[:5]]]
    assert propose(SPACE, results, 8)[BACKBONE] in {one.name for one in SMALL}
