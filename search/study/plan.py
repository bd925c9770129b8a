"""Everything a search needs, checked before anything is trained or written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import optuna
from rich.console import Console

from search.catalogue.backbones import DEFAULT_PATH, Backbone, Catalogue, load_backbones
from search.catalogue.dimensions import without_pairs
from search.catalogue.rules import Verdict, judge
from search.catalogue.weights import check_weights
from search.data.inputs import read_splits
from search.data.splits import Splits
from search.errors import UserError
from search.machine.device import (
    Runtime,
    check_training_precision,
    default_workers,
    resolve_device,
)
from search.machine.files import CANDIDATES
from search.pixels.opening import choose_canvas
from search.settings.search import SearchSettings
from search.study.decisions.layout import Rules
from search.study.decisions.pace import ended
from search.study.decisions.space import BASELINE, BASELINE_EPOCHS, MANY_TRIALS, PRESET, Space
from search.training.candidate import CHECKPOINT
from search.training.objective import check_objective, needs_unseen, parts_told
from search.training.recipe import Recipe
from search.training.scoring import first_look, images_of_a_look
from search.validation.forgeries.finding import finder

BASELINE_BACKBONE = "resnet18.a1_in1k"
"""What timm.create_model("resnet18", pretrained=True) loads, as the challenge's baseline does."""


DISK_SHARE = 0.5
"""Of what is free, what checkpoints of paused candidates may take unless --disk says it."""

FEWEST_TRIALS = 20
"""Trials of a search that was not told; more where the baseline and one default of each backbone,
which come first, would leave less than half of them to be searched."""


@dataclass(frozen=True)
class SearchPlan:
    """A search that can start."""

    settings: SearchSettings
    catalogue: Catalogue
    splits: Splits
    space: Space
    rejected: tuple[tuple[Backbone, Verdict], ...]
    runtime: Runtime
    images_of_a_look: int
    """Images of select that are scored at each look."""
    notes: tuple[str, ...]
    """What the user should know beside the figures; told in the report."""

    @property
    def rules(self) -> Rules:
        """How the search is laid out."""
        space, steps = self.space, self.steps
        batch = space.batch_size
        is_constant = space.schedule == "constant"
        return Rules(
            first_look=max(1, first_look(steps * batch) // batch) * batch,
            batch_size=batch,
            trials=self.settings.trials,
            longest=None if space.epochs is None else round(space.epochs * steps) * batch,
            decay_fraction=Recipe.decay_fraction if is_constant else 0.0,
            prolongs=is_constant,
            baseline_images=round(BASELINE_EPOCHS * len(self.splits.fit) * self._baseline_area),
        )

    @property
    def _baseline_area(self) -> float:
        """Of the baseline's images, in those of the defaults, whose seconds are known first."""
        sizes = [backbone.image_sizes[0] for backbone in self.space.backbones]
        return (self.space.baseline_image_size / median(sizes)) ** 2

    def recipe_of(self, trial: optuna.Trial) -> Recipe:
        """What a trial proposes."""
        if trial.user_attrs.get(PRESET) == BASELINE:
            return self.space.baseline_recipe()
        return self.space.recipe(trial.params)

    def ended(self, recipe: Recipe, images: int, done: int) -> Recipe:
        """A recipe whose training ends after so many images, `done` of which it has seen."""
        return ended(recipe, images, done, self.steps)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return max(1, len(self.splits.fit) // self.space.batch_size)

    def disk_bytes(self, run: Path) -> float:
        """What the checkpoints of paused candidates may take; of --disk, or of what is free."""
        if self.settings.disk is not None:
            return self.settings.disk * 1e9
        taken = sum(path.stat().st_size for path in run.glob(f"{CANDIDATES}/*/{CHECKPOINT}"))
        return DISK_SHARE * (shutil.disk_usage(run).free + taken)

    def judge_recipe(self, recipe: Recipe) -> Verdict:
        """The verdict of the rules on a recipe that the space proposed."""
        backbones = (*self.space.backbones, self.space.baseline)
        known = (b for b in backbones if b is not None and b.name == recipe.backbone)
        # A trial that goes on keeps the backbone that it began with.
        backbone = next(known, None) or self.catalogue.get(recipe.backbone)
        return judge(backbone, recipe.image_size, self.catalogue.budget, weights=recipe.weights)


def prepare(
    settings: SearchSettings,
    catalogue_path: Path | None = None,
    console: Console | None = None,
    canvas: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> SearchPlan:
    """Reads and checks all input of a search.

    Args:
        settings: resolved settings.
        catalogue_path: the backbones file of an existing run, which wins over the settings.
        console: shows the progress of downloads; default: quiet.
        canvas: that of an existing run, which wins over the settings.
        check: called before and amid all that may take long; what it raises ends the preparation.

    Raises:
        UserError: for anything that would stop the search later; nothing was written then.
    """
    if settings.schedule == "cosine" and settings.epochs is None:
        raise UserError(
            "--schedule cosine must know where it ends; add --epochs, or leave the schedule to be "
            "constant"
        )
    device = resolve_device(settings.device)
    precision = check_training_precision(settings.precision, device)
    catalogue = load_backbones(catalogue_path or settings.backbones or DEFAULT_PATH)
    assert settings.pool is not None
    pool = [_sized(backbone, settings.image_size) for backbone in catalogue.pool(settings.pool)]
    workers = default_workers(device) if settings.workers is None else settings.workers
    runtime = Runtime(device, workers)
    check_out(settings)
    source = settings.weights_source
    verdicts = [
        (backbone, judge(backbone, backbone.image_sizes[0], catalogue.budget, weights=source))
        for backbone in pool
    ]
    allowed = tuple(backbone for backbone, verdict in verdicts if verdict.allowed)
    rejected = tuple((backbone, verdict) for backbone, verdict in verdicts if not verdict.allowed)
    if not allowed:
        reasons = "; ".join(f"{b.name}: {', '.join(v.reasons)}" for b, v in rejected)
        raise UserError(f"pool '{settings.pool}' must have an allowed backbone, found {reasons}")
    skipped: list[str] = []
    find = finder(settings, allowed, runtime, console or Console(quiet=True), check)
    splits = read_splits(settings, skipped.append, find, check)
    look = images_of_a_look(
        splits.select,
        settings.select_limit,
        images_before=first_look(len(splits.fit)),
        seed=settings.seed,
        with_unseen=needs_unseen(settings.objective),
    )
    check_objective(settings.objective, splits, look)
    folder = settings.weights_dir
    check_weights(allowed, weights=source, weights_dir=folder, console=console, on_progress=check)
    baseline, notes = _baseline(catalogue, allowed, settings, console, check)
    if settings.trials is None and settings.timeout is None:
        settings = replace(settings, trials=max(FEWEST_TRIALS, 2 * (len(allowed) + 1)))
    assert settings.batch_size is not None
    if canvas is None:
        canvas = settings.canvas
    if canvas is None:
        canvas = choose_canvas(splits, [size for b in allowed for size in b.image_sizes])
    dimensions = catalogue.dimensions
    if splits.fit.groupby("group")["target"].nunique().max() < 2:
        asked = [name for name, one in dimensions.items() if one.only_paired and one.always]
        if asked:
            skipped.append(f"No group of fit has both classes: {', '.join(asked)} changes nothing.")
        dimensions = without_pairs(dimensions)
    space = Space(
        backbones=allowed,
        baseline=baseline,
        dimensions=dimensions,
        weights=source,
        weights_dir=settings.weights_dir,
        epochs=settings.epochs,
        schedule=settings.schedule,
        canvas=canvas,
        batch_size=settings.batch_size,
        micro_batch_size=settings.micro_batch_size,
        select_limit=settings.select_limit,
        objective=settings.objective,
        precision=precision,
        channels_last=True,
        compile=settings.compile,
        seed=settings.seed,
        with_many_trials=(settings.trials or 0) >= MANY_TRIALS,
    )
    if parts := parts_told(settings.objective, splits):
        notes = (*notes, parts)
    if source == "none":
        notes = ("All networks were trained from scratch: --weights none.", *notes)
    declared = [backbone.name for backbone in allowed if backbone.declared]
    if declared and source != "none":
        text = (
            f"Pretraining declared in the backbones file, not known to timm: {', '.join(declared)}."
        )
        notes = (*notes, text)
    return SearchPlan(
        settings=settings,
        catalogue=catalogue,
        splits=splits,
        space=space,
        rejected=rejected,
        runtime=runtime,
        images_of_a_look=len(look),
        notes=(*notes, *skipped),
    )


def check_out(settings: SearchSettings) -> None:
    """
    Raises:
        UserError: if the run folder cannot be made or written to.
    """
    out = settings.out
    assert out is not None
    nearest = out
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UserError(f"--out {out} must be a folder, but {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"--out {out} must be writable, but {nearest} is not; choose another --out")


def _sized(backbone: Backbone, image_size: int | None) -> Backbone:
    return backbone if image_size is None else replace(backbone, image_sizes=(image_size,))


def _baseline(
    catalogue: Catalogue,
    allowed: tuple[Backbone, ...],
    settings: SearchSettings,
    console: Console | None,
    check: Callable[[], None],
) -> tuple[Backbone, tuple[str, ...]]:
    """The baseline's backbone: ResNet-18 where its weights are at hand, else the pool's first."""
    try:
        backbone = catalogue.get(BASELINE_BACKBONE)
        check_weights(
            (backbone,),
            weights=settings.weights_source,
            weights_dir=settings.weights_dir,
            console=console,
            on_progress=check,
        )
    except UserError:
        note = (
            f"The baseline's own backbone ({BASELINE_BACKBONE}) is not at hand: its settings were "
            f"applied to {allowed[0].name}."
        )
        return allowed[0], (note,)
    return backbone, ()
