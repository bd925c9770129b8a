"""The pool: the finished candidates of a run, checked, and their scores aligned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from search.catalogue.backbones import Catalogue, load_backbones
from search.catalogue.provenance import IMAGENET_1K, provenance
from search.data.batches import Loader, eval_loader
from search.data.inputs import check_data, read_splits, tables
from search.data.quarantine import Quarantine
from search.data.splits import Splits
from search.errors import UserError
from search.files import BACKBONES, CANDIDATES, LEADERBOARD, QUARANTINE, suggestion
from search.settings import SearchSettings, load_settings
from search.training.candidate import METRICS, Candidate, score_on_report
from search.training.device import Runtime, default_workers, resolve_device
from search.training.recipe import Recipe
from search.training.scoring import SCORING_BATCH, Evaluation, evaluate

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pool:
    """A finished search, opened to merge its candidates."""

    run: Path
    settings: SearchSettings
    splits: Splits
    catalogue: Catalogue
    runtime: Runtime
    quarantine: Quarantine
    candidates: tuple[Candidate, ...]
    """Complete, with weights, allowed by the rules or by the user; best on select first."""
    select: pd.DataFrame
    """img_name, target, and a column of probabilities for each candidate by its name."""
    report: pd.DataFrame
    """Likewise; nothing chooses by it."""
    tainted: Mapping[str, str]
    """Why the rules forbid a candidate, by its name."""
    allow_tainted: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates', best on select first."""
        return tuple(candidate.name for candidate in self.candidates)

    @property
    def best(self) -> Candidate:
        """The candidate with the highest AUC on select."""
        return self.candidates[0]

    def get(self, name: str) -> Candidate:
        """The candidate of a name.

        Raises:
            UserError: if there is none, its trial did not come to its end, its weights are gone, or
                it is tainted.
        """
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        candidate = Candidate(self.run / CANDIDATES / name)
        if name in self.tainted:
            raise UserError(
                f"candidate {name} must not be merged: {self.tainted[name]}; choose another, or "
                "add --allow-tainted, which is recorded"
            )
        state = trial_states(self.run).get(name)
        if state not in (None, COMPLETE):
            raise UserError(
                f"candidate {name} must be complete, but {LEADERBOARD} says {state}; choose "
                f"another of {', '.join(self.names)}"
            )
        if state is None or not candidate.is_complete:
            raise UserError(
                f"candidates must be among {', '.join(self.names)}, found '{name}'"
                f"{suggestion(name, self.names)}"
            )
        raise UserError(
            f"candidate {name} must have its weights, but they were deleted by the search's "
            f"--keep {self.settings.keep}; choose another of {', '.join(self.names)}"
        )

    def choose(self, names: Sequence[str]) -> tuple[Candidate, ...]:
        """Several candidates by name, in the pool's order, each once.

        Raises:
            UserError: as `get`, and for fewer than two.
        """
        wanted = {self.get(name).name for name in names}
        if len(wanted) < FEWEST:
            raise UserError(
                f"merging needs two candidates or more, found {', '.join(names) or 'none'}; the "
                f"pool has {', '.join(self.names)}"
            )
        return tuple(candidate for candidate in self.candidates if candidate.name in wanted)

    def overrides(self, names: Sequence[str]) -> tuple[str, ...]:
        """The rules that merging these candidates overrides, one line each, for every report."""
        return tuple(
            f"candidate {name} is tainted and was allowed by --allow-tainted: {self.tainted[name]}"
            for name in names
            if name in self.tainted
        )

    def select_scores(self, names: Sequence[str]) -> Floats:
        """Probabilities on select, (M, N)."""
        return self.select[list(names)].to_numpy(np.float64).T

    @property
    def select_targets(self) -> Integers:
        """(N,) 1 = fake."""
        return self.select["target"].to_numpy(np.int64)

    def loader(self, split: str, image_size: int) -> Loader:
        """The images of "fit", "select" or "report" as they are, in the table's order."""
        return eval_loader(
            tables(self.splits)[split],
            image_size,
            batch_size=SCORING_BATCH,
            workers=self.runtime.workers,
            quarantine=self.quarantine,
            pin_memory=self.runtime.on_cuda,
        )

    def evaluate(
        self,
        model: nn.Module,
        split: str,
        image_size: int,
        on_batch: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Scores a model on a split."""
        return evaluate(model, self.loader(split, image_size), self.runtime, on_batch)


def open_pool(
    run: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    allow_tainted: bool = False,
    console: Console | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Pool:
    """Opens a run and checks all that merging rests on.

    The candidates are those that the study calls complete, as leaderboard.csv tells. Those that
    lack scores on report are scored now; those without weights, and tainted ones (unless allowed)
    are left out.

    Args:
        run: the folder of a search.
        device: see `resolve_device`.
        workers: processes that decode images; None leaves it to the settings and the machine.
        allow_tainted: take candidates whose pretraining breaks the rule, too.
        console: is told what is left out and what is scored.
        on_batch: called after every batch that is scored; what it raises ends the opening.

    Raises:
        UserError: if this is no run or has no leaderboard, its images changed, fewer than two
            candidates can be merged, or candidates were scored on different splits.
    """
    console = console or Console(quiet=True)
    settings = load_settings(run)
    splits = read_splits(settings)
    check_data(run, splits)
    catalogue = load_backbones(run / BACKBONES)
    target = resolve_device(device)
    runtime = Runtime(target, _workers(workers, settings.workers, target))
    quarantine = Quarantine(
        run / QUARANTINE,
        tell=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
    )
    finished = finished_candidates(run, console)
    verdicts = {c.name: judge_origin(c, catalogue) for c in finished}
    tainted = {name: origin.reason for name, origin in verdicts.items() if not origin.allowed}
    candidates = [c for c in finished if c.has_weights and (allow_tainted or c.name not in tainted)]
    check_enough(run, settings, finished, candidates, () if allow_tainted else tuple(tainted))
    for name, reason in tainted.items():
        fate = "allowed by --allow-tainted" if allow_tainted else "left out"
        console.print(
            f"candidate {name} is tainted, {fate}: {reason}", highlight=False, soft_wrap=True
        )
    _score_on_report(candidates, splits.report, runtime, quarantine, console, on_batch)
    return Pool(
        run=run,
        settings=settings,
        splits=splits,
        catalogue=catalogue,
        runtime=runtime,
        quarantine=quarantine,
        candidates=tuple(candidates),
        select=_align({c.name: c.scores for c in candidates}, splits.select, quarantine, console),
        report=_align(
            {c.name: c.report_scores for c in candidates if c.report_scores is not None},
            splits.report,
            quarantine,
            console,
        ),
        tainted=tainted,
        allow_tainted=allow_tainted,
    )


def _score_on_report(
    candidates: Sequence[Candidate],
    table: pd.DataFrame,
    runtime: Runtime,
    quarantine: Quarantine,
    console: Console,
    on_batch: Callable[[], None],
) -> None:
    for candidate in candidates:
        if candidate.report_scores is not None:
            continue
        console.print(
            f"scoring candidate {candidate.name} on report", highlight=False, soft_wrap=True
        )
        score_on_report(candidate, candidate.load(), table, runtime, quarantine, on_batch)


def _names(quarantine: Quarantine, table: pd.DataFrame) -> set[str]:
    """Broken images of a table; a name may be another, sound image in another folder."""
    return {broken.img_name for broken in quarantine.among(table)}


def _align(
    scores: Mapping[str, pd.DataFrame],
    split: pd.DataFrame,
    quarantine: Quarantine,
    console: Console,
) -> pd.DataFrame:
    return align_scores(
        scores,
        split,
        _names(quarantine, split),
        limit_fraction=quarantine.limit_fraction,
        tell=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
    )


def _workers(given: int | None, of_run: int | None, device: torch.device) -> int:
    if given is not None or of_run is not None:
        return given if given is not None else of_run or 0
    return default_workers(device)


FEWEST = 2
"""Candidates that there must be for anything to be merged."""


COMPLETE = "complete"
"""State of a trial that came to its end, in leaderboard.csv."""


def trial_states(run: Path) -> dict[str, str]:
    """What became of each trial, by its candidate's name: the study, as it was last written down.

    Raises:
        UserError: if the run has no leaderboard that can be read.
    """
    path = run / LEADERBOARD
    try:
        # Texts: 0007 is a name, no number.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        names, states = table["candidate"].tolist(), table["state"].tolist()
    except (OSError, ValueError, KeyError) as error:
        reason = "it is absent" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(
            f"{path} must say which candidates are complete, but {reason}; write it with "
            f"`python -m search report --out {run}`"
        ) from None
    return dict(zip(names, states, strict=True))


def finished_candidates(run: Path, console: Console) -> list[Candidate]:
    """Candidates that the study calls complete, with or without weights, best on select first.

    Args:
        run: the folder of the search.
        console: is told which others lie there: a copy, say, or one whose process died before the
            study knew of it.

    Raises:
        UserError: as `trial_states`.
    """
    states = trial_states(run)
    folders = sorted(path.parent for path in (run / CANDIDATES).glob(f"*/{METRICS}"))
    unknown = [path.name for path in folders if states.get(path.name) != COMPLETE]
    if unknown:
        console.print(
            f"left out, because {LEADERBOARD} does not call them complete: {', '.join(unknown)}; "
            f"if they are, `python -m search report --out {run}` writes it anew",
            highlight=False,
            soft_wrap=True,
        )
    finished = [Candidate(path) for path in folders if states.get(path.name) == COMPLETE]
    metrics = {c.name: c.metrics for c in finished}
    return sorted(
        finished, key=lambda c: (-metrics[c.name]["auc"], metrics[c.name]["params_exact"], c.name)
    )


def check_enough(
    run: Path,
    settings: SearchSettings,
    finished: Sequence[Candidate],
    usable: Sequence[Candidate],
    tainted: Sequence[str],
) -> None:
    """Checks that there is something to merge.

    Args:
        run: the folder of the search, for the message.
        settings: of the search.
        finished: complete candidates.
        usable: those of them that can be merged.
        tainted: names of those that the pretraining rule forbids.

    Raises:
        UserError: if there are fewer than two, with what became of the others.
    """
    if len(usable) >= FEWEST:
        return
    if len(finished) < FEWEST:
        raise UserError(
            f"{run} must hold two finished candidates or more, found {len(finished)}; search on "
            f"with `python -m search run --out {run}` and more --trials"
        )
    gone = [c.name for c in finished if not c.has_weights]
    reasons = []
    if gone:
        reasons.append(f"the weights of {', '.join(gone)} were deleted by --keep {settings.keep}")
    if tainted:
        reasons.append(f"{', '.join(tainted)} broke the pretraining rule")
    raise UserError(
        f"{run} must hold two candidates or more that can be merged, found {len(usable)} of "
        f"{len(finished)} finished: {' and '.join(reasons)}; search again with a larger --keep"
        + (", or add --allow-tainted" if tainted else "")
    )


def align_scores(
    scores: Mapping[str, pd.DataFrame],
    split: pd.DataFrame,
    left_out: Collection[str] = (),
    *,
    limit_fraction: float = 0.0,
    tell: Callable[[str], None] = lambda _: None,
) -> pd.DataFrame:
    """One row an image, one column a model.

    An image that broke and was mended while the models were trained has no score of some of them:
    it is left out for all, as if it were still broken.

    Args:
        scores: tables img_name, target, y_pred by the model's name, rows in any order.
        split: label table that all of them must be about.
        left_out: images that could not be read; they are in no model's column, even if an older
            table still has them.
        limit_fraction: largest share of the split's images that models may lack, in [0, 1].
        tell: given a line on the images that are left out because a model lacks them.

    Returns:
        img_name, target, and y_pred of each model under its name, in the split's order.

    Raises:
        UserError: if a model was scored on other images, or with other targets, or too many images
            are lacking.
    """
    wanted = split.loc[~split["img_name"].isin(left_out), ["img_name", "target"]]
    allowed = limit_fraction * len(split)
    found = {
        name: table[~table["img_name"].isin(left_out)].set_index("img_name")
        for name, table in scores.items()
    }
    for name, table in found.items():
        _check(name, table, wanted, allowed)
    lacking = {
        name: wanted.loc[~wanted["img_name"].isin(table.index), "img_name"]
        for name, table in found.items()
    }
    missing = {image for images in lacking.values() for image in images}
    if missing:
        names = ", ".join(name for name, images in lacking.items() if len(images))
        problem = (
            f"{len(missing)} of {len(split)} images have no score by {names}, for example "
            f"{min(missing)}"
        )
        if len(missing) > allowed:
            raise UserError(
                f"at most {limit_fraction:.0%} of a split's images may lack a candidate's score, "
                f"but {problem}; move the folders of these candidates away, or search again"
            )
        tell(f"{problem}: left out for all, since they could not be read when it was scored")
    aligned = wanted[~wanted["img_name"].isin(missing)].reset_index(drop=True)
    for name, table in found.items():
        aligned[name] = table["y_pred"].reindex(aligned["img_name"]).to_numpy()
    return aligned


def _check(name: str, found: pd.DataFrame, wanted: pd.DataFrame, allowed: float) -> None:
    targets = wanted.set_index("img_name")["target"]
    twice = found.index[found.index.duplicated()]
    extra, missing = found.index.difference(targets.index), targets.index.difference(found.index)
    if not len(twice) and not len(extra) and len(missing) <= allowed:
        differing = found.index[found["target"] != targets.reindex(found.index)]
        if not len(differing):
            return
        problem = f"{len(differing)} other targets, for example of {differing[0]}"
    elif len(twice):
        problem = f"{len(twice)} images twice, for example {twice[0]}"
    else:
        example = extra[0] if len(extra) else missing[0]
        problem = f"{len(extra)} images more and {len(missing)} fewer, for example {example}"
    raise UserError(
        f"candidates must be scored on the same split of {len(targets)} images, but candidate "
        f"{name} has {problem}; move its folder away, or search again"
    )


FROM_SCRATCH = "none (from scratch)"
ALLOWED = (IMAGENET_1K, f"{IMAGENET_1K} (declared)", FROM_SCRATCH)
"""What metrics.json may say of a candidate's pretraining."""


@dataclass(frozen=True)
class Origin:
    """The verdict on one network's pretraining."""

    allowed: bool
    pretraining: str  # for reports, as in leaderboard.csv
    reason: str  # one line: what decided


def judge_recipe(recipe: Recipe, catalogue: Catalogue) -> Origin:
    """The verdict on what a recipe starts from.

    Args:
        recipe: names the backbone and where its weights come from.
        catalogue: the run's; what it declares of a backbone counts as in the search.
    """
    if recipe.weights == "none":
        return Origin(True, FROM_SCRATCH, "trained from scratch")
    declared = {backbone.name: backbone.pretraining for backbone in catalogue.backbones}
    found = provenance(recipe.backbone, declared.get(recipe.backbone))
    return Origin(found.allowed, found.pretraining, found.reason)


def judge_origin(candidate: Candidate, catalogue: Catalogue) -> Origin:
    """The verdict on a candidate: both today's judgement and the recorded one must allow it."""
    origin = judge_recipe(candidate.recipe, catalogue)
    recorded = str(candidate.metrics.get("pretraining", "unknown"))
    if origin.allowed and recorded not in ALLOWED:
        return Origin(False, recorded, f"recorded as pretrained on {recorded}")
    return origin
