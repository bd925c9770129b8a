"""What the terminal shows while a student learns: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from search.interruption import Interruption
from search.training.candidate import EpochRecord
from search.training.loop import StepRecord

PLAIN_LINES = 4
"""Lines that tell of a stage's progress where there is no terminal."""


class DistillProgress:
    """Follows the stages of a distillation, and asks at every step whether to go on."""

    def __init__(self, console: Console, interruption: Interruption) -> None:
        self.console, self.interruption = console, interruption
        self._bar: Progress | None = None
        self._shown = 0

    def check(self) -> None:
        """
        Raises:
            Interrupted: if the distillation shall end.
        """
        self.interruption.check()

    @contextmanager
    def stage(self, description: str) -> Iterator[None]:
        """A part of the work, whose `advance` is shown under this description."""
        self._shown = 0
        self.description = description
        if not self.console.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[info]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as self._bar:
            self._task = self._bar.add_task(description, total=None, info="")
            yield
        self._bar = None

    def advance(self, finished: int, total: int, info: str = "") -> None:
        """Told of every batch.

        Raises:
            Interrupted: as `check`.
        """
        if self._bar:
            self._bar.update(self._task, completed=finished, total=total, info=info)
        elif finished * PLAIN_LINES // total > self._shown:
            self._shown = finished * PLAIN_LINES // total
            self._print(f"{self.description}: {finished:,} of {total:,} batches")
        self.check()

    def step(self, record: StepRecord) -> None:
        """Told of every step of the training; the epochs have their own lines."""
        if self._bar:
            loss = "" if record.loss is None else f", loss {record.loss:.3f}"
            info = f"{record.images_per_second:.0f} images/s{loss}"
            description = f"epoch {record.epoch + 1}"
            self._bar.update(
                self._task,
                description=description,
                completed=record.step,
                total=record.steps,
                info=info,
            )
        self.check()

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        """Told of every finished epoch."""
        self._print(
            f"  epoch {record.epoch}/{epochs}: loss {record.train_loss:.3f}, "
            f"AUC {record.select_auc:.4f}, {record.seconds:.1f} s"
        )

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False)
