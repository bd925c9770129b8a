"""Ways of spending a time of the clock on configurations, in earnest.

`ours` is not among them: it is the command itself. An arm may overrun its time where it has nothing
else yet, or its last training is near its end; its seconds are told.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import isnan, log2, nan
from pathlib import Path

import optuna
import torch
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from search.machine.files import CANDIDATES
from search.machine.interruption import Interruption
from search.pixels.loading.reading import Reader
from search.study.decisions.pace import MARGIN, next_stretch
from search.study.plan import SearchPlan
from search.study.trials import recipe_row
from search.training.candidate import Candidate, Look
from search.training.loop import NonFiniteLossError
from search.training.metrics import Metrics
from search.training.recipe import Recipe
from search.training.scoring import first_look
from search.training.train import Watch, train
from tests.benchmarks.study.replay import earlier_space
from tests.benchmarks.study.replay.arms import PLAIN
from tests.benchmarks.study.replay.curves import BY_HAND, Configuration, by_hand

SHARE_OF_PRESETS = 0.25
"""Of the time, before the best preset has all that is left."""

FAILURES = (NonFiniteLossError, FloatingPointError, torch.OutOfMemoryError)
"""Of a training: one that no other recipe shares."""


@dataclass
class Seen(Watch):
    """The best look so far, and when it came, in seconds of the clock."""

    started: float = field(default_factory=time.monotonic)
    best: list[tuple[float, float]] = field(default_factory=list)
    last: float = nan

    def look(self, record: Look, best: Metrics | None = None) -> None:
        self.last = record.select_auc
        if not self.best or record.select_auc > self.best[-1][1]:
            self.best.append((time.monotonic() - self.started, record.select_auc))


@dataclass(frozen=True)
class Allotment:
    """What an arm has: images, a time, and a folder."""

    plan: SearchPlan
    reader: Reader
    folder: Path
    seconds: float
    seen: Seen

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seen.started + self.seconds - time.monotonic()

    @property
    def images(self) -> int:
        """Of an epoch."""
        return len(self.plan.splits.fit)

    @property
    def first_look(self) -> int:
        """Images."""
        return first_look(self.images)

    @property
    def complete(self) -> list[Candidate]:
        """Candidates, best first."""
        paths = sorted((self.folder / CANDIDATES).glob("*"))
        found = [Candidate(path) for path in paths if Candidate(path).is_complete]
        return sorted(found, key=lambda candidate: -candidate.metrics["auc"])

    def train(
        self,
        recipe: Recipe,
        name: str,
        until: int | None = None,
        *,
        watch: Watch | None = None,
        may_overrun: bool = True,
    ) -> Candidate:
        """Trains a candidate of this arm, or goes on with it.

        Args:
            recipe: its.
            name: of its folder.
            until: images after which to take a look and pause.
            watch: follows it, and tells `seen`; None: `seen` itself.
            may_overrun: go on when the time is up.

        Raises:
            Interrupted: when the time is up.
        """
        return train(
            recipe,
            self.plan.splits,
            self.folder / CANDIDATES / name,
            until,
            Interruption(None if may_overrun else self.seconds, self.seen.started),
            runtime=self.plan.runtime,
            reader=self.reader,
            watch=watch or self.seen,
            facts=recipe_row(recipe),
        )

    def to_the_end(self, recipe: Recipe, name: str, images: int, seconds: float) -> None:
        """Goes on with a training at a constant rate for all the time that is left.

        Args:
            recipe: its.
            name: of its folder.
            images: that it has seen.
            seconds: that it took for them, looks included.
        """
        rules = self.plan.rules
        while True:
            stretch = next_stretch(
                images,
                seconds / images,
                self.left,
                decay_fraction=rules.decay_fraction,
                first_look=rules.first_look,
            )
            if stretch.is_last:
                recipe = self.plan.ended(recipe, stretch.images, images)
                self.train(recipe, name)
                return
            began = time.monotonic()
            self.train(recipe, name, stretch.images)
            seconds, images = seconds + time.monotonic() - began, stretch.images


class _Reported(Watch):
    """Reports every look to a trial, and ends the training that is to be pruned."""

    def __init__(self, trial: optuna.Trial, seen: Seen) -> None:
        self.trial, self.seen = trial, seen

    def look(self, record: Look, best: Metrics | None) -> None:
        self.seen.look(record)
        self.trial.report(record.select_auc, record.images)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def plain_optuna(given: Allotment, seed: int) -> None:
    """Optuna as its documentation shows it, with the space of 70bbfd5: its default sampler, the
    median pruner, a cosine to the end of each trial. It is pruned at the looks of every training,
    which come as the images double."""
    study = optuna.create_study(
        direction="maximize", sampler=TPESampler(seed=seed), pruner=MedianPruner()
    )
    space = given.plan.space
    pretrained = space.weights != "none"
    while True:
        trial = study.ask()
        parameters = earlier_space.suggest(trial, space.backbones, pretrained=pretrained)
        recipe = Configuration(trial.number, "old", parameters).cosine(space, earlier_space.EPOCHS)
        try:
            candidate = given.train(
                recipe,
                f"{trial.number:04d}",
                watch=_Reported(trial, given.seen),
                may_overrun=not given.complete,
            )
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        except FAILURES:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, float(candidate.metrics["auc"]))
        # One that completes nothing in twice its time never will.
        if given.left <= 0 and (given.complete or given.left < -given.seconds):
            return


def presets_then_best(given: Allotment, _seed: int) -> None:
    """Every preset for its share of a quarter of the time, then the best of them for all the rest,
    in the anytime way."""
    space, found, least = given.plan.space, [], given.first_look
    share = SHARE_OF_PRESETS * given.seconds / len(space.backbones)
    for number, backbone in enumerate(space.backbones):
        name, recipe = f"{number:04d}", space.recipe(space.centre(backbone))
        recipe = replace(recipe, schedule="constant", epochs=None)
        began = time.monotonic()
        try:
            given.train(recipe, name, least)
            images = max(least, round(share * least / (time.monotonic() - began)))
            given.train(recipe, name, images)
        except FAILURES:
            continue
        if not isnan(given.seen.last):
            seconds = time.monotonic() - began
            found.append((given.seen.last, (recipe, name, images, seconds)))
    if found:
        given.to_the_end(*max(found, key=lambda one: one[0])[1])


def hand(given: Allotment, _seed: int) -> None:
    """The recipe set by hand for all the time, with cosine: as many epochs as its speed allows,
    which a first look measures."""
    space, least = given.plan.space, given.first_look
    configuration = Configuration(0, "hand", by_hand(space))
    speed = given.train(configuration.constant(space), "speed", least).history
    trained = speed[["train_seconds", "wait_seconds"]].to_numpy().sum() / speed["images"].iloc[-1]
    images = (1 - MARGIN) * given.left / trained
    # A look each time that the images have doubled, and all of select at the end.
    looks = 2 + log2(max(1.0, images / least))
    images -= looks * float(speed["score_seconds"].iloc[-1]) / trained
    epochs = max(1.0, images / given.images)
    given.train(configuration.cosine(space, epochs), "0000")


ARMS: dict[str, Callable[[Allotment, int], None]] = {
    PLAIN: plain_optuna,
    "presets, then best": presets_then_best,
    "hand": hand,
}
"""They get their time, and the seed of their draws."""

NEEDED = {"hand": BY_HAND}
"""The architecture that an arm is about."""
