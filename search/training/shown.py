"""What a terminal shows of one training."""

from __future__ import annotations

from rich.console import Console

from search.machine.progress import Bar, tell_line
from search.training.candidate import Look, describe_look
from search.training.loop import StepRecord
from search.training.metrics import Metrics
from search.training.train import Watch


class ShownTraining(Watch):
    """Shows a training: a bar for its steps, a line for each look."""

    def __init__(self, console: Console, bar: Bar, epochs: float | None) -> None:
        """
        Args:
            console: where the lines go.
            bar: of the steps of an epoch.
            epochs: of the training; None if they are not settled yet.
        """
        self.console, self.bar, self.epochs = console, bar, epochs

    def step(self, record: StepRecord) -> None:
        """Moves the bar."""
        if not self.bar.is_live:
            return
        loss = "" if record.loss is None else f", loss {record.loss:.3f}"
        self.bar.update(
            record.step,
            record.steps,
            description=f"epoch {record.epoch + 1}",
            info=f"{record.images_per_second:.0f} images/s{loss}",
        )

    def look(self, record: Look, best: Metrics | None) -> None:
        """Prints a line; the best one's figures are told at the end."""
        del best
        self.tell(f"  {describe_look(record, self.epochs)}")

    def tell(self, line: str) -> None:
        """Prints it."""
        tell_line(self.console, line)
