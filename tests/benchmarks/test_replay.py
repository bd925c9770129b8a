"""The replay on curves that are made up: who is best, and what everything takes, is known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import log, nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from search.settings import SearchSettings
from tests.benchmarks.arms import (
    Clock,
    Pool,
    TimeIsUp,
    Training,
    World,
    by_hand,
    by_name,
    cosine_looks,
    default_rules,
    ours,
    presets_then_best,
    squared_distance,
)
from tests.benchmarks.courses import Course, read_courses
from tests.benchmarks.curves import COLUMNS, Configuration, configurations, space_of
from tests.benchmarks.replay_search import (
    PUBLISHED,
    best_so_far,
    main,
    read_world,
    replay,
    share_of_time,
    summary,
)

SECONDS_PER_IMAGE = 0.01
SCORING = 2.0
"""Seconds of a look."""


def made_up(configuration: Configuration, quality: float) -> pd.DataFrame:
    """The rows of a training that comes to this AUC with 8,000 images, and wins 0.02 with a
    fall."""

    def row(arm: str, images: int, looks: int, auc: float) -> dict[str, object]:
        return {
            "config": configuration.number,
            "kind": configuration.kind,
            "backbone": configuration.backbone,
            "image_size": 64,
            "parameters": configuration.packed,
            "arm": arm,
            "images": images,
            "seconds": images * SECONDS_PER_IMAGE,
            "score_seconds": looks * SCORING,
            "auc_select": auc,
            "auc_report": auc - 0.01,
        }

    def auc(images: int) -> float:
        return quality - 0.05 * log(8_000 / images, 2)

    rows = [row("cosine", 2_000 * n, n, auc(2_000 * n)) for n in range(1, 5)]
    for n, images in enumerate([1_000, 2_000, 4_000, 6_400], 1):
        rows.append(row("constant", images, n, auc(images) - 0.02))
        if n > 1:
            rows.append(row(f"fall@{images}", images * 5 // 4, n + 1, auc(images)))
    return pd.DataFrame(rows, columns=COLUMNS)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Forty configurations, of which number 17, one that is drawn near, is by far the best."""
    settings = SearchSettings(backbones=PUBLISHED, pool="local", weights_dir=Path("weights"))
    drawn = configurations(space_of(settings, 64, 64), 40)
    assert drawn[17].kind == "near"
    qualities = 0.7 + 0.05 * np.random.default_rng(0).random(40)
    qualities[17] = 0.9
    return pd.concat([made_up(one, qualities[one.number]) for one in drawn])


@pytest.fixture(scope="module")
def world(table: pd.DataFrame) -> World:
    return read_world(table, PUBLISHED, "local")


@pytest.fixture
def course(world: World) -> Course:
    return world.courses[17]


def test_a_course_is_what_was_recorded(course: Course) -> None:
    assert (course.first_look, course.length, course.branches) == (
        (1_000, 6_400, (2_000, 4_000, 6_400))
    )
    assert course.whole_seconds == pytest.approx(8_000 * SECONDS_PER_IMAGE + 4 * SCORING)
    for look in course.constant:
        assert course.at(look.images) == look
    between = course.at(2_828)
    assert between.seconds == pytest.approx(28.28)
    halfway = (course.constant[1].auc_select + course.constant[2].auc_select) / 2
    assert between.auc_select == pytest.approx(halfway, abs=1e-4)
    for start, fall in zip(course.branches, course.falls, strict=True):
        found = course.fallen(start, fall.images)
        assert found.auc_select == pytest.approx(fall.auc_select)
        assert found.seconds == pytest.approx(fall.seconds)
    # Half of a fall wins half of it.
    gain = course.fallen(4_000, 4_500).auc_select - course.at(4_000).auc_select
    assert gain == pytest.approx(0.01)


def test_a_training_goes_on_to_the_end_of_what_was_recorded(course: Course) -> None:
    training = Training(course, Clock(1e9), [])
    training.go_on(3_000)
    assert [look.images for look in training.looks] == [1_000, 2_000, 3_000]
    assert training.seconds == pytest.approx(3_000 * SECONDS_PER_IMAGE + 3 * SCORING)
    training.go_on(50_000)
    assert [look.images for look in training.looks[3:]] == [4_000, 6_400, 8_000]
    assert training.is_complete
    assert training.looks[-1].auc_select == pytest.approx(course.falls[-1].auc_select)
    assert training.clock.now == pytest.approx(8_000 * SECONDS_PER_IMAGE + 6 * SCORING)


def test_a_training_that_failed_says_so_and_costs_what_it_took(table: pd.DataFrame) -> None:
    rows = table[table["config"] == 17].copy()
    is_late = rows["arm"].isin(["constant", "cosine"]) & (rows["images"] >= 4_000)
    rows.loc[is_late, ["auc_select", "auc_report"]] = nan
    keep = ~rows["arm"].str.startswith("fall@") & (rows["images"] <= 4_000)
    (course,) = read_courses(rows[keep])
    training = Training(course, Clock(1e9), [])
    training.finish(8_000)
    assert training.has_failed
    assert not training.is_complete
    assert training.clock.now == pytest.approx(4_000 * SECONDS_PER_IMAGE + 3 * SCORING)
    assert training.clock.best[-1][1] == pytest.approx(course.at(2_000).auc_select)
    assert [look.has_failed for look in cosine_looks(course, Clock(1e9))] == [False, True]


def test_what_does_not_fit_into_the_time_is_not_seen(course: Course) -> None:
    clock = Clock(61.0)
    with pytest.raises(TimeIsUp):
        list(cosine_looks(course, clock))
    assert clock.left == 0.0
    assert [seconds for seconds, *_ in clock.best] == [pytest.approx(22.0), pytest.approx(44.0)]


def test_the_nearest_of_the_same_backbone_is_taken_once() -> None:
    distributions = {
        "backbone": CategoricalDistribution(["a", "b"]),
        "rate": FloatDistribution(1e-4, 1e-2, log=True),
        "policy": CategoricalDistribution(["none", "light"]),
    }
    near = {"backbone": "a", "rate": 1e-3, "policy": "none"}
    assert squared_distance(near, near | {"rate": 1e-2}, distributions) == pytest.approx(0.25)
    assert squared_distance(near, near | {"policy": "light"}, distributions) == 1.0
    assert squared_distance(near, {"backbone": "a"}, distributions) == 0.0

    def course(number: int, **parameters: object) -> Course:
        one = Configuration(number, "near", near | parameters)
        return Course(one, (), (), (), (), 0.0)

    pool = Pool([course(0, backbone="b"), course(1, policy="light"), course(2, rate=1e-2)])
    taken = [pool.take(near, distributions).configuration.number for _ in range(3)]
    assert taken == [2, 1, 0]
    assert not pool


@pytest.mark.parametrize("name", by_name())
def test_an_arm_keeps_to_its_time_and_repeats_itself(world: World, name: str) -> None:
    arm, seconds = by_name()[name], 300.0
    found = best_so_far(world, arm, seconds, seed=1)
    assert found == best_so_far(world, arm, seconds, seed=1)
    times, select, report = map(np.array, zip(*found, strict=True))
    assert (np.diff(times) >= 0).all()
    assert times[-1] == seconds
    assert (np.diff(select[:-1]) > 0).all()
    assert report == pytest.approx(select - 0.01)
    # No look comes within a second.
    assert best_so_far(world, arm, 1.0, seed=1) == [(1.0, 0.5, 0.5)]


def test_arms_without_chance_find_what_there_is(world: World) -> None:
    def final(courses: list[Course]) -> float:
        return max(course.falls[-1].auc_select for course in courses)

    (hand,) = world.of("hand")
    assert best_so_far(world, by_hand, 1e4, 0)[-1][1] == hand.cosine[-1].auc_select
    found = best_so_far(world, presets_then_best, 1e4, 0)[-1][1]
    assert found == pytest.approx(final(world.of("preset")))


def test_ours_finds_the_best_and_goes_on_with_it(world: World, course: Course) -> None:
    # With time for a look at all that may be drawn: what is tested is that the best goes on.
    few = replace(world, courses=world.courses[:27])
    arms = {"ours": ours, "random": by_name()["random now"]}
    rows = replay(few, arms, 15 * course.whole_seconds, seeds=3)
    finals = rows.groupby(["arm", "seed"])["auc_select"].last()
    assert (finals["ours"] > 0.85).all()
    assert (finals["random"] < 0.8).all()


@pytest.mark.parametrize("name", by_name())
def test_a_part_of_the_curves_will_do(world: World, name: str) -> None:
    few = replace(world, courses=world.courses[:8])
    has_nothing = name in ("random", "random now")
    assert (best_so_far(few, by_name()[name], 1e5, seed=0)[-1][1] == 0.5) == has_nothing


def test_rules_reach_the_scheduler(world: World) -> None:
    one = partial(ours, rules=replace(default_rules(world), finalists=1, explored=0.05))
    assert best_so_far(world, one, 500.0, 0) != best_so_far(world, ours, 500.0, 0)


def test_the_summary_says_how_much_earlier_and_how_much_better() -> None:
    rows = pd.DataFrame(
        [
            ("ours", 0, 10.0, 0.7, 0.6),
            ("ours", 0, 20.0, 0.8, 0.75),
            ("ours", 0, 100.0, 0.9, 0.8),
            ("ours", 1, 40.0, 0.8, 0.7),
            ("ours", 1, 100.0, 0.8, 0.8),
            ("optuna", 0, 90.0, 0.8, 0.7),
            ("optuna", 0, 100.0, 0.8, 0.7),
            ("optuna", 1, 100.0, 0.8, 0.7),
        ],
        columns=["arm", "seed", "seconds", "auc_select", "auc_report"],
    )
    assert share_of_time(rows, "optuna", "auc_select") == pytest.approx(0.3)
    assert share_of_time(rows, "optuna", "auc_report") == pytest.approx(0.3)
    found = summary(rows).set_index("arm").loc["optuna"]
    assert found["auc_report"] == found["low_report"] == found["high_report"] == 0.7
    assert found["ours_above_select"] == pytest.approx(0.05)
    assert found["above_low_select"] == 0.0
    assert found["above_high_select"] == pytest.approx(0.1)


def test_the_command_writes_its_tables(table: pd.DataFrame, tmp_path: Path) -> None:
    curves = tmp_path / "curves.csv"
    table[table["config"] < 20].to_csv(curves, index=False)
    main(curves=curves, output=tmp_path / "replay.csv", seeds=1, lengths=1.5)
    rows = pd.read_csv(tmp_path / "replay.csv")
    assert set(rows["arm"]) == set(by_name())
    assert len(pd.read_csv(tmp_path / "replay_summary.csv")) == len(by_name())


def test_too_few_configurations_are_refused(table: pd.DataFrame) -> None:
    with pytest.raises(SystemExit, match="8 configurations or more must have been recorded"):
        read_world(table[table["config"] < 7], PUBLISHED, "local")
