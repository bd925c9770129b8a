"""The scheduler against simulated trainings: it sees looks, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from search.study.decisions.layout import (
    CHANCE,
    ERROR_KEPT,
    Known,
    Point,
    Rules,
    State,
    lay_out,
)
from search.study.decisions.scheduler import (
    TOO_LITTLE,
    Finish,
    GoOn,
    Start,
    Stop,
    compared,
    forecast,
    is_flat,
    next_work,
    worth_keeping,
)

IMAGES = Rules(first_look=1_000, trials=12, longest=8_000)
TIME = Rules(first_look=1_000)


@dataclass
class Simulation:
    """A search whose configurations are curves and speeds.

    Attributes:
        quality: AUC that a configuration comes to.
        speed: seconds an image.
    """

    rules: Rules
    limit: float | None = None
    quality: Callable[[int], float] = lambda number: 0.7 + 0.01 * (number * 7 % 12)
    speed: Callable[[int], float] = lambda _: 0.01
    known: list[Known] = field(default_factory=list)
    seconds: float = 0.0
    log: list[object] = field(default_factory=list)

    def auc(self, number: int, images: float) -> float:
        return self.quality(number) - 0.2 / math.sqrt(1 + images / 1_000)

    def step(self) -> bool:
        left = None if self.limit is None else self.limit - self.seconds
        if left is not None and left <= 0:
            return False
        work = next_work(self.known, self.rules, left)
        self.log.append(work)
        if isinstance(work, Stop):
            return False
        if work.number is None:
            self.known.append(Known(len(self.known), "waiting"))
        number = len(self.known) - 1 if work.number is None else work.number
        one = self.known[number]
        assert one.state in ("waiting", "paused")
        end = work.images if isinstance(work, Finish) else self.rules.longest
        until = end if isinstance(work, Finish) else work.until or end
        assert until is not None
        # As a training does.
        until = round(until / self.rules.batch_size) * self.rules.batch_size
        assert until > one.images
        points = [*one.points]
        look = max(self.rules.first_look, 2 * one.images)
        while look < until:
            points.append(self.point(number, look))
            look *= 2
        points.append(self.point(number, until))
        self.seconds += (until - one.images) * self.speed(number)
        ends = isinstance(work, Finish) or work.until is None
        self.known[number] = replace(
            one, state="complete" if ends else "paused", points=tuple(points), until=until
        )
        return True

    def point(self, number: int, images: int) -> Point:
        return Point(images, images * self.speed(number), self.auc(number, images))

    def run(self) -> Simulation:
        for _ in range(500):
            if not self.step():
                return self
        raise AssertionError("it does not end")

    @property
    def complete(self) -> list[Known]:
        return [one for one in self.known if one.state == "complete"]


def test_without_a_limit_halves_go_on_and_three_are_finished() -> None:
    found = Simulation(IMAGES).run()
    seen = sorted(one.images for one in found.known)
    assert seen == [1_000] * 6 + [2_000] * 3 + [8_000] * 3
    best = sorted(range(12), key=found.quality)[-3:]
    assert sorted(one.number for one in found.complete) == sorted(best)
    assert found.log[-1] == Stop()
    starts = [work for work in found.log if isinstance(work, Start)]
    assert starts == [Start(None, 1_000)] * 12
    # All get their first stretch before any gets a second one.
    assert found.log[:12] == starts


def test_more_trials_go_on_with_what_there_is() -> None:
    found = Simulation(IMAGES).run()
    before = {one.number: one.images for one in found.known}
    found.rules = replace(IMAGES, trials=20)
    found.run()
    assert len(found.known) == 20
    assert all(found.known[number].images >= images for number, images in before.items())


def test_what_waits_comes_before_what_is_drawn_and_the_baseline_first() -> None:
    waiting = [Known(0, "waiting", is_baseline=True), Known(1, "waiting"), Known(2, "waiting")]
    assert next_work(waiting, IMAGES) == Start(0, None)
    waiting[0] = replace(waiting[0], state="complete", points=(Point(16_000, 9.0, 0.99),))
    assert next_work(waiting, IMAGES) == Start(1, 1_000)
    found = Simulation(replace(IMAGES, trials=5), known=waiting).run()
    assert len(found.known) == 5
    # However good, it is compared with nothing.
    assert len([one for one in found.complete if not one.is_baseline]) == 3


def test_what_was_stopped_amid_its_work_goes_on_first() -> None:
    found = Simulation(IMAGES)
    while len(found.known) < 3:
        found.step()
    stopped = replace(found.known[1], state="paused", points=(), until=1_000)
    found.known[1] = stopped
    assert next_work(found.known, IMAGES) == GoOn(1, 1_000)
    found.known[1] = replace(stopped, until=None)
    assert next_work(found.known, IMAGES) == GoOn(1, None)


def test_failures_and_pruned_ones_are_left_alone() -> None:
    found = Simulation(IMAGES)
    while len(found.known) < 12:
        found.step()
    best = max(range(12), key=found.quality)
    found.known[best] = replace(found.known[best], state="failed")
    second = sorted(range(12), key=found.quality)[-2]
    found.known[second] = replace(found.known[second], state="pruned")
    found.run()
    assert {best, second}.isdisjoint(one.number for one in found.complete)
    assert len(found.complete) >= 2


def test_a_training_of_one_look_is_finished_at_once() -> None:
    found = Simulation(replace(IMAGES, longest=1_000, trials=4)).run()
    assert found.log[:-1] == [Start(None, None)] * 4
    assert len(found.complete) == 4


def test_cosine_ends_where_it_began_to() -> None:
    found = Simulation(replace(IMAGES, prolongs=False, decay_fraction=0.0)).run()
    assert {one.images for one in found.complete} == {8_000}


@pytest.mark.parametrize("limit", [2_000.0, 20_000.0])
def test_the_time_given_is_used_up_and_no_more(limit: float) -> None:
    found = Simulation(TIME, limit).run()
    assert 0.85 * limit < found.seconds <= limit
    assert 15 <= len(found.known) <= 25
    # The best has most of it.
    best = max(found.known, key=lambda one: one.images)
    assert best.state == "complete"
    assert best.seconds > 0.3 * limit
    assert found.quality(best.number) >= sorted(map(found.quality, range(len(found.known))))[-2]
    assert len(found.complete) == TIME.finalists


@pytest.mark.parametrize("limit", [150.0, 300.0, 600.0])
@pytest.mark.parametrize("slow", [1, 4, 9])
def test_first_looks_that_take_long_leave_the_best_its_share(limit: float, slow: int) -> None:
    """Ten seconds each, and every third several times that."""
    found = Simulation(TIME, limit, speed=lambda n: 0.01 * (slow if n % 3 == 2 else 1)).run()
    best = max(found.known, key=lambda one: one.seconds)
    assert best.state == "complete"
    assert best.seconds > 0.5 * limit


@pytest.mark.parametrize(
    ("limit", "begun"), [(70.0, 1), (90.0, 2), (150.0, 2), (240.0, 2), (260.0, 3)]
)
def test_little_time_compares_two(limit: float, begun: int) -> None:
    """Where both of them, ten seconds each, take no more than a quarter of it."""
    found = Simulation(TIME, limit).run()
    assert len(found.known) == begun
    assert found.complete
    assert found.seconds <= limit


@pytest.mark.parametrize("limit", [150.0, 600.0, 20_000.0])
def test_the_best_is_finished_before_the_others(limit: float) -> None:
    """Whatever slows down the machine after that costs the others."""
    found = Simulation(TIME, limit).run()
    finished = [work.number for work in found.log if isinstance(work, Finish)]
    longest = max(found.known, key=lambda one: one.images)
    assert finished[0] == longest.number
    assert len(finished) == len(found.complete) >= 2


@pytest.mark.parametrize("limit", [150.0, 333.0, 1_000.0, 4_321.0])
def test_whole_batches_reach_what_they_are_told_to(limit: float) -> None:
    rules = Rules(first_look=1_184, batch_size=32)
    found = Simulation(rules, limit, speed=lambda number: 0.001 * (1 + number % 7)).run()
    works = found.log[:-1] if isinstance(found.log[-1], Stop) else found.log
    assert len(works) == len(set(map(str, works))) + works.count(Start(None, 1_184)) - 1
    assert found.complete


def test_time_that_no_training_can_use_brings_more_configurations() -> None:
    rules = replace(TIME, longest=8_000)
    found = Simulation(rules, 5_000.0, lambda number: 0.7 + 0.001 * number).run()
    whole = rules.longest * 0.01
    assert 5_000 - whole - rules.margin * whole - 1 < found.seconds <= 5_000
    assert len(found.known) > 2 * rules.configurations
    # What came late and was good is finished as well.
    assert max(one.number for one in found.complete) > 2 * rules.configurations
    few = Simulation(replace(rules, trials=12), 5_000.0, found.quality).run()
    assert len(few.known) == 12


@pytest.mark.parametrize("limit", [900.0, 5_000.0])
def test_no_rung_lies_behind_the_end_of_a_training(limit: float) -> None:
    found = Simulation(replace(TIME, longest=8_000), limit).run()
    assert max(work.until or 0 for work in found.log if isinstance(work, Start | GoOn)) <= 6_400
    assert max(one.images for one in found.complete) == 8_000


def test_a_slow_backbone_must_earn_its_time() -> None:
    """At the same images it is the best; at the same seconds it is not."""

    def speed(number: int) -> float:
        return 0.1 if number == 3 else 0.01

    def quality(number: int) -> float:
        return 0.83 if number == 3 else 0.75 + 0.002 * number

    found = Simulation(TIME, 4_000.0, quality, speed).run()
    assert found.known[3].seconds < 200.0  # its first look, and what its fall takes
    worthy = Simulation(TIME, 4_000.0, lambda n: 0.99 if n == 3 else 0.75, speed).run()
    assert worthy.known[3].seconds > 3_000.0


def test_what_is_slow_is_compared_as_if_it_had_had_the_others_seconds() -> None:
    """And learned from likewise."""
    looks = (Point(1_000, 10.0, 0.60), Point(2_000, 20.0, 0.66))
    known = [Known(n, "paused", (looks[0],), 1_000) for n in range(9)]
    known += [Known(9, "paused", looks, 2_000), Known(10, "paused", (Point(1_000, 20.0, 0.65),))]
    layout = lay_out(known, TIME, 900.0)
    assert layout.rungs == (10.0, 20.0)
    # Of an error of 0.4, 0.34 is left when the seconds have doubled.
    assert layout.error_kept == pytest.approx(0.85)
    brought_back = 1 - 0.35 / 0.85
    assert compared(known, TIME, 900.0) == {
        **dict.fromkeys(range(10), 0.60),
        10: pytest.approx(brought_back),
    }
    found = [layout.auc_at(known[10], rung) for rung in (0, 1)]
    assert found == pytest.approx([brought_back, 0.65])
    # As long as nothing is known of what the others win, a little is taken for granted.
    without = compared([*known[:9], known[10]], TIME, 900.0)
    assert without[10] == pytest.approx(1 - 0.35 / ERROR_KEPT)


def test_many_times_the_seconds_win_nothing_by_themselves() -> None:
    """What they would have brought to the others is held against them."""
    looks = (Point(1_000, 10.0, 0.60), Point(2_000, 20.0, 0.66), Point(4_000, 40.0, 0.72))
    known = [Known(n, "paused", looks[:1], 1_000) for n in range(15)]
    known += [Known(n, "paused", looks[:2], 2_000) for n in range(15, 19)]
    slow = Known(19, "paused", (Point(1_000, 80.0, 0.73),), 1_000)
    work = next_work([*known, slow], TIME, 1_600.0)
    assert isinstance(work, GoOn)
    assert work.number != 19


def test_all_are_compared_after_the_same_seconds() -> None:
    found = Simulation(TIME, 4_000.0, speed=lambda number: 0.01 * (1 + number % 3)).run()
    stretch = lay_out(found.known, TIME, 0.0).rungs[0]
    first = [next(p for p in one.points if p.seconds >= 0.9 * stretch) for one in found.known]
    assert all(point.seconds < 2.5 * stretch for point in first)


@pytest.mark.parametrize(
    ("rules", "left", "expected"),
    [
        (IMAGES, None, {1: 0.6, 2: 0.6, 3: CHANCE}),
        # The first stretch is 20 s, to which the first has not come yet.
        (TIME, 3_340.0, {2: 0.7, 3: CHANCE}),
    ],
)
def test_what_is_learned_from_is_the_first_stretch(
    rules: Rules, left: float | None, expected: dict[int, float]
) -> None:
    looks = (Point(1_000, 10.0, 0.6), Point(2_000, 20.0, 0.7), Point(64_000, 640.0, 0.9))
    known = [
        Known(0, "complete", (Point(16_000, 9.0, 0.99),), is_baseline=True),
        Known(1, "paused", looks[:1], 1_000),
        Known(2, "paused", looks, 64_000),
        Known(3, "failed"),
        Known(4, "waiting"),
    ]
    assert compared(known, rules, left) == pytest.approx(expected, abs=1e-4)


def test_a_flat_curve_is_finished_early_and_why_is_told() -> None:
    curve = Simulation(TIME, 100_000.0)
    curve.auc = lambda number, images: 0.7 + 0.001 * number  # type: ignore[method-assign]
    curve.run()
    assert curve.seconds < 0.7 * 100_000
    best = max(curve.complete, key=lambda one: one.images)
    assert is_flat(best, TIME)
    assert isinstance(curve.log[-1], Stop)
    assert "less than 1% of its error" in curve.log[-1].reason


def test_a_high_auc_is_flat_by_its_error() -> None:
    """At 0.998, 0.001 is half of it."""
    curve = Simulation(TIME, 100_000.0)
    curve.auc = lambda number, images: 1 - 0.01 * (images / 1_000) ** -0.3  # type: ignore[method-assign]
    curve.run()
    assert curve.seconds > 0.85 * 100_000


def test_one_look_that_is_no_better_is_noise() -> None:
    points = [Point(1_000 * 2**n, 10.0 * 2**n, 0.8 + 0.02 * n) for n in range(5)]
    assert not is_flat(Known(0, "paused", (*points, Point(32_000, 320.0, 0.87))), TIME)
    last = (Point(32_000, 320.0, 0.88), Point(64_000, 640.0, 0.88))
    assert is_flat(Known(0, "paused", (*points, *last)), TIME)


def test_a_flat_best_of_known_length_leaves_its_time_to_others() -> None:
    rules = replace(TIME, longest=28_000)
    curve = Simulation(rules, 20_000.0)
    curve.auc = lambda number, images: 0.7 + 0.001 * number  # type: ignore[method-assign]
    curve.run()
    assert curve.seconds > 0.8 * 20_000


def test_a_search_that_used_its_time_did_not_end_early() -> None:
    """Though the last configurations were no better."""
    found = Simulation(TIME, 20_000.0, lambda n: 0.9 if n == 0 else 0.7).run()
    assert len(found.known) > TIME.patience
    assert found.log[-1] in (Stop(), Stop(TOO_LITTLE))


@pytest.mark.parametrize(
    ("waiting", "limit", "begun", "drawn"),
    [(33, 20_000.0, 20, 10), (33, 600.0, 6, 3), (4, 20_000.0, 20, 16)],
)
def test_a_large_pool_leaves_time_to_draw(
    waiting: int, limit: float, begun: int, drawn: int
) -> None:
    """Its defaults would take all of it."""
    found = Simulation(TIME, limit, known=[Known(n, "waiting") for n in range(waiting)]).run()
    assert sum(bool(one.points) for one in found.known) == begun
    assert len(found.known) - waiting == drawn


def test_few_trials_share_the_time_to_begin_them() -> None:
    assert lay_out([], replace(TIME, trials=5), 10_000.0).rungs[0] == 200.0
    assert lay_out([], TIME, 10_000.0).rungs[0] == 50.0


def test_what_fails_takes_of_the_time_to_begin_configurations() -> None:
    """Three of four fail, after five times the seconds of a first look."""
    known: list[Known] = []
    left = 10_000.0
    while isinstance(next_work(known, TIME, left), Start):
        number = len(known)
        if number % 4:
            known.append(Known(number, "failed", lost=300.0))
            left -= 300.0
        else:
            known.append(Known(number, "paused", (Point(1_000, 60.0, 0.7),), 1_000))
            left -= 60.0
    assert 0.05 * 10_000.0 < 10_000.0 - left < 0.15 * 10_000.0


@pytest.mark.parametrize(
    ("one", "left", "expected"),
    [
        # An hour was given when it was begun.
        (Known(0, "paused", (Point(9_000, 90.0, 0.8),), 600_000), 600.0, GoOn),
        # Its rate may fall already.
        (Known(0, "paused", (Point(9_000, 90.0, 0.8),), None), 5.0, None),
        (Known(0, "paused", (Point(9_000, 90.0, 0.8),), 10_000), 600.0, None),
    ],
)
def test_less_time_than_was_given_first_is_laid_out_anew(
    one: Known, left: float, expected: type | None
) -> None:
    work = next_work([one], replace(TIME, trials=1), left)
    if expected is None:
        assert work == GoOn(0, one.until)
    else:
        assert isinstance(work, GoOn | Finish)
        found = work.images if isinstance(work, Finish) else work.until
        assert found is not None
        assert 9_000 < found <= 9_000 + 100 * left


def test_no_rung_is_climbed_that_leaves_no_time_to_finish() -> None:
    """What came second takes eight times as long, and the stretch of all with it."""
    found = Simulation(TIME, 120.0, speed=lambda n: 0.08 if n == 1 else 0.01).run()
    assert found.complete


@pytest.mark.parametrize(("patience", "expected"), [(15, 30), (40, 40)])
def test_nothing_better_for_long_ends_the_drawing(patience: int, expected: int) -> None:
    rules = replace(IMAGES, trials=60, patience=patience)
    found = Simulation(rules, quality=lambda number: 0.9 if number == 4 else 0.7).run()
    assert len(found.known) == 4 + 1 + expected
    assert isinstance(found.log[-1], Stop)
    assert f"{expected} configurations" in found.log[-1].reason
    assert found.known[4].state == "complete"


def test_the_baseline_is_trained_if_it_costs_little() -> None:
    rules = replace(TIME, baseline_images=2_000)
    baseline = Known(0, "waiting", is_baseline=True)
    for limit, affordable, seconds in ((200.0, False, 10), (20_000.0, True, 300)):
        assert next_work([baseline], rules, limit) == Start(None, 1_000)
        images = 100 * seconds
        known = [baseline, Known(1, "paused", (Point(images, seconds, 0.6),), images)]
        work = next_work(known, rules, limit)
        assert (work == Start(0, None)) == affordable


def test_a_forecast_is_what_comes() -> None:
    found = Simulation(IMAGES)
    while len(found.known) < 5:
        found.step()
    ahead = forecast(found.known, IMAGES, 0.01)
    before = found.seconds
    assert ahead == pytest.approx(found.run().seconds - before)
    assert forecast(found.known, IMAGES, 0.01) == 0.0


def test_a_forecast_passes_over_what_the_rules_reject() -> None:
    """Which has a number, and is not known."""
    known = [
        Known(1, "complete", (Point(2_000, 20.0, 0.6),), is_baseline=True),
        *(Known(number, "paused", (Point(1_000, 10.0, 0.7),), 1_000) for number in (2, 3)),
    ]
    # Three more to begin, two of six that go on to the second rung, and three that are finished.
    assert forecast(known, replace(IMAGES, trials=6), 0.01) == pytest.approx(3 * 10 + 3 * 70)


@pytest.mark.parametrize("state", ["failed", "pruned"])
def test_what_failed_leaves_its_time_to_another(state: State) -> None:
    only = Known(0, state, (Point(1_000, 100.0, 0.6),), 1_000)
    assert next_work([only], TIME, 400.0) == Start(None, 1_000)


def test_much_more_time_is_used_though_the_finalists_are_complete() -> None:
    looks = (Point(1_000, 10.0, 0.80), Point(2_000, 20.0, 0.85), Point(20_000, 200.0, 0.9))
    known = [Known(number, "complete", looks) for number in range(3)]
    looks = (Point(1_000, 10.0, 0.60), Point(2_000, 20.0, 0.65))
    known += [Known(number, "paused", looks, 2_000) for number in range(3, 20)]
    work = next_work(known, TIME, 1_000.0)
    assert isinstance(work, GoOn)
    assert (work.number, work.until) == (3, pytest.approx(2_000 + 75_000 / 2, rel=0.02))
    assert isinstance(next_work(known, TIME, 50.0), Stop)


def test_what_is_slow_does_not_end_the_drawing() -> None:
    """It had many times the seconds of those that were drawn after it."""
    slow = Known(0, "paused", (Point(1_000, 40.0, 0.67),), 1_000)
    drawn = [Known(n, "paused", (Point(1_000, 10.0, 0.6 + n / 100),), 1_000) for n in range(1, 5)]
    assert next_work([slow, *drawn], replace(TIME, patience=3), 900.0) == Start(None, 1_000)


def test_a_rate_that_falls_already_falls_to_the_end_it_has() -> None:
    """A training of known length that was stopped while its rate fell."""
    rules = replace(TIME, longest=8_000, trials=1)
    late = Known(0, "paused", (Point(2_000, 20.0, 0.8), Point(7_000, 70.0, 0.9)), until=7_000)
    assert next_work([late], rules, 30.0) == GoOn(0, None)
    early = replace(late, points=(Point(2_000, 20.0, 0.8), Point(6_000, 60.0, 0.9)), until=6_000)
    assert next_work([early], rules, 30.0) == Finish(0, 8_000)


def test_more_time_after_the_best_is_complete_is_for_the_others() -> None:
    first = Simulation(TIME, 600.0).run()
    known = list(first.known)
    spent = first.seconds
    more = Simulation(TIME, 1_200.0, known=known, seconds=spent).run()
    assert len(more.complete) > len(first.complete)
    assert more.seconds > 900.0


@pytest.mark.parametrize("look", [4.0, 5.0, 6.0])
def test_less_than_a_look_that_is_left_is_trained_on_all_the_same(look: float) -> None:
    found = Simulation(TIME, 10.0, speed=lambda _: look / 1_000).run()
    assert found.complete
    assert found.seconds > 0.9 * 10.0


def test_a_known_length_leaves_no_time_that_a_finalist_could_use() -> None:
    for trainings in (3, 6):
        limit = trainings * 80.0
        found = Simulation(replace(TIME, longest=8_000, trials=20), limit).run()
        assert limit - found.seconds < 1.1 * 80.0


@pytest.mark.parametrize(("complete", "kept"), [(0.0, [1, 2]), (0.82, [1]), (0.9, [])])
def test_what_is_better_than_all_that_is_complete_is_worth_keeping(
    complete: float, kept: list[int]
) -> None:
    known = [
        Known(0, "complete", (Point(1_000, 10.0, 0.6), Point(2_000, 20.0, complete))),
        Known(1, "paused", (Point(1_000, 10.0, 0.85), Point(2_000, 20.0, 0.84))),
        Known(2, "paused", (Point(1_000, 10.0, 0.8),)),
        Known(3, "paused"),
        Known(4, "pruned", (Point(1_000, 10.0, 0.95),)),
        Known(5, "paused", (Point(1_000, 10.0, 0.99),), is_baseline=True),
    ]
    if not complete:
        del known[0]
    assert [one.number for one in worth_keeping(known, TIME)] == kept
    assert worth_keeping(known, replace(TIME, prolongs=False)) == []


def test_what_was_pruned_takes_no_finalists_place() -> None:
    points = (Point(1_000, 10.0, 0.8), Point(2_000, 20.0, 0.82), Point(4_000, 40.0, 0.85))
    pruned = [Known(n, "pruned", (Point(1_000, 10.0, 0.9),)) for n in range(3)]
    paused = Known(3, "paused", points, until=4_000)
    work = next_work([*pruned, paused], replace(TIME, trials=4), 100.0)
    assert isinstance(work, GoOn | Finish)
    assert work.number == 3
