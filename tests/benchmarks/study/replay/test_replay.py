"""The replay on curves that are made up: who is best, and what everything takes, is known."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf, log, nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search.settings.search import SearchSettings
from tests.benchmarks.study.replay.arms import (
    Arm,
    by_hand,
    by_name,
    default_rules,
    ours,
    presets_then_best,
    with_other_rules,
)
from tests.benchmarks.study.replay.clock import Clock, TimeIsUp, Training, cosine_looks
from tests.benchmarks.study.replay.courses import Course, read_courses
from tests.benchmarks.study.replay.curves import (
    COLUMNS,
    Configuration,
    Kind,
    configurations,
    recorded_space,
)
from tests.benchmarks.study.replay.pool import Pool, World, correlation_with_nearest, distance
from tests.benchmarks.study.replay.summary import share_of_time, summary, variants_summary
from tests.benchmarks.study.replay_search import (
    PUBLISHED,
    best_so_far,
    let_spend,
    main,
    read_world,
    replay,
    what_looks_tell,
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
    drawn = configurations(recorded_space(settings, 64, 64), 40)
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
    assert training.seconds(3) == pytest.approx(3_000 * SECONDS_PER_IMAGE + 3 * SCORING)
    assert training.seconds(0) == 0.0
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


DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "backbone": CategoricalDistribution(["a", "b"]),
    "rate": FloatDistribution(1e-4, 1e-2, log=True),
    "strength": FloatDistribution(1.0, 3.0),
    "size": IntDistribution(0, 0),
    "policy": CategoricalDistribution(["none", "light"]),
}
NEAR = {"backbone": "a", "rate": 1e-3, "strength": 2.0, "size": 0, "policy": "none"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 0.0),
        ({"rate": 1e-2}, 0.1),
        ({"rate": 1e-4}, 0.1),
        ({"strength": 3.0}, 0.1),
        ({"policy": "light"}, 0.2),
        ({"policy": "light", "backbone": "b"}, 0.4),
    ],
)
def test_distances_are_those_of_gower(change: dict[str, object], expected: float) -> None:
    assert distance(NEAR, NEAR | change, DISTRIBUTIONS) == pytest.approx(expected)


def test_what_one_configuration_lacks_is_not_between_two() -> None:
    assert distance(NEAR, {"rate": 1e-2}, DISTRIBUTIONS) == pytest.approx(0.5)
    assert distance(NEAR, {}, DISTRIBUTIONS) == 0.0


def unrecorded(number: int, kind: Kind = "near", **parameters: object) -> Course:
    return Course(Configuration(number, kind, NEAR | parameters), (), (), (), (), 0.0)


def test_the_nearest_of_the_same_backbone_is_taken_once() -> None:
    courses = [unrecorded(0, backbone="b"), unrecorded(1, policy="light"), unrecorded(2, rate=1e-2)]
    pool = Pool(courses, seed=0)
    taken = [pool.nearest(NEAR, DISTRIBUTIONS).configuration.number for _ in range(3)]
    assert taken == [2, 1, 0]
    assert not pool


def test_what_was_not_learned_is_drawn_by_chance_from_its_kind() -> None:
    courses = [unrecorded(number, "near") for number in range(4)] + [unrecorded(4, "anywhere")]
    first = set()
    for seed in range(40):
        pool = Pool(courses, seed)
        taken = [pool.draw("near").configuration.number for _ in range(5)]
        # One of another kind only where there is no other.
        assert sorted(taken[:4]) == [0, 1, 2, 3]
        assert taken[4] == 4
        first.add(taken[0])
    assert first == {0, 1, 2, 3}


def test_the_nearest_tells_nothing_of_qualities_that_are_made_up(world: World) -> None:
    assert abs(correlation_with_nearest(world)) < 0.5


def test_an_early_look_tells_all_where_curves_are_alike(world: World) -> None:
    found = what_looks_tell(world)
    assert list(found["images"]) == [1_000, 2_000, 4_000, 6_400, 8_000]
    for split in ("select", "report"):
        assert (found[f"rank_correlation_{split}"] == 1.0).all()
    courses = world.of("hand", "preset", "near", "anywhere")
    assert (found["configurations"] == len(courses)).all()


def found_by(world: World, arm: Arm, seconds: float, seed: int) -> list[tuple[float, float, float]]:
    return best_so_far(let_spend(world, arm, seconds, seed))


@pytest.mark.parametrize("name", by_name())
def test_an_arm_keeps_to_its_time_and_repeats_itself(world: World, name: str) -> None:
    arm, seconds = by_name()[name], 300.0
    found = found_by(world, arm, seconds, seed=1)
    assert found == found_by(world, arm, seconds, seed=1)
    times, select, report = map(np.array, zip(*found, strict=True))
    assert (np.diff(times) >= 0).all()
    assert times[-1] == seconds
    assert (np.diff(select[:-1]) > 0).all()
    assert report == pytest.approx(select - 0.01)
    # No look comes within a second.
    assert found_by(world, arm, 1.0, seed=1) == [(1.0, 0.5, 0.5)]


def test_arms_without_chance_find_what_there_is(world: World) -> None:
    def final(courses: list[Course]) -> float:
        return max(course.falls[-1].auc_select for course in courses)

    (hand,) = world.of("hand")
    assert found_by(world, by_hand, 1e4, 0)[-1][1] == hand.cosine[-1].auc_select
    found = found_by(world, presets_then_best, 1e4, 0)[-1][1]
    assert found == pytest.approx(final(world.of("preset")))


def test_ours_finds_the_best_and_goes_on_with_it(world: World, course: Course) -> None:
    # With time for a look at all that may be drawn: what is tested is that the best goes on.
    few = replace(world, courses=world.courses[:27])
    arms = {"ours": ours, "random": by_name()["random, present space"]}
    rows = replay(few, arms, 15 * course.whole_seconds, seeds=3)
    finals = rows.groupby(["arm", "seed"])["auc_select"].last()
    assert (finals["ours"] > 0.85).all()
    assert (finals["random"] < 0.8).all()


@pytest.mark.parametrize("name", by_name())
def test_a_part_of_the_curves_will_do(world: World, name: str) -> None:
    few = replace(world, courses=world.courses[:8])
    has_nothing = name in ("random", "random, present space", "optuna")
    assert (found_by(few, by_name()[name], 1e5, seed=0)[-1][1] == 0.5) == has_nothing


def test_what_is_changed_reaches_the_search(world: World) -> None:
    arms = with_other_rules(world)
    standard = found_by(world, arms.pop("ours"), 500.0, 0)
    assert found_by(world, partial(ours, rules=default_rules(world)), 500.0, 0) == standard
    same = [name for name, arm in arms.items() if found_by(world, arm, 500.0, 0) == standard]
    # What is drawn differs from seed to seed; rules may lead to the same end.
    assert len(same) < 2 * len(arms) / 3
    assert not {"no presets", "never learns"} & set(same)


@pytest.fixture
def replayed() -> pd.DataFrame:
    return pd.DataFrame(
        [
            ("ours", 0, 10.0, 0.7, 0.6, 90.0),
            ("ours", 0, 20.0, 0.8, 0.75, 90.0),
            ("ours", 0, 100.0, 0.9, 0.8, 90.0),
            ("ours", 1, 40.0, 0.8, 0.7, 70.0),
            ("ours", 1, 100.0, 0.8, 0.8, 70.0),
            ("optuna", 0, 90.0, 0.8, 0.7, 100.0),
            ("optuna", 0, 100.0, 0.8, 0.7, 100.0),
            ("optuna", 1, 100.0, 0.8, 0.7, 100.0),
        ],
        columns=["arm", "seed", "seconds", "auc_select", "auc_report", "spent"],
    )


def test_the_summary_says_how_much_earlier_and_how_much_better(replayed: pd.DataFrame) -> None:
    found = summary({6.0: replayed}).set_index("arm")
    plain, own = found.loc["optuna"], found.loc["ours"]
    assert plain["auc_report"] == plain["auc_report_low"] == plain["auc_report_high"] == 0.7
    assert plain["above_select"] == pytest.approx(0.05)
    assert plain["above_select_low"] == 0.0
    assert plain["above_select_high"] == pytest.approx(0.1)
    assert plain["above_report"] == plain["above_report_low"] == pytest.approx(0.1)
    assert own["above_select"] == 0.0
    assert own["share_of_time"] == own["share_of_time_low"] == 0.2
    assert own["share_of_time_high"] == 0.4
    assert (own["spent"], plain["spent"]) == (0.8, 1.0)


def test_who_never_comes_there_has_no_share_of_the_time(replayed: pd.DataFrame) -> None:
    found = share_of_time(replayed, "optuna", "ours")
    assert found["share_of_time"] == found["share_of_time_high"] == inf
    # Where both seeds that are drawn of ours are the worse one.
    assert found["share_of_time_low"] == 0.9


def test_variants_are_compared_on_select_alone(replayed: pd.DataFrame) -> None:
    found = variants_summary({6.0: replayed})
    assert list(found["variant"]) == ["ours", "optuna"]
    assert list(found["difference"]) == [0.0, pytest.approx(-0.05)]
    assert not [name for name in found if "report" in str(name)]


def test_the_command_reads_parts_and_writes_its_tables(
    table: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = (tmp_path / "one.csv", tmp_path / "other.csv")
    table[table["config"] < 12].to_csv(parts[0], index=False)
    table[table["config"].between(15, 22)].to_csv(parts[1], index=False)
    output = tmp_path / "replay.csv"
    main(curves=parts, output=output, seeds=1, lengths=(1.5, 3.0), variants=True)
    assert "20 configurations" in capsys.readouterr().out
    rows = pd.read_csv(output)
    assert list(rows) == ["arm", "seed", "seconds", "auc_select", "auc_report"]
    assert set(rows["arm"]) == set(by_name())
    assert rows["seconds"].max() == rows.groupby("arm")["seconds"].max().min()
    summed = pd.read_csv(tmp_path / "replay_summary.csv")
    assert list(summed.groupby("lengths").size()) == 2 * [len(by_name())]
    variants = pd.read_csv(tmp_path / "replay_variants.csv")
    assert len(variants) > len(summed)
    assert len(pd.read_csv(tmp_path / "replay_looks.csv")) == 5


def test_too_few_configurations_are_refused(table: pd.DataFrame) -> None:
    with pytest.raises(SystemExit, match="8 configurations or more must have been recorded"):
        read_world(table[table["config"] < 7], PUBLISHED, "local")


def test_a_file_that_is_given_twice_is_refused(table: pd.DataFrame) -> None:
    part = table[table["config"] == 3]
    with pytest.raises(SystemExit, match="in one file alone, found 3 twice"):
        read_world(pd.concat([table, part]), PUBLISHED, "local")
