"""What the terminal shows of a search: what it works on, how far it is, the best it found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from search.data.inputs import tables
from search.study.plan import Plan, versions
from search.training.candidate import EpochRecord
from search.training.loop import StepRecord
from search.training.recipe import Recipe


class StudyProgress:
    """Follows a study trial by trial and an epoch step by step.

    Use as a context manager; on a terminal the bars are live inside it.
    """

    def __init__(
        self,
        console: Console,
        trials: int,
        *,
        finished: int = 0,
        best: float = math.nan,
        durations: Sequence[float] = (),
        seconds_left: Callable[[], float | None] = lambda: None,
    ) -> None:
        """
        Args:
            console: where to write; bars only if it is a terminal.
            trials: how many trials the study shall have.
            finished: how many it has.
            best: their best AUC; NaN without one.
            durations: how long they took, in seconds.
            seconds_left: time until the limit; None without one.
        """
        self.console = console
        self.trials, self.finished = trials, finished
        self.seconds_left = seconds_left
        self.best = best
        self.durations = list(durations)
        self.started = time.monotonic()
        self.name = ""
        self.bars: Progress | None = None
        self.study_bar = self.epoch_bar = TaskID(0)
        if console.is_terminal:
            self.bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[info]}"),
                console=console,
            )
            self.study_bar = self.bars.add_task(
                "trials", total=trials, completed=finished, info=self._study_info()
            )
            self.epoch_bar = self.bars.add_task("", total=1, info="", visible=False)

    def __enter__(self) -> StudyProgress:
        if self.bars:
            self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.bars:
            self.bars.update(self.epoch_bar, visible=False)
            self.bars.stop()

    def trial_started(self, name: str, recipe: Recipe) -> None:
        """Told of every trial that is trained, under its number in four digits."""
        self.name, self.started = name, time.monotonic()
        self.epochs = recipe.epochs
        self.console.print(
            f"trial {name}: {recipe.backbone} at {recipe.image_size} px, "
            f"learning rate {recipe.learning_rate:.2g}, augmentation {recipe.augmentation} "
            f"{recipe.augmentation_strength:.2f}",
            highlight=False,
            soft_wrap=True,
        )

    def step(self, record: StepRecord) -> None:
        """Moves the epoch's bar; says nothing where there is none."""
        if not self.bars:
            return
        fields: dict[str, Any] = {}
        if record.loss is not None:
            fields["info"] = f"{record.images_per_second:.0f} images/s, loss {record.loss:.3f}"
        self.bars.update(
            self.epoch_bar,
            description=f"epoch {record.epoch + 1}/{self.epochs}",
            completed=record.step,
            total=record.steps,
            visible=True,
            **fields,
        )

    def epoch(self, record: EpochRecord) -> None:
        """One line for a finished epoch."""
        self.console.print(
            f"  epoch {record.epoch}/{self.epochs}: loss {record.train_loss:.3f}, "
            f"AUC {record.select_auc:.4f}, {record.seconds:.1f} s",
            highlight=False,
        )

    def trial_finished(self, state: str, auc: float | None, reason: str = "") -> None:
        """Told of every trial that counts."""
        self.finished += 1
        if state != "failed":
            self.durations.append(time.monotonic() - self.started)
        if state == "complete" and auc is not None and not auc <= self.best:
            self.best = auc
        self._tell_end(state + ("" if auc is None else f", AUC {auc:.4f}"), reason)

    def trial_interrupted(self, reason: str) -> None:
        """Told of a trial that will be tried again."""
        self._tell_end("closed, to be tried again", reason)

    def _tell_end(self, what: str, reason: str) -> None:
        self.console.print(
            f"  {what}" + (f": {reason}" if reason else "") + f" | {self._study_info()}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        if self.bars:
            self.bars.update(self.study_bar, completed=self.finished, info=self._study_info())
            self.bars.update(self.epoch_bar, visible=False)

    def _study_info(self) -> str:
        parts = [f"{self.finished} of {self.trials} trials"] if not self.bars else []
        if not math.isnan(self.best):
            parts.append(f"best AUC {self.best:.4f}")
        left = self._estimate()
        if left is not None:
            parts.append(f"about {format_seconds(left)} left")
        return ", ".join(parts)

    def _estimate(self) -> float | None:
        """Seconds left, by the mean trial so far and the limit."""
        limit = self.seconds_left()
        if not self.durations:
            return limit
        mean = sum(self.durations) / len(self.durations)
        needed = mean * max(0, self.trials - self.finished)
        return needed if limit is None else min(needed, max(0.0, limit))


def format_seconds(seconds: float) -> str:
    """90 -> "1 min 30 s", 4000 -> "1 h 6 min"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole} s"


TOP_ROWS = 10


def describe_run(plan: Plan) -> dict[str, str]:
    """Facts that every report states."""
    settings = plan.settings
    facts = {
        f"{name} images": f"{len(table):,} ({int(table['target'].sum()):,} fake)"
        for name, table in tables(plan.splits).items()
    }
    weights = {
        "hub": "timm's hub, pinned ImageNet-1K tags",
        "file": "local files, pinned ImageNet-1K tags",
        "none": "none: trained from scratch",
    }[settings.weights_source]
    device = plan.runtime.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    facts |= {
        "pool": str(settings.pool),
        "starting weights": weights,
        "budget": f"{plan.catalogue.budget / 1e6:.0f}M parameters, by thop and exactly",
        "epochs of a trial": str(settings.epochs),
        "seed": str(settings.seed),
        "device": f"{name}, {plan.space.precision}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    if plan.notes:
        facts["notes"] = " ".join(plan.notes)
    return facts


def print_top(leaderboard: pd.DataFrame, console: Console) -> None:
    """The best ten complete trials as a table."""
    complete = leaderboard[leaderboard["state"] == "complete"]
    if complete.empty:
        console.print("no candidate is complete yet")
        return
    # Without a box and with short heads, the longest names of timm fit into 80 columns.
    table = Table(title="Best candidates: AUC", box=None, pad_edge=False, title_justify="left")
    columns = ("", "trial", "backbone", "params", "select", "95%", "report")
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
            "" if pd.isna(report) else f"{report:.4f}",
        )
    console.print(table)


def introduce(plan: Plan, run: Path, console: Console) -> None:
    """Tells what is about to be searched, and what could not be."""
    sizes = ", ".join(f"{name} {len(table):,}" for name, table in tables(plan.splits).items())
    baseline = ""
    if plan.space.baseline is not None:
        recipe = plan.space.baseline_recipe()
        baseline = (
            f", beside the challenge's baseline ({recipe.backbone} at {recipe.image_size} px, "
            f"always {recipe.epochs} epochs)"
        )
    lines = [
        f"{short_path(run)}: {sizes} images; {len(plan.space.backbones)} backbones of pool "
        f"'{plan.settings.pool}'{baseline}, on {plan.runtime.device} in {plan.space.precision}",
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
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def short_path(path: Path) -> str:
    """The path as seen from the working folder, where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
