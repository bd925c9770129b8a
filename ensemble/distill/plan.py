"""Who learns from whom: a distillation's settings, checked against its pool and the rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import sqrt
from typing import Any

from rich.console import Console

from ensemble.distill.student import LossWeights
from ensemble.network.model import ModelSpec
from ensemble.pool.eligibility import judge_recipe
from ensemble.pool.pool import Pool
from ensemble.settings import DistillSettings
from ensemble.teachers import TeacherPlan, plan_teachers
from search.catalogue.rules import Verdict, judge
from search.catalogue.weights import check_weights, locate_weights
from search.errors import UserError
from search.machine.device import Precision, check_training_precision, resolve_precision
from search.machine.files import file_sha256
from search.pixels.augmentation.augment import Augmentation
from search.training.candidate import WEIGHTS, Candidate
from search.training.recipe import NOT_OF_RECORDED_VIEWS, Recipe


@dataclass(frozen=True)
class DistillPlan:
    """A distillation that can start."""

    recipe: Recipe  # of the student
    start: Candidate | None  # whose weights it starts from; None: as the recipe says
    verdict: Verdict  # of the rules on the student
    overrides: tuple[str, ...]  # rules that the user overrode, one line each
    teachers: TeacherPlan
    losses: LossWeights
    views: int
    live_teacher: bool
    teacher_precision: Precision

    def identity(self) -> dict[str, Any]:
        """All that the trained student depends on besides its recipe and the images, as plain
        values: an unfinished training goes on only if it is the same."""
        return {
            "start": self.start and [self.start.name, file_sha256(self.start.path / WEIGHTS)],
            "teachers": [asdict(entry) for entry in self.teachers.entries],
            "losses": asdict(self.losses),
            "views": None if self.live_teacher else self.views,
            "teacher_precision": self.teacher_precision,
        }

    def spec(self) -> ModelSpec:
        """What rebuilds the student, and where it comes from."""
        return ModelSpec(
            kind="single",
            trunks=(self.recipe,),
            method="distilled",
            merged_from=() if self.start is None else (self.start.name,),
            teachers=self.teachers.origins,
            overrides=self.overrides,
        )

    def describe(self) -> tuple[str, ...]:
        """Who learns from whom, in lines for people."""
        recipe = self.recipe
        started = {
            "hub": "its ImageNet weights",
            "file": f"the weights in {recipe.weights_file}",
            "none": "random weights, as the search did",
        }[recipe.weights]
        if self.start is not None:
            started = f"candidate {self.start.name}"
        views = "a live teacher" if self.live_teacher else f"{self.views} recorded views an image"
        return (
            self.teachers.description,
            f"student {recipe.backbone} at {recipe.image_size} px, started from {started}: "
            f"{recipe.epochs} epochs with {views}",
            *self._warnings(),
            *self.overrides,
        )

    def _warnings(self) -> tuple[str, ...]:
        names = {origin.name for origin in self.teachers.origins}
        if self.start is None or names != {self.start.name}:
            return ()
        return (
            f"the student starts as its only teacher, candidate {self.start.name}, and has little "
            "to learn from it: name other --teachers, or search on with more --trials",
        )


def plan_distillation(
    pool: Pool,
    settings: DistillSettings,
    console: Console | None = None,
    check: Callable[[], None] = lambda: None,
) -> DistillPlan:
    """Chooses student and teachers, and checks them before anything is written.

    Args:
        pool: of the run.
        settings: see there.
        console: shows the download of the student's starting weights.
        check: called as they arrive, and while teachers are chosen; what it raises ends it.

    Raises:
        UserError: if the student breaks a rule, its starting weights are not at hand, or a teacher
            is unknown, gone or tainted.
    """
    teachers = plan_teachers(
        pool, settings.teachers, allow_tainted=settings.allow_tainted, check=check
    )
    recipe, start = _plan_student(pool, settings)
    # A view that cannot be made should not be found out after the teachers were loaded.
    Augmentation(recipe.augmentation, recipe.augmentation_strength)
    verdict, overrides = _check_student(pool, recipe, start, settings, console, check)
    return DistillPlan(
        recipe=recipe,
        start=start,
        verdict=verdict,
        overrides=tuple(dict.fromkeys((*overrides, *teachers.overrides))),
        teachers=teachers,
        losses=LossWeights(
            match=settings.match,
            temperature=settings.temperature,
            hard_label=settings.hard_label_weight,
            relation=settings.relation_weight,
            feature=settings.feature_weight,
        ),
        views=settings.views,
        live_teacher=settings.live_teacher,
        teacher_precision=resolve_precision(settings.teacher_precision, pool.runtime.device),
    )


def _plan_student(pool: Pool, settings: DistillSettings) -> tuple[Recipe, Candidate | None]:
    """The student's recipe, and the candidate whose weights it starts from."""
    name = settings.student or pool.best.recipe.backbone
    alike = next((c for c in pool.candidates if c.recipe.backbone == name), None)
    if settings.start == "best" and alike is None:
        raise UserError(
            f"--start best needs a candidate of {name}, but the pool has none; use --start imagenet"
        )
    base = (alike or pool.best).recipe
    if alike is None:
        base = _recipe_of_backbone(pool, base, name)
    start = None if settings.start == "imagenet" else alike
    if settings.image_size not in (None, base.image_size):
        assert settings.image_size is not None
        base = _resized(pool, base, settings.image_size)
        if start is not None and "img_size" in base.model_args:
            if settings.start == "best":
                raise UserError(
                    f"candidate {start.name} starts students at {start.recipe.image_size} px only, "
                    f"because {name} knows positions by their number, found --image-size "
                    f"{settings.image_size}; leave it out, or use --start imagenet"
                )
            start = None
    return _taught(pool, settings, base), start


def _taught(pool: Pool, settings: DistillSettings, base: Recipe) -> Recipe:
    """A recipe as a student's: what the user gave, and no loss that a teacher cannot follow."""
    device = pool.runtime.device
    given: dict[str, Any] = {
        name: getattr(settings, name)
        for name in (
            "learning_rate",
            "augmentation",
            "augmentation_strength",
            "batch_size",
            "micro_batch_size",
            "seed",
        )
        if getattr(settings, name) is not None
    }
    return replace(
        base,
        epochs=settings.resolved_epochs(is_demo=pool.settings.is_demo),
        optimizer="adamw",
        schedule="cosine",
        gradient_clip=1.0,
        # The teacher speaks of single images, and of how sure one can be of them.
        mixup_alpha=0.0,
        cutmix_alpha=0.0,
        label_smoothing=0.0,
        class_balance="sampler" if base.class_balance == "sampler" else "none",
        **NOT_OF_RECORDED_VIEWS,
        precision=check_training_precision(settings.precision, device),
        channels_last=True,
        compile=False,
        **given,
    )


def _recipe_of_backbone(pool: Pool, base: Recipe, name: str) -> Recipe:
    """The recipe of a backbone that the pool has no candidate of: started as the search started
    its networks, and otherwise trained like the best candidate.

    Raises:
        UserError: if the run's backbones file does not have it, or its weights are not at hand.
    """
    backbone = pool.catalogue.get(name)
    source, folder = pool.settings.weights_source, pool.settings.weights_dir
    file = locate_weights(backbone, weights=source, weights_dir=folder)
    low, high = backbone.learning_rate
    size = pool.settings.image_size or backbone.image_sizes[0]
    return replace(
        base,
        backbone=name,
        architecture=backbone.architecture,
        model_args=backbone.create_args(size),
        mean=backbone.mean,
        std=backbone.std,
        image_size=size,
        drop_path=0.0 if backbone.drop_path is None else backbone.drop_path[0],
        weights=source,
        weights_file=None if file is None else str(file),
        learning_rate=sqrt(low * high),
    )


def _resized(pool: Pool, recipe: Recipe, image_size: int) -> Recipe:
    backbone = pool.catalogue.get(recipe.backbone)
    return replace(recipe, image_size=image_size, model_args=backbone.create_args(image_size))


def _check_student(
    pool: Pool,
    recipe: Recipe,
    start: Candidate | None,
    settings: DistillSettings,
    console: Console | None,
    check: Callable[[], None],
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict on a student that may be trained, and the rules that the user overrode for it."""
    backbone, budget = pool.catalogue.get(recipe.backbone), pool.catalogue.budget
    verdict = judge(backbone, recipe.image_size, budget, weights=recipe.weights)
    reasons = "; ".join(verdict.reasons)
    excess = max(verdict.params_thop, verdict.params_exact) - budget
    if excess > 0:
        fitting = ", ".join(
            dict.fromkeys(
                c.recipe.backbone
                for c in pool.candidates
                if max(c.metrics["params_thop"], c.metrics["params_exact"]) <= budget
            )
        )
        such = f", such as {fitting}" if fitting else ""
        raise UserError(
            f"a student must stay within {budget:,} parameters, but {recipe.backbone} has "
            f"{excess:,} more ({reasons}); choose another --student{such}"
        )
    origin = judge_recipe(recipe, pool.catalogue)
    if not verdict.allowed and (origin.allowed or not settings.allow_tainted):
        raise UserError(
            f"a student must keep the rules, but {recipe.backbone} does not: {reasons}; choose "
            "another --student"
        )
    if start is None:
        check_weights(
            (backbone,),
            weights=recipe.weights,
            weights_dir=pool.settings.weights_dir,
            console=console,
            on_progress=check,
        )
    elif start.name in pool.tainted:
        return verdict, pool.overrides((start.name,))
    if not verdict.allowed:
        line = f"student {recipe.backbone} is tainted and was allowed by --allow-tainted: {reasons}"
        return verdict, (line,)
    return verdict, ()
