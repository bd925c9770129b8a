"""Where the time of a training goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Literal, TypeVar

Item = TypeVar("Item")

Part = Literal["train", "score", "save", "wait"]


@dataclass
class Seconds:
    """Seconds that a training has taken so far, stopped and resumed as often as it was.

    The parts do not overlap: their sum is the time of the whole, but for what a kill undid.
    """

    train: float = 0.0  # steps
    score: float = 0.0  # looks and the last scoring, with what they waited for images
    save: float = 0.0  # checkpoints
    wait: float = 0.0  # for batches of the training

    @property
    def total(self) -> float:
        """All of them."""
        return self.train + self.score + self.save + self.wait

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(
            self.train - other.train,
            self.score - other.score,
            self.save - other.save,
            self.wait - other.wait,
        )

    @contextmanager
    def spent_on(self, part: Part) -> Iterator[None]:
        """Adds the time of the block, but for what other parts took of it meanwhile."""
        started, before = time.perf_counter(), self.total
        try:
            yield
        finally:
            others = self.total - before
            own = time.perf_counter() - started - others
            setattr(self, part, getattr(self, part) + own)

    def waited_for(self, batches: Iterator[Item]) -> Iterator[Item]:
        """The same items, none of which is None; the time that one waits for them is added."""
        while True:
            with self.spent_on("wait"):
                item = next(batches, None)
            if item is None:
                return
            yield item

    def columns(self) -> dict[str, float]:
        """By the names of the columns that show them, `SECONDS`."""
        return {f"{part}_seconds": round(value, 2) for part, value in asdict(self).items()}


SECONDS = tuple(f"{part.name}_seconds" for part in fields(Seconds))
"""Columns of a leaderboard, and entries of metrics.json."""
