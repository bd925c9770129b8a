"""Teachers + student -> search.training.train -> merged/distilled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from ensemble.distill.outputs import Teacher
from ensemble.distill.plan import DistillPlan, plan_distillation
from ensemble.distill.recordings import RecordedViews, check_space, other_views, record_views
from ensemble.distill.student import DistillationLoss, Student
from ensemble.distill.views import ViewManifest, view_loader
from ensemble.network.model import keep_merged, summarise
from ensemble.network.training import Leftover, MergeTraining, costs_of, looks_of, settle
from ensemble.pool.pool import Pool
from ensemble.settings import DistillSettings
from search.machine.files import MERGED
from search.machine.interruption import Interruption
from search.machine.progress import Bars, tell_line
from search.pixels.loading.epochs import Loader
from search.pixels.opening import fill
from search.training.candidate import WEIGHTS, Candidate, load_weights
from search.training.loss import Loss, training_batches
from search.training.network import build_network
from search.training.scoring import SCORING_BATCH

DISTILLED = "distilled"
VIEWS = "views"
"""The recorded views, beside the merged models."""

PLAIN_LINES = 4
"""Lines that tell of the recording where there is no terminal."""


def run_distill(
    pool: Pool, settings: DistillSettings, console: Console, interruption: Interruption
) -> Candidate:
    """Distils the teachers into one network and keeps it in merged/distilled.

    An interrupted distillation goes on from the very batch, of the teachers' or of the student's.

    Args:
        pool: of the run.
        settings: as given by the user.
        console: where progress goes.
        interruption: asked between batches whether to go on.

    Raises:
        UserError: if student or teachers break a rule or are not at hand, what an earlier
            distillation left would have to be discarded, or the disk is too small for what the
            teachers say, before anything is written; or if too many images are broken.
        Interrupted: if it was interrupted; nothing is lost.
    """
    plan = plan_distillation(pool, settings, console, interruption.check)
    for line in plan.describe():
        tell_line(console, line)
    task = Distillation(pool, plan)
    training = MergeTraining(pool, DISTILLED, plan.recipe, task)
    leftovers = (training.leftover(), task.other_views())
    settle([found for found in leftovers if found], discard=settings.discard, console=console)
    if not training.is_complete:
        task.check_space()
        fill(pool.reader, console, interruption.check)
        task.record(console, interruption, settings.checkpoint_minutes)
    trained = training.complete(console, interruption, settings.checkpoint_minutes)
    # As it was computed: what was to be measured is known now.
    plan = replace(plan, recipe=trained.recipe)
    candidate = keep_merged(
        pool,
        DISTILLED,
        trained.load(),
        plan.spec(),
        plan.recipe,
        history=looks_of(trained),
        figures=_figures(plan, trained, settings.flags()),
        on_batch=interruption.check,
    )
    training.clear()
    tell_line(console, summarise(candidate))
    return candidate


class Distillation:
    """A student that learns from teachers: a `search.training.train.Task`."""

    def __init__(self, pool: Pool, plan: DistillPlan) -> None:
        self.pool, self.plan = pool, plan

    def identity(self) -> Mapping[str, Any]:
        """What the student starts from, and what it is taught."""
        return self.plan.identity()

    def network(self, *, start: bool) -> nn.Module:
        """The student, and the projection that it may need."""
        plan = self.plan
        network = build_network(plan.recipe, pretrained=start and plan.start is None)
        if start and plan.start is not None:
            load_weights(plan.start.path / WEIGHTS, network)
        source = self.source
        sizes = source.image_sizes if isinstance(source, Teacher) else ()
        return Student(network, source.feature_size, plan.recipe.seed, sizes)

    def batches(self) -> Loader:
        """Recorded views, or new ones in every epoch for a live teacher."""
        recipe, pool = self.plan.recipe, self.pool
        if isinstance(self.source, Teacher):
            return training_batches(pool.splits.fit, recipe, pool.reader)
        return view_loader(
            pool.reader,
            pool.splits.fit,
            self._manifest,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            balance=recipe.class_balance == "sampler",
        )

    def loss(self) -> Loss:
        """The losses of distillation."""
        return DistillationLoss(self.source, self.plan.losses)

    def kept(self, network: nn.Module) -> nn.Module:
        """The student without the projection."""
        student: Any = network
        kept: nn.Module = student.network
        return kept

    @cached_property
    def source(self) -> Teacher | RecordedViews:
        """What says of each batch what the student is taught."""
        if self.plan.live_teacher:
            return self._teacher()
        return RecordedViews(self._views, self._manifest)

    def other_views(self) -> Leftover | None:
        """Recorded views of other teachers or settings, if they are in the way."""
        return None if self.plan.live_teacher else other_views(self._views, self._manifest)

    def check_space(self) -> None:
        """
        Raises:
            UserError: if the disk is too small for the views that are not recorded yet.
        """
        if not self.plan.live_teacher and self._manifest.with_features:
            check_space(self._views, self._manifest, self.plan.teachers.feature_size)

    def record(
        self, console: Console, interruption: Interruption, checkpoint_minutes: float
    ) -> None:
        """Asks the teachers about all views that are not recorded yet, unless they are asked live.

        Raises:
            Interrupted: if it was interrupted; the next time goes on from there.
        """
        if self.plan.live_teacher:
            return
        with Bars(console, time_left=True, transient=True, plain_lines=PLAIN_LINES) as bars:
            bar = bars.add("asking the teachers", unit="batches", plain="asked the teachers about")

            def on_batch(finished: int, batches: int) -> None:
                bar.update(finished, batches)
                interruption.check()

            record_views(
                self._views,
                self._manifest,
                self._teacher,
                self.pool.splits.fit,
                batch_size=SCORING_BATCH,
                runtime=self.pool.runtime,
                reader=self.pool.reader,
                console=console,
                on_batch=on_batch,
                checkpoint_minutes=checkpoint_minutes,
            )

    @property
    def _views(self) -> Path:
        return self.pool.run / MERGED / VIEWS

    @cached_property
    def _manifest(self) -> ViewManifest:
        plan, splits = self.plan, self.pool.splits
        recipe = plan.recipe
        return ViewManifest(
            teachers=plan.teachers.entries,
            split_fingerprint=splits.fingerprint(),
            images=len(splits.fit),
            views=plan.views,
            seed=recipe.seed,
            augmentation=recipe.augmentation,
            augmentation_strength=recipe.augmentation_strength,
            canvas=recipe.canvas,
            with_features=plan.losses.feature > 0,
            precision=plan.teacher_precision,
        )

    def _teacher(self) -> Teacher:
        teachers = self.plan.teachers
        return Teacher(
            teachers.load(),
            teachers.weights,
            self.pool.runtime,
            with_features=self.plan.losses.feature > 0,
            precision=self.plan.teacher_precision,
        )


def _figures(plan: DistillPlan, trained: Candidate, flags: list[str]) -> dict[str, Any]:
    """What metrics.json tells of the training, under the leaderboard's names where it can."""
    recipe = plan.recipe
    names = ("epochs", "learning_rate", "weight_decay", "batch_size", "seed")
    return {
        **{name: getattr(recipe, name) for name in names},
        "augmentation": f"{recipe.augmentation}:{recipe.augmentation_strength:.2f}",
        **costs_of(trained),
        "best_epoch": trained.metrics["best_epoch"],
        "path": f"{MERGED}/{DISTILLED}",
        "distillation": {**plan.identity(), "flags": flags},
    }
