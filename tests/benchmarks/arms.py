"""Ways of spending a time on configurations, on a simulated clock: nothing is trained.

An arm ends when its time is up, or where it wants to go on after the end of what was recorded. A
configuration that it draws is the recorded one that is nearest and was not used yet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState

from search.study.driving import CHANCE
from search.study.proposals import propose
from search.study.scheduler import Finish, Known, Point, Rules, State, Stop, lay_out, next_work
from search.study.space import BACKBONE, Space
from search.training.recipe import Recipe
from tests.benchmarks import earlier_space
from tests.benchmarks.courses import WHOLE_FALL, Course, Look

FINALISTS = 3
"""Of the arm that gives everybody one look."""


class TimeIsUp(Exception):  # noqa: N818 - how an arm usually ends
    """All of an arm's seconds are spent."""


class Clock:
    """What an arm has spent, and the best that it has seen.

    Attributes:
        limit: its seconds.
        now: those that it has spent.
        best: (seconds, AUC on select, AUC on report) whenever the best on select changed.
    """

    def __init__(self, limit: float) -> None:
        self.limit, self.now = limit, 0.0
        self.best: list[tuple[float, float, float]] = []

    @property
    def left(self) -> float:
        """Seconds."""
        return self.limit - self.now

    def see(self, look: Look, seconds: float) -> None:
        """A look that took so many seconds, the training before it included; looks at trainings
        that are paused or pruned afterwards count as well, for every arm.

        Raises:
            TimeIsUp: if there are fewer left.
        """
        if seconds > self.left:
            self.now = self.limit
            raise TimeIsUp
        self.now += seconds
        if not look.has_failed and (not self.best or look.auc_select > self.best[-1][1]):
            self.best.append((self.now, look.auc_select, look.auc_report))


@dataclass(frozen=True)
class World:
    """What all arms find."""

    space: Space
    courses: tuple[Course, ...]

    def of(self, *kinds: str) -> list[Course]:
        """The courses of some kinds, in their order."""
        return [course for course in self.courses if course.configuration.kind in kinds]

    @property
    def pretrained(self) -> bool:
        """Whether networks start from weights."""
        return self.space.weights != "none"

    @property
    def lengths(self) -> tuple[int, int]:
        """Images of the first look, and of a training to its end."""
        return (
            min(course.first_look for course in self.courses),
            max(course.cosine[-1].images for course in self.courses),
        )


Arm = Callable[[World, Clock, int], None]
"""Spends a clock's seconds; the last argument is the seed."""


def by_name() -> dict[str, Arm]:
    """All arms; the first is what the others are compared with."""
    return {
        "ours": ours,
        "optuna": plain_optuna,
        "70bbfd5": earlier,
        "random": random_old,
        "random now": random_now,
        "hand": by_hand,
        "presets, then best": presets_then_best,
        "one look, then best": one_look_then_best,
    }


# Trained with cosine to the end.


def by_hand(world: World, clock: Clock, seed: int) -> None:
    """The recipe set by hand, once to the end: more was not recorded."""
    for course in world.of("hand"):
        for _ in cosine_looks(course, clock):
            pass


def random_old(world: World, clock: Clock, seed: int) -> None:
    """Configurations of the space of 70bbfd5, one after another."""
    for course in _in_random_order(world.of("old"), seed):
        for _ in cosine_looks(course, clock):
            pass


def plain_optuna(world: World, clock: Clock, seed: int) -> None:
    """Optuna as its documentation shows it, with the space of 70bbfd5: its default sampler, and
    the median pruner."""
    _optimize(world, clock, TPESampler(seed=seed), MedianPruner(), ())


def earlier(world: World, clock: Clock, seed: int) -> None:
    """The search of 70bbfd5: presets, TPE in groups, and asynchronous halving; what is pruned never
    goes on. Its baseline is left out: it takes time, and wins nothing."""
    sampler = TPESampler(seed=seed, multivariate=True, group=True)
    pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    _optimize(world, clock, sampler, pruner, world.of("old_preset"))


def _optimize(
    world: World, clock: Clock, sampler: BaseSampler, pruner: BasePruner, first: Sequence[Course]
) -> None:
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    pool = Pool([course for course in world.of("old", "old_preset") if course not in first])
    backbones = world.space.backbones
    waiting = list(first)
    while waiting or pool:
        if waiting:
            course = waiting.pop(0)
        else:
            drawn = study.ask()
            proposal = earlier_space.suggest(drawn, backbones, pretrained=world.pretrained)
            course = pool.take(proposal, drawn.distributions)
            # Samplers and pruners leave out what failed: they learn from what was trained instead.
            study.tell(drawn, state=TrialState.FAIL)
        study.enqueue_trial(course.configuration.parameters)
        trial = study.ask()
        earlier_space.suggest(trial, backbones, pretrained=world.pretrained)
        study.tell(trial, *_outcome(trial, course, clock))


def _outcome(
    trial: optuna.Trial, course: Course, clock: Clock
) -> tuple[float | None, TrialState | None]:
    for epoch, look in enumerate(cosine_looks(course, clock), 1):
        if look.has_failed:
            return None, TrialState.FAIL
        trial.report(look.auc_select, epoch)
        if trial.should_prune():
            return None, TrialState.PRUNED
    return look.auc_select, None


def cosine_looks(course: Course, clock: Clock) -> Iterator[Look]:
    """The looks at a training with cosine, as they come."""
    before = 0.0
    for look in course.cosine:
        clock.see(look, look.seconds - before + course.look_seconds)
        before = look.seconds
        yield look


# Trained in the anytime way.


@dataclass
class Training:
    """A training in the anytime way, as far as it is."""

    course: Course
    clock: Clock
    looks: list[Look]
    is_complete: bool = False

    @property
    def images(self) -> int:
        """That it has seen."""
        return self.looks[-1].images if self.looks else 0

    @property
    def seconds(self) -> float:
        """That it has taken, its looks included."""
        trained = self.looks[-1].seconds if self.looks else 0.0
        return trained + len(self.looks) * self.course.look_seconds

    @property
    def has_failed(self) -> bool:
        """Whether it cannot go on."""
        return bool(self.looks) and self.looks[-1].has_failed

    def go_on(self, until: int) -> None:
        """Trains at the constant rate, with looks whenever the images have doubled; what wants to
        go further than was recorded is finished there."""
        look = self.course.first_look
        while not self.has_failed and self.images < min(until, self.course.length):
            while look <= self.images:
                look *= 2
            self._see(self.course.at(min(look, until, self.course.length)))
        if until > self.course.length:
            self.finish(round(self.course.length * (1 + WHOLE_FALL)))

    def finish(self, images: int) -> None:
        """Trains to an end after so many images; the rate falls over its share of them."""
        constant = round((1 - Recipe.decay_fraction) * images)
        if constant > self.images:
            self.go_on(min(constant, self.course.length))
        if self.has_failed or self.is_complete:
            return
        end = min(images, round(self.images * (1 + WHOLE_FALL)))
        self._see(self.course.fallen(self.images, end))
        self.is_complete = True

    def _see(self, look: Look) -> None:
        before = self.looks[-1].seconds if self.looks else 0.0
        self.clock.see(look, look.seconds - before + self.course.look_seconds)
        self.looks.append(look)


def random_now(world: World, clock: Clock, seed: int) -> None:
    """Configurations from anywhere in the present space, one after another: what the scheduler
    adds to the space."""
    for course in _in_random_order(world.of("anywhere"), seed):
        Training(course, clock, []).finish(world.lengths[1])


def presets_then_best(world: World, clock: Clock, seed: int) -> None:
    """Every preset for a quarter of a training, then the best of them to the end: more was not
    recorded."""
    _best_to_the_end(world, [Training(course, clock, []) for course in world.of("preset")], 1)


def one_look_then_best(world: World, clock: Clock, seed: int) -> None:
    """Everybody a quarter of a training, then the best of them to the end (arXiv:2404.04111): the
    presets, then draws around the centre of the space, without learning from any."""
    quarter = world.lengths[1] // 4
    pool = Pool(world.of("near", "anywhere"))
    trainings: list[Training] = []
    waiting = world.of("preset")
    space = replace(world.space, seed=seed)
    while waiting or pool:
        if waiting:
            course = waiting.pop(0)
        else:
            generator = np.random.default_rng((seed, len(trainings)))
            course = pool.take(space.near_centre(generator), space.distributions)
        rest = 0.75 * course.whole_seconds
        if trainings and 0.25 * course.whole_seconds + FINALISTS * rest > clock.left:
            break
        trainings.append(Training(course, clock, []))
        trainings[-1].go_on(quarter)
    _best_to_the_end(world, trainings, FINALISTS)


def _best_to_the_end(world: World, trainings: Sequence[Training], count: int) -> None:
    """Finishes so many of the best after a quarter of a training, which they get if they had
    none."""
    length = world.lengths[1]
    for one in trainings:
        one.go_on(length // 4)
    sound = [one for one in trainings if not one.has_failed]
    for one in sorted(sound, key=lambda one: -one.looks[-1].auc_select)[:count]:
        one.finish(length)


def ours(world: World, clock: Clock, seed: int, rules: Rules | None = None) -> None:
    """This search: `next_work` and `propose` themselves, told of what was recorded."""
    space = replace(world.space, seed=seed)
    rules = rules or default_rules(world)
    presets = world.of("preset")
    pool = Pool(world.of("near", "anywhere"))
    trainings = [Training(course, clock, []) for course in presets]
    known = [Known(number, "waiting") for number in range(len(trainings))]
    while True:
        if not pool:
            # Nothing else was recorded.
            rules = replace(rules, trials=len(known))
        work = next_work(known, rules, clock.left)
        if isinstance(work, Stop):
            return
        number = work.number
        if number is None:
            layout, number = lay_out(known, rules, clock.left), len(known)
            results = [
                (trainings[one.number].course.configuration.parameters, auc)
                for one in known
                if (auc := CHANCE if one.state == "failed" else layout.first_auc(one)) is not None
            ]
            course = pool.take(propose(space, results, number), space.distributions)
            trainings.append(Training(course, clock, []))
            known.append(Known(number, "waiting"))
        one = trainings[number]
        if isinstance(work, Finish):
            one.finish(work.images)
        else:
            assert work.until is not None
            one.go_on(work.until)
        known[number] = _known(number, one)


def default_rules(world: World) -> Rules:
    """Those of a search for a time whose trainings are as long as what was recorded."""
    first, whole = world.lengths
    return Rules(first_look=first, batch_size=world.space.batch_size, longest=whole)


def _known(number: int, training: Training) -> Known:
    course, points = training.course, []
    for count, look in enumerate(training.looks, 1):
        if not look.has_failed:
            seconds = look.seconds + count * course.look_seconds
            points.append(Point(look.images, seconds, look.auc_select))
    state: State = "complete" if training.is_complete else "paused"
    if training.has_failed:
        state = "failed"
    return Known(number, state, tuple(points), until=training.images)


def _in_random_order(courses: Sequence[Course], seed: int) -> list[Course]:
    return [courses[place] for place in np.random.default_rng(seed).permutation(len(courses))]


class Pool:
    """Recorded configurations that were not used yet."""

    def __init__(self, courses: Collection[Course]) -> None:
        self.courses = list(courses)

    def __len__(self) -> int:
        return len(self.courses)

    def take(
        self, proposal: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
    ) -> Course:
        """The nearest one, of the same backbone while there is one; it is used then."""

        def distance(course: Course) -> tuple[bool, float]:
            own = course.configuration.parameters
            return own[BACKBONE] != proposal[BACKBONE], squared_distance(
                own, proposal, distributions
            )

        nearest = min(self.courses, key=distance)
        self.courses.remove(nearest)
        return nearest


def squared_distance(
    one: Mapping[str, Any], other: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]
) -> float:
    """Between two configurations, by what both have, each range from 0 to 1; choices that differ
    are 1 apart."""
    total = 0.0
    for name, distribution in distributions.items():
        if name in one and name in other:
            places = [_place(parameters[name], distribution) for parameters in (one, other)]
            if isinstance(distribution, CategoricalDistribution):
                total += places[0] != places[1]
            else:
                total += (places[0] - places[1]) ** 2
    return total


def _place(value: Any, distribution: BaseDistribution) -> Any:
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        return value
    low, high = distribution.low, distribution.high
    if low == high:
        return 0.0
    if distribution.log:
        return float(np.log(value / low) / np.log(high / low))
    return (value - low) / (high - low)
