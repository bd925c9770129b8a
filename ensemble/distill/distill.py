"""Teachers + student -> search.training.loop.fit -> merged/distilled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from ensemble.distill.plan import DistillPlan, plan_distillation
from ensemble.distill.progress import DistillProgress
from ensemble.distill.recordings import RecordedViews, ViewManifest, record_views, view_loader
from ensemble.distill.student import DistillationLoss, Student
from ensemble.distill.teacher import Teacher
from ensemble.network.model import MERGED, ModelSpec, keep_merged, merged_folder, summarise
from ensemble.network.unfinished import UnfinishedTraining
from ensemble.pool import EVALUATION_BATCH, Pool
from ensemble.settings import DistillSettings
from search.data.batches import Loader
from search.interruption import Interrupted, Interruption
from search.training.candidate import WEIGHTS, Candidate, EpochRecord, load_weights
from search.training.loop import FitResult, fit
from search.training.loss import training_batches
from search.training.network import Network, build_network
from search.training.scoring import Evaluation, evaluate

DISTILLED = "distilled"
VIEWS = "views"
"""The recorded views, in the student's folder."""


def run_distill(
    pool: Pool, settings: DistillSettings, console: Console, interruption: Interruption
) -> Candidate:
    """Distils the teachers into one network and keeps it in merged/distilled.

    An interrupted distillation goes on where it stopped: after its last finished round of views,
    or after its last finished epoch.

    Args:
        pool: of the run.
        settings: as given by the user.
        console: where progress goes.
        interruption: asked between batches whether to go on.

    Raises:
        UserError: if student or teachers break a rule or are not at hand, before anything is
            written; or if too many images are broken.
        Interrupted: if it was interrupted; nothing is lost.
    """
    plan = plan_distillation(pool, settings, console)
    for line in plan.describe():
        console.print(line, highlight=False, soft_wrap=True)
    distillation = _Distillation(
        pool, plan, settings.flags(), DistillProgress(console, interruption)
    )
    try:
        return distillation.complete()
    except Interrupted:
        console.print(
            f"interrupted {distillation.stage}: the same command goes on from there", soft_wrap=True
        )
        raise


class _Distillation:
    """One distillation, from its plan to its folder."""

    def __init__(
        self, pool: Pool, plan: DistillPlan, flags: list[str], progress: DistillProgress
    ) -> None:
        self.pool, self.plan, self.flags, self.progress = pool, plan, flags, progress
        self.folder = merged_folder(pool.run, DISTILLED)
        self.stage = "before the training"

    def complete(self) -> Candidate:
        """Asks the teachers, trains, scores and keeps the student."""
        pool, plan = self.pool, self.plan
        console = self.progress.console
        unfinished = UnfinishedTraining(self.folder, plan.identity(), console, "distillation")
        network = build_network(plan.recipe, pretrained=plan.start is None)
        if plan.start is not None:
            load_weights(plan.start.path / WEIGHTS, network)
        teacher, loader = self._live() if plan.live_teacher else self._recorded()
        result = self._fit(network, teacher, loader, unfinished.state_file)
        self.stage = "while scoring the student"
        candidate = keep_merged(
            pool,
            DISTILLED,
            network,
            self._spec(),
            plan.recipe,
            history=result.history,
            figures=self._figures(result),
            on_batch=self.progress.check,
        )
        unfinished.clear()
        console.print(summarise(candidate), highlight=False, soft_wrap=True)
        return candidate

    def _recorded(self) -> tuple[RecordedViews, Loader]:
        """The teachers' outputs for recorded views, and the loader that shows these views."""
        pool, plan = self.pool, self.plan
        recipe, table = plan.recipe, pool.splits.fit
        manifest = ViewManifest(
            teachers=plan.teachers.entries,
            split_fingerprint=pool.splits.fingerprint(),
            images=len(table),
            views=plan.views,
            seed=recipe.seed,
            augmentation=recipe.augmentation,
            augmentation_strength=recipe.augmentation_strength,
            image_size=max(recipe.image_size, plan.teachers.image_size),
            with_features=plan.losses.feature > 0,
        )
        self.stage = "while the teachers looked at the views"
        with self.progress.stage("asking the teachers"):
            recorded = record_views(
                self.folder / VIEWS,
                manifest,
                self._teacher,
                table,
                batch_size=EVALUATION_BATCH,
                runtime=pool.runtime,
                quarantine=pool.quarantine,
                console=self.progress.console,
                on_batch=self.progress.advance,
            )
        loader = view_loader(
            table,
            manifest,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            balance=recipe.class_balance == "sampler",
            workers=pool.runtime.workers,
            quarantine=pool.quarantine,
            pin_memory=pool.runtime.on_cuda,
        )
        return recorded, loader

    def _live(self) -> tuple[Teacher, Loader]:
        """The teachers themselves, and a loader that shows new views in every epoch."""
        recipe, teacher = self.plan.recipe, self._teacher()
        size = max(recipe.image_size, teacher.image_size)
        sized, pool = replace(recipe, image_size=size), self.pool
        return teacher, training_batches(pool.splits.fit, sized, pool.runtime, pool.quarantine)

    def _teacher(self) -> Teacher:
        plan = self.plan
        return Teacher(
            plan.teachers.load(),
            plan.teachers.weights,
            self.pool.runtime,
            with_features=plan.losses.feature > 0,
        )

    def _fit(
        self, network: Network, teacher: Teacher | RecordedViews, loader: Loader, state_file: Path
    ) -> FitResult:
        """Trains the network, or goes on with it."""
        pool, plan, progress = self.pool, self.plan, self.progress
        epochs = plan.recipe.epochs
        select = pool.loader("select", network.image_size)

        def evaluate_select(module: nn.Module) -> Evaluation:
            return evaluate(module, select, pool.runtime, on_batch=progress.check)

        def on_epoch(record: EpochRecord) -> None:
            self.stage = f"after epoch {record.epoch} of {epochs}"
            progress.epoch(record, epochs)

        self.stage = "after the views"
        if state_file.exists():
            self.stage = "after its last finished epoch"
        with progress.stage("training"):
            return fit(
                Student(network, teacher.feature_size, plan.recipe.seed),
                loader,
                DistillationLoss(teacher, plan.losses),
                plan.recipe,
                evaluate=evaluate_select,
                runtime=pool.runtime,
                on_epoch=on_epoch,
                on_step=progress.step,
                state_file=state_file,
            )

    def _spec(self) -> ModelSpec:
        plan = self.plan
        return ModelSpec(
            kind="single",
            trunks=(plan.recipe,),
            method="distilled",
            merged_from=() if plan.start is None else (plan.start.name,),
            teachers=plan.teachers.origins,
            overrides=plan.overrides,
        )

    def _figures(self, result: FitResult) -> dict[str, Any]:
        """What metrics.json tells of the training, under the leaderboard's names where it can."""
        recipe = self.plan.recipe
        names = ("epochs", "learning_rate", "weight_decay", "batch_size", "seed")
        return {
            **{name: getattr(recipe, name) for name in names},
            "augmentation": f"{recipe.augmentation}:{recipe.augmentation_strength:.2f}",
            "train_seconds": round(result.train_seconds, 2),
            "images_per_second": round(result.images_per_second, 1),
            "peak_memory_mb": result.peak_memory_mb and round(result.peak_memory_mb, 1),
            "best_epoch": result.best_epoch,
            "micro_batch_size": result.micro_batch_size,
            "path": f"{MERGED}/{DISTILLED}",
            "distillation": {**self.plan.identity(), "flags": self.flags},
        }
