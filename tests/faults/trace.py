"""What a victim says of itself while it lives: a line an event, appended to a file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Event:
    """Something that happened in a victim.

    Attributes:
        victim: the process's number in its run, from 0.
        time: reading of `time.monotonic`, which all processes of a machine share.
        kind: begin or end of a phase, or a step of a training.
        phase: its name; empty for a step.
        training: the folder of the training that a step belongs to; empty for a phase.
        epoch, batch: which step, as `StepRecord` counts them.
        seconds: that the step took.
    """

    victim: int
    time: float
    kind: str
    phase: str = ""
    training: str = ""
    epoch: int = -1
    batch: int = -1
    seconds: float = 0.0

    @property
    def step(self) -> tuple[str, int, int]:
        """Names a step in a run."""
        return self.training, self.epoch, self.batch


class TraceWriter:
    """A victim's end. Each line is one write to a file opened for appending, which no kill tears
    and no end of a reader breaks."""

    def __init__(self, path: Path, victim: int) -> None:
        self.victim = victim
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._depths: dict[str, int] = {}

    def write(self, kind: str, **values: Any) -> None:
        """Appends an event of now."""
        event = {"victim": self.victim, "time": time.monotonic(), "kind": kind, **values}
        os.write(self._file, (json.dumps(event) + "\n").encode())

    def is_in(self, name: str) -> bool:
        """Whether a phase has begun and not ended."""
        return self._depths.get(name, 0) > 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Tells when a phase begins and ends; one within itself is not told."""
        depth = self._depths.get(name, 0)
        self._depths[name] = depth + 1
        if not depth:
            self.write("begin", phase=name)
        try:
            yield
        finally:
            self._depths[name] = depth
            if not depth:
                self.write("end", phase=name)


class TraceReader:
    """The other end: hands out each event once."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open("rb")
        self._rest = b""
        self.events: list[Event] = []

    def new(self) -> list[Event]:
        """The events since the last call."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        events = [Event(**json.loads(line)) for line in lines]
        self.events += events
        return events

    def close(self) -> None:
        """Reads what is left, and closes the file."""
        self.new()
        self._file.close()


def phase_lengths(events: list[Event]) -> dict[str, list[float]]:
    """How long each phase took that came to its end, in seconds."""
    lengths: dict[str, list[float]] = {}
    begun: dict[tuple[int, str], float] = {}
    for event in events:
        if event.kind == "begin":
            begun[event.victim, event.phase] = event.time
        elif event.kind == "end":
            length = event.time - begun[event.victim, event.phase]
            lengths.setdefault(event.phase, []).append(length)
    return lengths


def repeated_steps(events: list[Event]) -> dict[int, list[float]]:
    """The steps that were done once more by a later process.

    Returns:
        By the victim whose end cost them: the seconds of each, in the order of the first time.
    """
    last: dict[tuple[str, int, int], Event] = {}
    lost: list[Event] = []
    for event in events:
        if event.kind != "step":
            continue
        if event.step in last:
            lost.append(last[event.step])
        last[event.step] = event
    by_victim: dict[int, list[float]] = {}
    for event in sorted(lost, key=lambda event: event.time):
        by_victim.setdefault(event.victim, []).append(event.seconds)
    return by_victim
