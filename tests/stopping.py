"""Stopping a training amid its work, wherever a test wants it."""

from __future__ import annotations

from search.machine.interruption import Interrupted, Interruption


class StopAfter(Interruption):
    """Asks for the end after so many checks: one a step, and one a batch of an evaluation."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self.left = checks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Interrupted("stopped by the test")
