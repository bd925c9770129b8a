"""The training of a merged model: in a working folder of its own until its result is kept."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ensemble.network.model import OLD, finish_all_replacing
from ensemble.pool.pool import Pool
from search.errors import UserError
from search.machine.files import MERGED
from search.machine.interruption import Interruption
from search.machine.progress import Bars, tell_line
from search.machine.seconds import SECONDS
from search.training.candidate import CHECKPOINT, Candidate, Look
from search.training.recipe import Recipe
from search.training.shown import ShownTraining
from search.training.train import (
    CHECKPOINT_MINUTES,
    Task,
    default_recipe,
    describe_training,
    train,
    unfinished_training,
)

IDENTITY = "training"
"""Entry of a working folder's metrics.json: what it is a training of."""

COSTS = (
    *SECONDS,
    *("images_per_second", "peak_memory_mb", "micro_batch_size"),
    *("device", "precision", "versions", "images_of_a_look"),
)
"""Entries of a training's metrics.json that a merged model takes over."""


@dataclass(frozen=True)
class Leftover:
    """What an earlier command left, and the settings of this one cannot go on with."""

    folder: Path
    what: str  # "an unfinished training"
    wanted: Mapping[str, Any]
    found: Mapping[str, Any] | None  # None if that cannot be told any more

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of what differs."""
        # What recipes did not have then was what it still is by default.
        found = {**default_recipe(), **(self.found or {})}
        return tuple(name for name in self.wanted if found.get(name) != self.wanted[name])

    def describe(self) -> str:
        """What it is, and what differs."""
        if self.found is None:
            return f"{self.folder} holds {self.what}"
        told = [
            f"{name} {self.wanted[name]} instead of {self.found.get(name)}"
            for name in self.changed
            # Others are tables, or hashes: nothing to read in one line.
            if len(str(self.wanted[name])) <= LONGEST_TOLD
        ]
        found = f", found {', '.join(told)}" if told else ""
        return (
            f"{self.folder} holds {self.what}, whose {', '.join(self.changed)} must stay as they "
            f"were{found}"
        )


LONGEST_TOLD = 40
"""Characters of a value that an error tells."""


def settle(leftovers: Sequence[Leftover], *, discard: bool, console: Console) -> None:
    """Makes room for what these settings ask for: only if the user said so.

    Raises:
        UserError: if something would be lost that was not to be discarded; nothing is deleted then.
    """
    if leftovers and not discard:
        known = all(leftover.found is not None for leftover in leftovers)
        raise UserError(
            f"{', and '.join(leftover.describe() for leftover in leftovers)}; "
            f"{'go on with the settings of before, or ' if known else ''}add --discard, which "
            f"deletes {'it' if len(leftovers) == 1 else 'them'}"
        )
    for leftover in leftovers:
        shutil.rmtree(leftover.folder)
        told = leftover.what if leftover.found is None else f"other {', '.join(leftover.changed)}"
        tell_line(console, f"discarded {leftover.folder}: {told}")


class MergeTraining:
    """One training of a merged model; its folder is hidden, and gone when the result is kept.

    Attributes:
        folder: the working folder, merged/.NAME.
        wanted: what tells this training from others, see `describe_training`.
    """

    def __init__(self, pool: Pool, name: str, recipe: Recipe, task: Task) -> None:
        """
        Args:
            pool: the images, and the device.
            name: of the merged model.
            recipe: what is trained, as far as the task does not say it.
            task: the kind of training.
        """
        self.pool, self.recipe, self.task = pool, recipe, task
        self.folder = pool.run / MERGED / f".{name}"
        self.wanted = describe_training(recipe, pool.splits, task)
        self._found = self._find()

    @property
    def is_complete(self) -> bool:
        """Whether the trained network only waits to be kept."""
        return Candidate(self.folder).is_complete

    def leftover(self) -> Leftover | None:
        """The training of before, if it is another."""
        if self._found is None:
            return None
        leftover = Leftover(self.folder, "an unfinished training", self.wanted, self._found)
        return leftover if leftover.changed else None

    def complete(
        self,
        console: Console,
        interruption: Interruption,
        checkpoint_minutes: float = CHECKPOINT_MINUTES,
    ) -> Candidate:
        """Trains to the end, or goes on with it; `leftover` must be settled.

        Raises:
            Interrupted: if it was interrupted; nothing is lost.
        """
        goes_on = self.is_complete or (self.folder / CHECKPOINT).exists()
        if goes_on and self._found is not None:
            tell_line(console, f"going on with the training in {self.folder}")
        with Bars(console, time_left=True, transient=True) as bars:
            bar = bars.add("training", unit="batches")
            return train(
                self.recipe,
                self.pool.splits,
                self.folder,
                interruption=interruption,
                runtime=self.pool.runtime,
                reader=self.pool.reader,
                task=self.task,
                watch=ShownTraining(console, bar, self.recipe.epochs),
                facts={IDENTITY: self.wanted},
                checkpoint_minutes=checkpoint_minutes,
            )

    def clear(self) -> None:
        """Removes the working folder, once the result is kept.

        It is gone at once: a part of it would be taken for a training that is to begin.
        """
        self.folder.rename(self.folder.with_name(f"{self.folder.name}{OLD}"))
        finish_all_replacing(self.pool.run)

    def _find(self) -> dict[str, Any] | None:
        """What is known of the training that lies in the folder; None if there is none."""
        candidate = Candidate(self.folder)
        if candidate.is_complete:
            found: dict[str, Any] = candidate.metrics.get(IDENTITY, {})
            return found
        return unfinished_training(self.folder)


def costs_of(candidate: Candidate) -> dict[str, Any]:
    """What a training took, and where it ran."""
    metrics = candidate.metrics
    return {name: metrics.get(name) for name in COSTS}


def looks_of(candidate: Candidate) -> tuple[Look, ...]:
    """A training's history."""
    rows: list[Any] = candidate.history.to_dict("records")
    return tuple(Look(**row) for row in rows)
