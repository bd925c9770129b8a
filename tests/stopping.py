"""Stopping a training, or a command, amid its work, wherever a test wants it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from search.machine.interruption import Interrupted, Interruption


class StopAfter(Interruption):
    """Asks for the end after so many checks: one a step, one a batch of an evaluation, and amid
    passes one a layer and gradient."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self.left = checks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Interrupted("stopped by the test")


class Clock:
    """The clock of time limits, on which time passes only where a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # A command reads the real one when it begins.
        self.now = time.monotonic()
        monkeypatch.setattr("search.machine.interruption.time", self)

    def monotonic(self) -> float:
        return self.now

    def taking(self, seconds: float, do: Callable[..., Any]) -> Callable[..., Any]:
        """A function as it is, but that it takes so long."""

        def slow(*arguments: Any, **options: Any) -> Any:
            self.now += seconds
            return do(*arguments, **options)

        return slow
