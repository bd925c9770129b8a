"""Ctrl-C and the time limit end what runs between two batches or, on a CPU, between two layers;
never amid a write."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from search.errors import Interrupted

__all__ = ["Interrupted", "Interruption"]


SECONDS_BETWEEN_LAYERS = 0.5
"""Asked after each layer, mobilenetv2_100 trains 3% to 5% slower at 48 and 80 px on one core."""


class Interruption:
    """Asked between batches whether to go on.

    The first Ctrl-C (or SIGTERM, as batch systems send it) asks for a clean end; a second one
    raises KeyboardInterrupt at once.

    Attributes:
        deadline: reading of `time.monotonic` at which the time is up; None for no limit.
        reserved_seconds: of the time before it, what is kept for other work than is checked now.
        requested: whether a signal asked for the end.
    """

    def __init__(self, timeout_seconds: float | None = None, started: float | None = None) -> None:
        """
        Args:
            timeout_seconds: time after which `check` raises; None for no limit.
            started: the reading of `time.monotonic` that the time counts from; None is now.
        """
        started = time.monotonic() if started is None else started
        self.deadline = None if timeout_seconds is None else started + timeout_seconds
        self.reserved_seconds = 0.0
        self.requested = False

    @property
    def seconds_left(self) -> float | None:
        """Time until the limit, less what is reserved; None without a limit."""
        if self.deadline is None:
            return None
        return self.deadline - self.reserved_seconds - time.monotonic()

    @property
    def timed_out(self) -> bool:
        """Whether the time limit has passed."""
        left = self.seconds_left
        return left is not None and left <= 0

    @property
    def must_stop(self) -> bool:
        """Whether `check` would raise."""
        return self.requested or self.timed_out

    def check(self) -> None:
        """
        Raises:
            Interrupted: if Ctrl-C was pressed or the time is up.
        """
        if self.requested:
            raise Interrupted("interrupted by the user")
        if self.timed_out:
            raise Interrupted("the time limit was reached")

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Turns SIGINT and SIGTERM into a request for the duration of the block."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._request)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def amid_passes(
        self, device: torch.device, seconds: float = SECONDS_BETWEEN_LAYERS
    ) -> Iterator[None]:
        """Checks also within the passes of networks on a CPU for the duration of the block, after
        layers forwards and backwards: there a batch of a large network may take minutes.

        What was begun is lost: a time limit must leave room for one batch. Compiled networks are
        not looked into, their layers are no longer apart. On other devices this does nothing:
        passes are only ordered there, and asking would hold that up.

        Args:
            device: that networks compute on.
            seconds: that lie at least between two layers that are asked after.
        """
        last = time.monotonic()
        if device.type != "cpu":
            yield
            return

        def check_backwards(_gradient: Tensor) -> None:
            self.check()

        def check_forwards(_layer: nn.Module, _given: Any, output: Any) -> None:
            nonlocal last
            if torch.compiler.is_compiling():
                return
            now = time.monotonic()
            if now - last < seconds or not _is_computed(output):
                return
            last = now
            self.check()
            if output.grad_fn is not None:
                output.register_hook(check_backwards)

        hook = register_module_forward_hook(check_forwards)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def leaving_at_once(self) -> Iterator[None]:
        """Turns SIGTERM into KeyboardInterrupt, as Python does SIGINT, for the duration of a block
        that has nothing to save: what it was writing is taken away on the way out."""
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def _is_computed(output: Any) -> bool:
    """Whether a layer gave a tensor, and did not only count on the meta device."""
    return isinstance(output, Tensor) and output.device.type == "cpu"
