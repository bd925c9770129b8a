"""What a refit trains: whose recipe, on which splits, to which end; checked before it is begun."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from search.catalogue.backbones import Backbone, load_backbones
from search.catalogue.rules import Verdict, judge
from search.catalogue.weights import check_weights, locate_weights
from search.data.inputs import check_data, read_splits
from search.data.splits import Splits
from search.errors import UserError
from search.machine.device import (
    Runtime,
    check_training_precision,
    default_workers,
    describe_device,
    resolve_device,
)
from search.machine.files import BACKBONES, CANDIDATES, LEADERBOARD, MERGED, REFITS
from search.machine.interruption import Interruption
from search.pixels.altered import ALTERED_IMAGES
from search.pixels.altering import SUBSET
from search.report.leaderboard import read_leaderboard
from search.report.page import baseline_trials
from search.run.reserve import LARGEST_RESERVE, RESULTS_SECONDS, SCORING_SPEED
from search.settings.search import SearchSettings
from search.settings.subcommands import RefitSettings
from search.study.decisions.pace import MARGIN, ended
from search.study.trials import recipe_row, verdict_row
from search.training.candidate import RECIPE, REFIT_OF, Candidate
from search.training.recipe import Recipe
from search.training.scoring import first_look
from search.training.train import HOW_NOT_WHAT, ITS_END

DEFAULT_LENGTH = 2.0
"""Times the epochs of the candidate."""

PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

RESERVED_NAME = re.compile(r"auto|fused|distilled|soup-greedy|soup-uniform|[0-9]{4,}")
"""What --model and a comparison call other models: those that merging makes, and candidates, made
or yet to be made."""


@dataclass(frozen=True, eq=False)
class Refit:
    """What is to be trained, and where it goes."""

    candidate: Candidate
    folder: Path
    recipe: Recipe
    """Its epochs are None where the time will tell."""
    verdict: Verdict
    splits: Splits
    runtime: Runtime
    search: SearchSettings
    scoring_seconds: float = 0.0
    """Of the time for training, what the last scoring on select will take of it."""

    @property
    def images(self) -> int:
        """That it is trained on."""
        return len(self.splits.seen_by(self.recipe.trained_on).fit)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return max(1, self.images // self.recipe.batch_size)

    @property
    def first_look(self) -> int:
        """Images, in whole batches, after which it is looked at first."""
        batch = self.recipe.batch_size
        return max(1, first_look(self.steps * batch) // batch) * batch

    @property
    def facts(self) -> dict[str, Any]:
        """Entries of metrics.json that are known before it is trained."""
        path = {"path": f"{REFITS}/{self.folder.name}", REFIT_OF: self.candidate.name}
        return recipe_row(self.recipe) | verdict_row(self.verdict) | path


def plan_refit(
    settings: RefitSettings, search: SearchSettings, console: Console, interruption: Interruption
) -> Refit:
    """Checks everything that would stop a refit later; what it needs of the time is reserved.

    Args:
        settings: as given by the user.
        search: the run's, with what was given applied.
        console: shows the progress of downloads.
        interruption: has the time limit, and ends a download.

    Raises:
        Interrupted: if a download was interrupted; what was fetched stays.
        UserError: for what cannot be refitted, a name that is taken, images that are not the run's,
            weights that are absent, or too little time.
    """
    run = settings.run
    candidate = choose_candidate(run, settings.candidate)
    folder = run / REFITS / _name(settings, candidate)
    splits = read_splits(search)
    check_data(run, splits)
    device = resolve_device(search.device)
    workers = default_workers(device) if search.workers is None else search.workers
    catalogue = load_backbones(run / BACKBONES)
    backbone = catalogue.get(candidate.recipe.backbone)
    recipe = _recipe(settings, search, candidate, backbone)
    recipe = replace(recipe, precision=check_training_precision(search.precision, device))
    source, weights_dir = search.weights_source, search.weights_dir
    verdict = judge(backbone, recipe.image_size, catalogue.budget, weights=source)
    if not verdict.allowed:
        raise UserError(
            f"candidate {candidate.name} must keep the rules at {recipe.image_size} px, but "
            f"{'; '.join(verdict.reasons)}; choose another --image-size or --candidate"
        )
    recipe = _with_its_end(recipe, settings, folder)
    refit = Refit(candidate, folder, recipe, verdict, splits, Runtime(device, workers), search)
    if not Candidate(folder).is_complete:
        check_weights(
            (backbone,),
            weights=source,
            weights_dir=weights_dir,
            console=console,
            on_progress=interruption.check,
        )
        if interruption.deadline is not None:
            refit = _within_the_time(refit, interruption)
    return refit


def choose_candidate(run: Path, number: int | None) -> Candidate:
    """The candidate whose recipe is trained.

    Args:
        run: the run folder.
        number: None takes the best on select.

    Raises:
        UserError: if there is none of that number, it is not complete, or it is the baseline.
    """
    table = read_leaderboard(run / LEADERBOARD)
    baseline = baseline_trials(None, table)
    complete = table[(table["state"] == "complete") & (table["candidate"] != "")]
    names = complete["candidate"][~complete["trial"].isin(baseline)].tolist()
    if not names:
        raise UserError(
            f"{run} must hold a complete candidate beside the baseline, found none; search on with "
            f"`python -m search run --out {run}`"
        )
    if number is None:
        return Candidate(run / CANDIDATES / names[0])
    name, known = f"{number:04d}", f"choose one of {', '.join(sorted(names))}"
    if number not in table.index:
        raise UserError(f"--candidate must be one of the run's, found {number}; {known}")
    state = str(table.loc[number, "state"])
    if state != "complete":
        raise UserError(f"candidate {name} must be complete, found it {state}; {known}")
    if number in baseline:
        raise UserError(
            f"--candidate must be one that the search found, but {name} is the challenge's "
            f"baseline; {known}"
        )
    if name not in names:
        raise UserError(f"candidate {name} must have its folder, but that is gone; {known}")
    return Candidate(run / CANDIDATES / name)


def _name(settings: RefitSettings, candidate: Candidate) -> str:
    on = "" if settings.on == "fit+select" else f"-{settings.on}"
    name = settings.name or f"refit-{candidate.name}{on}"
    if not PLAIN_NAME.fullmatch(name):
        raise UserError(f"--name must be letters, digits, '.', '-' and '_', found '{name}'")
    others = (settings.run / kind / name for kind in (CANDIDATES, MERGED))
    if RESERVED_NAME.fullmatch(name) or any(other.exists() for other in others):
        raise UserError(
            f"--name must not mean another model of the run, found '{name}'; choose another"
        )
    return name


def _recipe(
    settings: RefitSettings, search: SearchSettings, candidate: Candidate, backbone: Backbone
) -> Recipe:
    """The candidate's recipe on the splits that were asked for, its end as told."""
    found = candidate.recipe
    size = settings.image_size or found.image_size
    file = locate_weights(backbone, weights=found.weights, weights_dir=search.weights_dir)
    epochs = settings.epochs or DEFAULT_LENGTH * (found.epochs or 1)
    is_open = settings.timeout is not None and found.schedule == "constant"
    changes: dict[str, Any] = {
        "image_size": size,
        "model_args": backbone.create_args(size),
        "weights_file": None if file is None else str(file),
        "epochs": None if is_open else int(epochs) if float(epochs).is_integer() else epochs,
        "decay_fraction": Recipe.decay_fraction,
        "trained_on": settings.on,
        "micro_batch_size": search.micro_batch_size,
        "compile": search.compile,
        "channels_last": True,
    }
    if settings.seed is not None:
        changes["seed"] = settings.seed
    return replace(found, **changes)


def _with_its_end(recipe: Recipe, settings: RefitSettings, folder: Path) -> Recipe:
    """The recipe, with the end that its training was given when it was begun unless another is
    asked for.

    Raises:
        UserError: if the folder holds another refit.
    """
    if not (folder / RECIPE).exists():
        return recipe
    begun = Candidate(folder).recipe
    is_complete = Candidate(folder).is_complete
    names = [name for name in asdict(recipe) if name not in (*HOW_NOT_WHAT, *ITS_END)]
    if settings.epochs is not None and (is_complete or recipe.schedule != "constant"):
        names.append("epochs")
    changed = [name for name in names if getattr(begun, name) != getattr(recipe, name)]
    if changed:
        wanted = ", ".join(f"{name} {getattr(recipe, name)}" for name in changed)
        found = ", ".join(f"{name} {getattr(begun, name)}" for name in changed)
        raise UserError(
            f"{folder} holds a refit with {found}, found {wanted} asked for; give this one another "
            "--name"
        )
    if begun.epochs is None or settings.epochs is not None:
        return recipe
    return replace(recipe, epochs=begun.epochs, decay_fraction=begun.decay_fraction)


def _within_the_time(refit: Refit, interruption: Interruption) -> Refit:
    """The refit with the end of a schedule that must know it, by the speed that was recorded of the
    candidate; what scoring on report and the results will take is reserved.

    Raises:
        UserError: if there is no time for a first look.
    """
    recipe, metrics = refit.recipe, refit.candidate.metrics
    cost = (recipe.image_size / refit.candidate.recipe.image_size) ** 2
    training, scoring = (
        float(metrics.get(name) or 0.0) / cost for name in ("images_per_second", SCORING_SPEED)
    )
    unseen = refit.splits.seen_by(recipe.trained_on)
    select = len(unseen.select)
    # Some of select is scored altered as well.
    select += len(SUBSET) * min(select, ALTERED_IMAGES)
    on_select, on_report = (
        images / scoring if scoring else 0.0 for images in (select, len(unseen.report))
    )
    refit = replace(refit, scoring_seconds=on_select)
    assert interruption.seconds_left is not None
    interruption.reserved_seconds = min(
        RESULTS_SECONDS + on_report, LARGEST_RESERVE * interruption.seconds_left
    )
    left = interruption.seconds_left - on_select
    if (refit.folder / RECIPE).exists():
        return refit
    needed = refit.first_look / training if training else 0.0
    # Another machine's speed says nothing of this one.
    if metrics.get("device") == describe_device(refit.runtime.device) and left < needed:
        raise UserError(
            f"--timeout must leave {needed:.1f} s for a first look at the {training:.0f} images/s "
            f"of candidate {refit.candidate.name}, found {max(0.0, left):.1f} s beside scoring and "
            "the results; give more, or a smaller --image-size"
        )
    if recipe.schedule == "constant" or not training:
        return refit
    images = int((1 - MARGIN) * left * training)
    return replace(refit, recipe=ended(recipe, images, 0, refit.steps))
