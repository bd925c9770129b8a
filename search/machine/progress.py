"""How far a piece of work is: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

BAR_WIDTH = 24

PLAIN_LINES = 10
"""Lines that tell of a piece of work where there is no terminal."""


def tell_line(console: Console, line: str) -> None:
    """Prints a line as it is: no markup, no colours, no breaks."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


class Bars:
    """Bars below what is printed; live inside `with`, and only if the console is a terminal.

    Other lines go through the same console.
    """

    def __init__(
        self,
        console: Console,
        *,
        time_left: bool = False,
        transient: bool = False,
        of_bytes: bool = False,
        plain_lines: int = PLAIN_LINES,
    ) -> None:
        """
        Args:
            console: where to write.
            time_left: show an estimate of it, from the speed so far.
            transient: leave nothing on the terminal at the end.
            of_bytes: what is counted are bytes, shown as such with their speed.
            plain_lines: how many lines tell of each bar where there is no terminal.
        """
        self.console = console
        self.plain_lines = plain_lines
        self.live: Progress | None = None
        if console.is_terminal:
            columns: list[ProgressColumn] = [
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=BAR_WIDTH),
            ]
            if of_bytes:
                columns += [DownloadColumn(), TransferSpeedColumn()]
            else:
                columns += [MofNCompleteColumn(), TextColumn("{task.fields[unit]}")]
            if time_left:
                columns += [TimeRemainingColumn(compact=True), TextColumn("left")]
            columns.append(TextColumn("{task.fields[info]}", markup=False))
            self.live = Progress(*columns, console=console, transient=transient)

    def __enter__(self) -> Bars:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.live:
            self.live.stop()

    def add(
        self,
        description: str,
        total: int | None = None,
        *,
        unit: str = "",
        plain: str | None = None,
        visible: bool = True,
    ) -> Bar:
        """One more bar, below the others.

        Args:
            description: what is being done.
            total: of how many; None if only the first `update` will know.
            unit: what is counted.
            plain: how a plain line begins ("scored" gives "scored 3 of 23 images"); None for no
                plain lines.
            visible: False hides the bar until it is updated.
        """
        task = None
        if self.live:
            task = self.live.add_task(description, total=total, visible=visible, unit=unit, info="")
        return Bar(self, task, total, unit, plain)


class Bar:
    """One bar of `Bars`; elsewhere, the plain lines in its place."""

    def __init__(
        self, bars: Bars, task: TaskID | None, total: int | None, unit: str, plain: str | None
    ) -> None:
        self._bars, self._task = bars, task
        self._total, self._unit, self._plain = total, unit, plain
        self._told = 0

    @property
    def is_live(self) -> bool:
        """Whether anybody sees an update: without it, an expensive text need not be made."""
        return self._task is not None

    def update(
        self,
        completed: int,
        total: int | None = None,
        *,
        description: str | None = None,
        info: str | None = None,
    ) -> None:
        """Tells how far the work is.

        Args:
            completed: of `total`.
            total: None leaves it.
            description: likewise.
            info: a text beside the bar, likewise.
        """
        if total is not None:
            self._total = total
        if self._bars.live is not None and self._task is not None:
            fields: dict[str, Any] = {} if info is None else {"info": info}
            self._bars.live.update(
                self._task,
                completed=completed,
                total=total,
                description=description,
                visible=True,
                **fields,
            )
        elif self._plain is not None and self._total:
            share = completed * self._bars.plain_lines // self._total
            if share < self._told:
                self._told = 0  # once more from the start
            if share > self._told:
                self._told = share
                self._bars.console.print(
                    f"{self._plain} {completed:,} of {self._total:,} {self._unit}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )

    def hide(self) -> None:
        """Takes the bar off the terminal until the next update."""
        if self._bars.live is not None and self._task is not None:
            self._bars.live.update(self._task, visible=False)
