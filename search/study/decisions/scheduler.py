"""What a search does next, as a pure function of what its storage knows.

Every configuration gets the same short stretch, the better ones go on to twice as much, and so on
(successive halving, arXiv:1502.07943), but from their checkpoints; the few that are left are
finished. With a time limit stretches are seconds, so that a backbone that takes ten times as long
must earn it; they take a tenth of the time, once again to twice as much, and the best gets all that
is left, or, where it is said how long a training is, the next ones and more configurations do.
Without one they are images: the same seed gives the same search. Where the shares come from:
tests/benchmarks/study/bench_scheduler.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from search.study.decisions.layout import (
    CHANCE,
    Known,
    Layout,
    Point,
    Rules,
    lay_out,
    median_seconds_per_image,
)


@dataclass(frozen=True)
class Start:
    """Begin a configuration."""

    number: int | None  # of one that waits; None draws a new one
    until: int | None  # images, as in Known


@dataclass(frozen=True)
class GoOn:
    """Train a paused candidate further."""

    number: int
    until: int | None


@dataclass(frozen=True)
class Finish:
    """Train a paused candidate to its end, which is known now."""

    number: int
    images: int  # of the whole training


@dataclass(frozen=True)
class Stop:
    """Do no more."""

    reason: str = ""
    """Worth telling, if it is not that all was done."""


Work = Start | GoOn | Finish | Stop


def next_work(known: Sequence[Known], rules: Rules, seconds_left: float | None = None) -> Work:
    """The next piece of work.

    Args:
        known: every configuration, in the order of their numbers.
        rules: how the search is laid out.
        seconds_left: of the time limit, for training alone; None without a limit, which needs
            `rules.trials` and `rules.longest`.
    """
    work = _next_work(known, rules, seconds_left)
    if isinstance(work, GoOn) and work.until is not None:
        # A training stops between two batches: what is not whole would never be reached.
        return GoOn(work.number, math.ceil(work.until / rules.batch_size) * rules.batch_size)
    return work


def compared(
    known: Sequence[Known], rules: Rules, seconds_left: float | None = None
) -> dict[int, float]:
    """What is learned from: the AUC that each configuration had on the first rung, by its number;
    one that failed is no better than chance. Arguments as for `next_work`."""
    layout = lay_out(known, rules, seconds_left)
    searched = [one for one in known if not one.is_baseline]
    failed = {one.number: CHANCE for one in searched if one.state == "failed"}
    found = failed | layout.comparable([one for one in searched if one.number not in failed])
    return {one.number: found[one.number] for one in searched if one.number in found}


def _next_work(known: Sequence[Known], rules: Rules, seconds_left: float | None) -> Work:
    layout = lay_out(known, rules, seconds_left)
    for one in known:
        if one.was_interrupted and not _outlasts(one, rules, layout):
            return GoOn(one.number, one.until)
    searched = [one for one in known if not one.is_baseline and one.state != "failed"]
    # What is drawn next is learned from the first rung.
    for one in searched:
        if layout.rungs and _is_to_reach(one, 0, searched, rules, layout):
            return GoOn(one.number, _images_at(one, layout, 0))
    has_settled = _has_settled(searched, rules, layout)
    another = _start(known, rules, replace(layout, explores=True))
    start = None if has_settled else _start(known, rules, layout)
    if start is None and not any(one.state in ("paused", "complete") for one in searched):
        # All that was begun failed, or was pruned.
        start = another
    if start is not None:
        return start
    kept = rules.kept if layout.seconds is None else rules.kept_in_time
    best, left_behind = [one for one in searched if one.state != "pruned"], list[Known]()
    for rung in range(len(layout.rungs)):
        for one in best:
            if _is_to_reach(one, rung, best, rules, layout):
                return GoOn(one.number, _images_at(one, layout, rung))
        members = layout.ranked(best, rung)
        if not members:
            break  # no time is left to get there
        if len(members) <= rules.finalists:
            best = members
            break
        count = max(rules.finalists, math.ceil(kept * len(members)))
        best, left_behind = members[:count], [*members[count:], *left_behind]
    finish = _finish([*best, *left_behind], rules, layout)
    if isinstance(finish, Stop) and another is not None:
        if has_settled and (layout.seconds is None or _affords_another(searched, rules, layout)):
            reason = f"the last {_patience(rules)} configurations were no better than those before"
            return Stop(reason)
        if _affords_another(searched, rules, layout):
            return another
    return finish


def _outlasts(one: Known, rules: Rules, layout: Layout) -> bool:
    """Whether the piece of work that a candidate was stopped amid, at a constant rate, is longer
    than the time left: more was given when it was begun."""
    if layout.seconds is None or not one.images or one.until is None or not rules.prolongs:
        return False
    return (one.until - one.images) * one.seconds / one.images > layout.left


def _is_to_reach(
    one: Known, rung: int, others: Sequence[Known], rules: Rules, layout: Layout
) -> bool:
    """Whether a candidate is below a rung, and there is time to get there before the rate of any of
    them falls."""
    if one.state != "paused" or layout.auc_at(one, rung) is not None:
        return False
    if layout.seconds is None:
        return True
    longest = max(layout.rungs[rung], *(other.seconds for other in others))
    needed = layout.rungs[rung] - one.seconds + rules.fall * longest
    return needed <= (1 - rules.margin) * layout.left


def _start(known: Sequence[Known], rules: Rules, layout: Layout) -> Start | None:
    """A configuration to begin, while there are to be more."""
    waiting = [one for one in known if one.state == "waiting"]
    for one in waiting:
        if one.is_baseline and _affords_baseline(known, rules, layout):
            return Start(one.number, None)
    begun = len(known) - len(waiting)
    if not layout.explores or (rules.trials is not None and begun >= rules.trials):
        return None
    number = next((one.number for one in waiting if not one.is_baseline), None)
    searched = sum(not one.is_baseline and one.state != "waiting" for one in known)
    if searched >= max(rules.finalists, rules.waiting_share * layout.affordable):
        number = None
    return Start(number, rules.first_look if layout.rungs else None)


def _affords_another(searched: Sequence[Known], rules: Rules, layout: Layout) -> bool:
    """Whether the time left when all is done would bring one more configuration to its end, if it
    was worth it; without an end, the best gets all the time."""
    looked = [one for one in searched if one.images]
    if layout.seconds is None or rules.longest is None or not looked:
        return False
    return rules.longest * median_seconds_per_image(looked) <= (1 - rules.margin) * layout.left


def _affords_baseline(known: Sequence[Known], rules: Rules, layout: Layout) -> bool:
    """Whether the baseline is worth its time; with a limit that is known after the first look."""
    if layout.seconds is None:
        return True
    looked = [one for one in known if one.images]
    if not looked:
        return False
    seconds = rules.baseline_images * median_seconds_per_image(looked)
    return seconds <= rules.baseline_share * layout.seconds


def _patience(rules: Rules) -> int:
    return max(rules.patience, (rules.trials or 0) // 2)


def _has_settled(searched: Sequence[Known], rules: Rules, layout: Layout) -> bool:
    """Whether the configurations begun last, so many, were all no better than those before."""
    if not layout.rungs:
        return False
    found = layout.comparable(searched)
    aucs = [found[number] for number in sorted(found)]
    patience = _patience(rules)
    waits = any(one.state == "waiting" for one in searched)
    # With a time limit there may be more that wait than ever begin.
    if len(aucs) <= patience or (waits and layout.seconds is None):
        return False
    return max(aucs[-patience:]) <= max(aucs[:-patience])


def _images_at(one: Known, layout: Layout, rung: int) -> int:
    """Images at which a candidate will have reached a rung."""
    if layout.seconds is None:
        return int(layout.rungs[rung])
    return math.ceil(one.images * layout.rungs[rung] / one.seconds)


TOO_LITTLE = "the others cannot be finished in the time left"


def _finish(order: Sequence[Known], rules: Rules, layout: Layout) -> Work:
    """What to do with those that are left, best first."""
    best = order[: rules.finalists]
    paused = [one for one in best if one.state == "paused"]
    if not paused and layout.seconds is not None:
        if best and is_flat(best[0], rules):
            return Stop(
                f"the best lost less than {rules.gain:.0%} of its error while its images doubled "
                "twice"
            )
        if layout.left > rules.explored * layout.seconds:
            # A search that was given more time when its finalists were complete.
            paused = [one for one in order if one.state == "paused"][:1]
    if not paused:
        return Stop()
    if layout.seconds is None or not rules.prolongs:
        assert rules.longest is not None
        return Finish(paused[0].number, rules.longest)
    usable = (1 - rules.margin) * layout.left
    one = best[0]
    if one.state != "paused":
        # The best has all the time that it can use: the others are finished in what is left.
        paused = [other for other in paused if rules.fall * other.seconds <= usable]
        if not paused:
            return Stop(TOO_LITTLE)
        one = paused[0]
    for other in paused[1:]:
        if rules.fall * other.seconds <= usable - rules.fall * one.seconds:
            usable -= rules.fall * other.seconds
    per_image = one.seconds / one.images
    # Of the whole training, its fall included.
    images = one.images + int(usable / per_image)
    if rules.longest is not None:
        images = min(images, rules.longest)
    if is_flat(one, rules):
        return _end(one, rules, images)
    to_fall = int((1 - rules.decay_fraction) * images) - one.images
    if to_fall < rules.first_look:
        return _end(one, rules, images) if to_fall <= 0 else Finish(one.number, images)
    # In two pieces: its speed is known better then.
    half = one.images + to_fall // 2
    return GoOn(one.number, half if half - one.images >= rules.first_look else one.images + to_fall)


def _end(one: Known, rules: Rules, affordable: float = math.inf) -> Work:
    """Lets the rate of a candidate fall from where it is; where it falls already, to the end that
    it has."""
    images = round(one.images / (1 - rules.decay_fraction))
    if rules.longest is not None and images > rules.longest:
        return GoOn(one.number, None)
    return Finish(one.number, int(min(images, affordable)))


def is_flat(one: Known, rules: Rules) -> bool:
    """Whether a candidate won nothing while its images doubled twice: one look is noise."""
    before = [point.auc for point in one.points if 4 * point.images <= one.images]
    if one.images < 8 * rules.first_look or not before:
        return False
    best = max(point.auc for point in one.points)
    return best - max(before) <= rules.gain * (1 - max(before))


def worth_keeping(known: Sequence[Known], rules: Rules) -> list[Known]:
    """Paused candidates that, taken as they are when the time is up, are better than all that is
    complete, best first; none with a schedule that must know its end."""
    searched = [one for one in known if not one.is_baseline and one.points]
    complete = max((best_auc(one) for one in searched if one.state == "complete"), default=0.0)
    paused = [one for one in searched if one.state == "paused" and best_auc(one) > complete]
    return sorted(paused, key=lambda one: (-best_auc(one), one.number)) if rules.prolongs else []


def best_auc(one: Known) -> float:
    """At its best look; 0 before the first."""
    return max((point.auc for point in one.points), default=0.0)


def forecast(known: Sequence[Known], rules: Rules, seconds_per_image: float) -> float:
    """Seconds that a search without a time limit will still take, if all configurations are as fast
    as those so far: it is let run ahead.

    Args:
        known: see `next_work`.
        rules: see there.
        seconds_per_image: of a configuration that was not begun yet.
    """
    ahead = {one.number: replace(one, until=one.until or one.images) for one in known}
    total = 0.0
    while not isinstance(work := next_work(list(ahead.values()), rules), Stop):
        # Numbers have gaps: what the rules reject is not known here.
        number = max(ahead, default=-1) + 1 if work.number is None else work.number
        one = ahead.get(number, Known(number, "waiting"))
        whole = (rules.baseline_images if one.is_baseline else rules.longest) or 0
        until = work.images if isinstance(work, Finish) else work.until or whole
        ends = isinstance(work, Finish) or work.until is None
        seconds = max(0, until - one.images) * (
            one.seconds / one.images if one.images else seconds_per_image
        )
        total += seconds
        auc = one.points[-1].auc if one.points else 0.5
        ahead[number] = replace(
            one,
            state="complete" if ends else "paused",
            points=(*one.points, Point(until, one.seconds + seconds, auc)),
            until=until,
        )
    return total
