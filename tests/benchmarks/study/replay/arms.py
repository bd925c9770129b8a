"""Ways of spending a time on configurations, on a simulated clock.

An arm ends when its time is up, or where there is nothing left that was recorded: `pool.py` tells
what stands for a configuration that it draws. No training goes on after the end of what was
recorded; so the recipe set by hand, and the best preset, end long before a long time is up, though
in earnest they would go on. Only in a time that such a training fills are they done justice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState

from search.study.decisions.layout import Known, Point, Rules, State
from search.study.decisions.proposals import propose
from search.study.decisions.scheduler import Finish, Stop, compared, next_work
from search.study.decisions.space import Parameters, Space
from tests.benchmarks.study.replay import earlier_space
from tests.benchmarks.study.replay.clock import Clock, Training, cosine_looks
from tests.benchmarks.study.replay.courses import Course
from tests.benchmarks.study.replay.curves import Kind
from tests.benchmarks.study.replay.pool import Pool, World

Arm = Callable[[World, Clock, int], None]
"""Spends a clock's seconds; the last argument is the seed."""

Propose = Callable[[Space, Sequence[tuple[Parameters, float]], int], Parameters]

OURS, PLAIN = "ours", "optuna"

A_FIFTH = "ours, a fifth"
"""Ours with a fifth of the time, which it lays out for that; only in earnest."""

FINALISTS = 3
"""Of the arm that gives everybody one look."""

SHARE_OF_LOOKS = 0.1
"""Of the time, as a search has it, where that and no number decides how many are begun."""

RANDOM_AT_FIRST = 10
"""Trials that Optuna draws by chance before TPE learns from them."""


def by_name() -> dict[str, Arm]:
    """All arms."""
    return {
        OURS: ours,
        PLAIN: plain_optuna,
        "optuna, present space": optuna_now,
        "70bbfd5": earlier,
        "random": random_old,
        "random, present space": random_now,
        "hand": by_hand,
        "presets, then best": presets_then_best,
        "one look, then best": one_look_then_best,
        "one look, then the best alone": partial(one_look_then_best, finalists=1),
        "a tenth for looks, then best": looks_then_best,
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
    _optimize(world, clock, seed, TPESampler(seed=seed), MedianPruner())


def earlier(world: World, clock: Clock, seed: int) -> None:
    """The search of 70bbfd5: presets, TPE in groups, and asynchronous halving; what is pruned never
    goes on. Its baseline is left out: it takes time, and wins nothing."""
    sampler = TPESampler(seed=seed, multivariate=True, group=True)
    pruner = SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    _optimize(world, clock, seed, sampler, pruner, first=world.of("old_preset"))


def optuna_now(world: World, clock: Clock, seed: int) -> None:
    """Plain Optuna, with the present space: what the rest of the search adds to the space."""
    _optimize(world, clock, seed, TPESampler(seed=seed), MedianPruner(), present=True)


def _optimize(
    world: World,
    clock: Clock,
    seed: int,
    sampler: BaseSampler,
    pruner: BasePruner,
    *,
    first: Sequence[Course] = (),
    present: bool = False,
) -> None:
    """A study, of the present space or of that of 70bbfd5, that tries some configurations first."""
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)

    def ask() -> optuna.Trial:
        if present:
            return study.ask(world.space.distributions)
        trial = study.ask()
        earlier_space.suggest(trial, world.space.backbones, pretrained=world.pretrained)
        return trial

    pool = Pool(world.of("near", "anywhere") if present else world.of("old"), seed)
    kind: Kind = "anywhere" if present else "old"
    learned = (TrialState.COMPLETE, TrialState.PRUNED)
    waiting = list(first)
    while waiting or pool:
        if waiting:
            course = waiting.pop(0)
        elif len(study.get_trials(deepcopy=False, states=learned)) < RANDOM_AT_FIRST:
            course = pool.draw(kind)
        else:
            drawn = ask()
            course = pool.nearest(drawn.params, drawn.distributions)
            # Samplers and pruners leave out what failed: they learn from what was trained instead.
            study.tell(drawn, state=TrialState.FAIL)
        study.enqueue_trial(course.configuration.parameters)
        trial = ask()
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


# Trained in the anytime way.


def random_now(world: World, clock: Clock, seed: int) -> None:
    """Configurations from anywhere in the present space, one after another to their end."""
    for course in _in_random_order(world.of("anywhere"), seed):
        Training(course, clock, []).finish(world.lengths[1])


def presets_then_best(world: World, clock: Clock, seed: int) -> None:
    """Every preset for a quarter of a training, then the best of them to the end: more was not
    recorded."""
    _best_to_the_end(world, [Training(course, clock, []) for course in world.of("preset")], 1)


def one_look_then_best(
    world: World, clock: Clock, seed: int, *, finalists: int = FINALISTS
) -> None:
    """Everybody a quarter of a training, then the best of them to the end (arXiv:2404.04111): the
    presets, then draws around the centre of the space, without learning from any."""
    trainings: list[Training] = []
    for course in world.of("preset") + _in_random_order(world.of("near"), seed):
        whole = course.whole_seconds
        if trainings and (0.25 + 0.75 * finalists) * whole > clock.left:
            break
        trainings.append(Training(course, clock, []))
        trainings[-1].go_on(world.lengths[1] // 4)
    _best_to_the_end(world, trainings, finalists)


def looks_then_best(world: World, clock: Clock, seed: int) -> None:
    """The presets, then draws from all of the space around its centre and beyond, are looked at
    once, as early as a search looks, for a share of the time; the best go to the end, one after the
    other, while there is time."""
    trainings: list[Training] = []
    for course in world.of("preset") + _in_random_order(world.of("near", "anywhere"), seed):
        if trainings and clock.now > SHARE_OF_LOOKS * clock.limit:
            break
        trainings.append(Training(course, clock, []))
        trainings[-1].go_on(world.lengths[0])
    sound = [one for one in trainings if not one.has_failed]
    for one in sorted(sound, key=lambda one: -one.looks[-1].auc_select):
        one.finish(world.lengths[1])


def _best_to_the_end(world: World, trainings: Sequence[Training], count: int) -> None:
    """Finishes so many of the best after a quarter of a training, which they get if they had
    none."""
    length = world.lengths[1]
    for one in trainings:
        one.go_on(length // 4)
    sound = [one for one in trainings if not one.has_failed]
    for one in sorted(sound, key=lambda one: -one.looks[-1].auc_select)[:count]:
        one.finish(length)


def ours(
    world: World,
    clock: Clock,
    seed: int,
    *,
    rules: Rules | None = None,
    presets: bool = True,
    unlearned: Kind | None = None,
    propose: Propose = propose,
) -> None:
    """This search: `next_work`, `compared` and `propose` themselves, told of what was recorded.

    Args:
        world: what there is.
        clock: its time.
        seed: of the draws.
        rules: of the scheduler; default: those of a search.
        presets: whether they come first.
        unlearned: kind of the draws, if nothing is to be learned.
        propose: or the same, faster.
    """
    space = replace(world.space, seed=seed)
    rules = rules or default_rules(world)
    pool = Pool(world.of("near", "anywhere"), seed)
    trainings = [Training(course, clock, []) for course in (world.of("preset") if presets else ())]
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
            number = len(known)
            results = [
                (trainings[one].course.configuration.parameters, auc)
                for one, auc in compared(known, rules, clock.left).items()
            ]
            if unlearned is not None:
                course = pool.draw(unlearned)
            else:
                course = pool.nearest(propose(space, results, number), space.distributions)
            trainings.append(Training(course, clock, []))
            known.append(Known(number, "waiting"))
        training = trainings[number]
        if isinstance(work, Finish):
            training.finish(work.images)
        else:
            assert work.until is not None
            training.go_on(work.until)
        known[number] = _known(number, training)


def default_rules(world: World) -> Rules:
    """Those of a search for a time whose trainings are as long as what was recorded."""
    first, whole = world.lengths
    return Rules(first_look=first, batch_size=world.space.batch_size, longest=whole)


def _known(number: int, training: Training) -> Known:
    points = tuple(
        Point(look.images, training.seconds(count), look.auc_select)
        for count, look in enumerate(training.looks, 1)
        if not look.has_failed
    )
    state: State = "complete" if training.is_complete else "paused"
    if training.has_failed:
        state = "failed"
    return Known(number, state, points, until=training.images)


def _in_random_order(courses: Sequence[Course], seed: int) -> list[Course]:
    return [courses[place] for place in np.random.default_rng(seed).permutation(len(courses))]


RULES: dict[str, tuple[float, ...]] = {
    "kept_in_time": (0.1, 0.34, 0.5),
    "finalists": (1, 2, 5),
    "explored": (0.05, 0.2, 0.3),
    "halvings": (0, 2),
    "configurations": (10, 40),
    "patience": (8, 30),
}
"""Values of the scheduler's rules that are tried, one changed at a time."""


def with_other_rules(world: World) -> dict[str, Arm]:
    """Ours as it is, and with one thing changed."""
    standard, own = default_rules(world), partial(ours, propose=_remembering(propose))
    found: dict[str, Arm] = {OURS: own}
    for name, values in RULES.items():
        for value in values:
            changed: dict[str, Any] = {name: value}
            found[f"{name} {value:g}"] = partial(own, rules=replace(standard, **changed))
    return found | {
        "no presets": partial(own, presets=False),
        "never learns": partial(own, unlearned="near"),
        "never learns, draws from anywhere": partial(own, unlearned="anywhere"),
    }


def _remembering(propose: Propose) -> Propose:
    """Asks once where several variants have found the same: nearly all of the time goes into TPE.
    It serves one space, but for its seed."""
    answers: dict[object, Parameters] = {}

    def answer(
        space: Space, results: Sequence[tuple[Parameters, float]], number: int
    ) -> Parameters:
        found = tuple((tuple(parameters.items()), auc) for parameters, auc in results)
        key = (space.seed, number, found)
        if key not in answers:
            answers[key] = propose(space, results, number)
        return answers[key]

    return answer
