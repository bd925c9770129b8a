"""Trainings on a simulated clock: they take the seconds that were recorded, and nothing is
trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from search.training.recipe import Recipe
from tests.benchmarks.study.replay.courses import WHOLE_FALL, Course, Look


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


def cosine_looks(course: Course, clock: Clock) -> Iterator[Look]:
    """The looks at a training with cosine, as they come."""
    before = 0.0
    for look in course.cosine:
        clock.see(look, look.seconds - before + course.look_seconds)
        before = look.seconds
        yield look


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
    def has_failed(self) -> bool:
        """Whether it cannot go on."""
        return bool(self.looks) and self.looks[-1].has_failed

    def seconds(self, looks: int) -> float:
        """That it had taken by the end of its first `looks` looks, those included."""
        trained = self.looks[looks - 1].seconds if looks else 0.0
        return trained + looks * self.course.look_seconds

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
