"""What the terminal shows of a search: what it works on, how far it is, the best it found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.table import Table

from search.data.inputs import tables
from search.errors import UserError
from search.machine.files import short_path
from search.machine.progress import Bars, tell_line
from search.settings.data import Objective
from search.training.candidate import describe_look
from search.training.objective import NAMES

if TYPE_CHECKING:
    from search.study.decisions.layout import Rules
    from search.study.plan import SearchPlan
    from search.training.candidate import Look
    from search.training.loop import StepRecord
    from search.training.recipe import Recipe


class StudyProgress:
    """Follows a study trial by trial and an epoch step by step.

    Use as a context manager; on a terminal the bars are live inside it.
    """

    def __init__(
        self,
        console: Console,
        trials: int | None,
        *,
        begun: Iterable[str] = (),
        best: float = math.nan,
        objective: Objective = "auc",
        seconds_ahead: Callable[[], float | None] = lambda: None,
    ) -> None:
        """
        Args:
            console: where to write; bars only if it is a terminal.
            trials: how many configurations shall be begun; None if the time will tell.
            begun: the names of those that were.
            best: their best objective; NaN without one.
            objective: what candidates are compared by.
            seconds_ahead: how long the search will go on; None if that is not known.
        """
        self.console = console
        self.trials, self.begun = trials, set(begun)
        self.seconds_ahead = seconds_ahead
        self.best, self.value = best, NAMES[objective]
        self.epochs: float | None = None
        self.bars = Bars(console)
        self.study_bar = self.bars.add("configurations", trials)
        self.epoch_bar = self.bars.add("", visible=False)
        self.study_bar.update(len(self.begun), info=self._study_info())

    def __enter__(self) -> StudyProgress:
        self.bars.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.epoch_bar.hide()
        self.bars.__exit__(kind, error, traceback)

    def trial_started(
        self, name: str, recipe: Recipe, *, until: int | None = None, goes_on: bool = False
    ) -> None:
        """Told of every piece of a trial's training.

        Args:
            name: its number in four digits.
            recipe: what is trained.
            until: images at which it pauses; None trains it to its end.
            goes_on: it was paused, and is trained from where it was.
        """
        self.begun.add(name)
        self.epochs = recipe.epochs
        # Told before, of one that goes on.
        what = "" if goes_on else f": {_describe(recipe)}"
        piece = "to its end" if until is None else f"to {until:,} images"
        tell_line(self.console, f"trial {name}{' goes on' if goes_on else ''} {piece}{what}")

    def step(self, record: StepRecord) -> None:
        """Moves the epoch's bar; says nothing where there is none."""
        info = None
        if record.loss is not None:
            info = f"{record.images_per_second:.0f} images/s, loss {record.loss:.3f}"
        self.epoch_bar.update(
            record.step,
            record.steps,
            description=f"epoch {record.epoch + 1}",
            info=info,
        )

    def look(self, record: Look) -> None:
        """One line for a look."""
        tell_line(self.console, f"  {describe_look(record, self.epochs)}")

    def trial_finished(self, state: str, value: float | None, reason: str = "") -> None:
        """Told of every trial that came to an end, with its objective."""
        if state == "complete" and value is not None and not value <= self.best:
            self.best = value
        self._tell_end(state + ("" if value is None else f", {self.value} {value:.4f}"), reason)

    def tell(self, line: str) -> None:
        """Told what a user should know."""
        tell_line(self.console, f"  {line}")

    def trial_paused(self, reason: str = "") -> None:
        """Told of a trial that was stopped and goes on from its batch, or, without a reason, of one
        that waits while others are trained."""
        self._tell_end("paused", f"{reason}, goes on from its batch" if reason else "")

    def _tell_end(self, what: str, reason: str) -> None:
        tell_line(
            self.console,
            f"  {what}" + (f": {reason}" if reason else "") + f" | {self._study_info()}",
        )
        self.study_bar.update(len(self.begun), info=self._study_info())
        self.epoch_bar.hide()

    def _study_info(self) -> str:
        of = "" if self.trials is None else f" of {self.trials}"
        parts = [f"{len(self.begun)}{of} begun"] if not self.bars.live else []
        if not math.isnan(self.best):
            parts.append(f"best complete {self.value} {self.best:.4f}")
        ahead = self.seconds_ahead()
        if ahead is not None:
            parts.append(f"about {format_seconds(max(0.0, ahead))} left")
        return ", ".join(parts)


def _describe(recipe: Recipe) -> str:
    return (
        f"{recipe.backbone} at {recipe.image_size} px, learning rate {recipe.learning_rate:.2g}, "
        f"augmentation {recipe.augmentation} {recipe.augmentation_strength:.2f}"
    )


def format_seconds(seconds: float) -> str:
    """90 -> "1 min 30 s", 4000 -> "1 h 6 min"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole} s"


class Problems:
    """Tells what could not be read or made of a run: a line each, each only once.

    A projection is no part of the search: it is told, made again later, and never stops anything.
    """

    def __init__(self, run: Path, console: Console) -> None:
        self.run, self.console = run, console
        self._told: set[str] = set()

    def tell(self, line: str) -> None:
        """Tells a line, unless it has been told."""
        if line not in self._told:
            self._told.add(line)
            tell_line(self.console, line)

    def not_made(self, what: str, why: str) -> None:
        """Tells what is missing, why, and which command makes it again."""
        again = f"`python -m search report --out {short_path(self.run)}` makes it again"
        self.tell(f"{what} could not be made: {why}; {again}")

    @contextmanager
    def forgiven(self, what: str) -> Iterator[None]:
        """Runs the block; a failure is told as `not_made`, whatever it was."""
        try:
            yield
        except Exception as error:
            self.not_made(what, one_line(error))


def one_line(error: Exception) -> str:
    """What went wrong, for a line that says where: without a traceback or a line break."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:MOST_CHARACTERS]}"


MOST_CHARACTERS = 200
"""Of an error that onefold did not write itself."""

TOP_ROWS = 10

SHORT_HEADS = {"auc_unseen": "unseen", "auc_stress": "stress"}
"""Columns of a leaderboard that are shown where they were measured, and their short heads."""


def print_top(leaderboard: pd.DataFrame, console: Console) -> None:
    """The best ten complete trials as a table."""
    complete = leaderboard[leaderboard["state"] == "complete"]
    if complete.empty:
        console.print("no candidate is complete yet")
        return
    # Without a box and with short heads, the longest names of timm fit into 80 columns.
    table = Table(
        title="Best candidates: AUC, 95% of select over groups",
        box=None,
        pad_edge=False,
        title_justify="left",
    )
    shown = dict(SHORT_HEADS)
    if (complete["objective"] != complete["auc"]).any():
        shown["objective"] = "goal"
    more = {n: told for n, told in shown.items() if complete[n].notna().any()}
    columns = ("", "trial", "backbone", "params", "select", "95%", *more.values(), "report")
    for column in columns:
        is_text = column == "backbone"
        table.add_column(
            column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text
        )
    for row in complete.head(TOP_ROWS).to_dict("records"):
        report = row["auc_report"]
        table.add_row(
            f"{row['rank']:.0f}",
            str(row["candidate"]),
            str(row["backbone"]),
            f"{row['params_exact'] / 1e6:.1f}M",
            f"{row['auc']:.4f}",
            f"{row['auc_low']:.3f}-{row['auc_high']:.3f}",
            *("" if pd.isna(row[name]) else f"{row[name]:.4f}" for name in more),
            "" if pd.isna(report) else f"{report:.4f}",
        )
    console.print(table)


def introduce(
    plan: SearchPlan, run: Path, console: Console, seconds_left: float | None = None
) -> None:
    """Tells what is about to be searched, in which way, and what could not be.

    Args:
        plan: of the search.
        run: its folder.
        console: where to write.
        seconds_left: of the time limit; None without one.
    """
    sizes = ", ".join(f"{name} {len(table):,}" for name, table in tables(plan.splits).items())
    baseline = ""
    if plan.space.baseline is not None:
        recipe = plan.space.baseline_recipe()
        baseline = (
            f", beside the challenge's baseline ({recipe.backbone} at {recipe.image_size} px, "
            f"always {recipe.epochs} epochs)"
        )
    precision: str = plan.space.precision
    if precision == "auto":
        precision = "the fastest arithmetic, measured for each backbone"
    lines = [
        f"{short_path(run)}: {sizes} images; {len(plan.space.backbones)} backbones of pool "
        f"'{plan.settings.pool}'{baseline}, on {plan.runtime.device} in {precision}, canvases of "
        f"{plan.space.canvas} px",
        f"candidates are compared on {plan.images_of_a_look:,} of {len(plan.splits.select):,} "
        f"images of select (--select-limit) by {NAMES[plan.settings.objective]} (--objective), the "
        "weights that are kept are scored on all in fp32",
        *(f"rejected {one.name}: {'; '.join(verdict.reasons)}" for one, verdict in plan.rejected),
        *plan.notes,
    ]
    first = len(plan.space.backbones) + (plan.space.baseline is not None)
    if plan.settings.trials is not None and plan.settings.trials <= first:
        lines.append(
            f"The baseline and the default of each backbone are tried first, {first} trials: "
            f"--trials {plan.settings.trials} ends before anything is searched; more trials, or "
            "fewer backbones (--pool), search further"
        )
    lines.append(describe_rules(plan.rules, seconds_left))
    for line in lines:
        tell_line(console, line)


def describe_rules(rules: Rules, seconds_left: float | None) -> str:
    """How a search is laid out, in a sentence."""
    if seconds_left is None:
        assert rules.longest is not None
        return (
            f"{rules.trials} configurations are trained on {rules.first_look:,} images, the better "
            f"{rules.kept:.0%} go on to twice as much, and so on; {rules.finalists} at least are "
            f"finished, on {rules.longest:,} images"
        )
    if seconds_left <= 0:
        return "no time is left for training: give a longer --timeout"
    stretch = rules.explored * seconds_left / rules.planned
    return (
        f"in {format_seconds(seconds_left)}: about {rules.planned} configurations, "
        f"for {format_seconds(stretch)} each, or to their first look at {rules.first_look:,} "
        f"images where that takes longer, in {rules.explored:.0%} of the time; the best "
        f"{rules.kept_in_time:.0%} go on to twice as much, and the best of them gets all the time "
        f"that is left; {rules.finalists} are finished"
    )
