from __future__ import annotations

from collections.abc import Iterator

import pytest

from search.machine import seconds as module
from search.machine.seconds import SECONDS, Seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only entry."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def test_parts_do_not_overlap(clock: list[float]) -> None:
    taken = Seconds()

    def batches() -> Iterator[int]:
        for number in range(3):
            clock[0] += 2.0
            yield number
        clock[0] += 0.5

    with taken.spent_on("score"):
        for _ in taken.waited_for(batches()):
            clock[0] += 1.0
            with taken.spent_on("save"):
                clock[0] += 4.0
    assert taken == Seconds(score=3.0, save=12.0, wait=6.5)
    assert taken.total == clock[0] - 100.0
    assert taken.columns() == dict(zip(SECONDS, (0.0, 3.0, 12.0, 6.5), strict=True))


def test_time_is_counted_when_the_block_fails(clock: list[float]) -> None:
    taken = Seconds(train=1.0)

    def fail() -> None:
        with taken.spent_on("train"):
            clock[0] += 2.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert taken - Seconds(train=1.0) == Seconds(train=2.0)
