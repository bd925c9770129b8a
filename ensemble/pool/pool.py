"""The pool: the finished candidates of a run, checked, and their scores aligned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from ensemble.pool.alignment import align_altered, align_scores
from ensemble.pool.eligibility import (
    COMPLETE,
    FEWEST,
    check_enough,
    finished_candidates,
    judge_origin,
    trial_states,
)
from search.catalogue.backbones import Catalogue, load_backbones
from search.data.inputs import canvas_of, check_data, read_splits, tables
from search.data.splits import Splits
from search.errors import UserError
from search.machine.device import Runtime, default_workers, resolve_device
from search.machine.files import BACKBONES, CANDIDATES, LEADERBOARD, suggestion
from search.machine.progress import tell_line
from search.pixels.loading.epochs import Loader, eval_batches
from search.pixels.loading.reading import Reader
from search.pixels.opening import add_altered, open_quarantine, open_reader
from search.pixels.quarantine import Quarantine
from search.settings.data import Objective
from search.settings.saved import load_settings
from search.settings.search import SearchSettings
from search.training.candidate import Candidate, complete_refits, score_on_report
from search.training.objective import Yardstick, needs_altered
from search.training.scoring import SCORING_BATCH, Evaluation, evaluate, with_altered

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pool:
    """A finished search, opened to merge its candidates."""

    run: Path
    settings: SearchSettings
    splits: Splits
    catalogue: Catalogue
    runtime: Runtime
    reader: Reader
    candidates: tuple[Candidate, ...]
    """Complete, with weights, allowed by the rules or by the user; best on select first."""
    select: pd.DataFrame
    """img_name, target, group, and a column of probabilities for each candidate by its name."""
    report: pd.DataFrame
    """Likewise; nothing chooses by it."""
    altered: pd.DataFrame | None
    """As select, of altered images of it, with their `alteration`; None if not all candidates were
    scored on them."""
    tainted: Mapping[str, str]
    """Why the rules forbid a candidate, by its name."""
    allow_tainted: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates', best on select first."""
        return tuple(candidate.name for candidate in self.candidates)

    @property
    def best(self) -> Candidate:
        """The candidate that is best on select."""
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
        if name in {refit.name for refit in complete_refits(self.run)}:
            raise UserError(
                f"what is merged must not have been trained on what it is chosen by, found the "
                f"refit {name}; choose among {', '.join(self.names)}"
            )
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

    @property
    def objective(self) -> Objective:
        """What the search went by, and merging goes by."""
        return self.settings.objective

    @cached_property
    def judged(self) -> pd.DataFrame:
        """What candidates are chosen by: select, and after it its altered images, if the objective
        needs them."""
        altered = self.altered if needs_altered(self.objective) else None
        return with_altered(self.select, altered)

    @cached_property
    def yardstick(self) -> Yardstick:
        """What scores of `judged` are worth."""
        return Yardstick.for_table(self.judged, self.objective)

    def judged_scores(self, names: Sequence[str]) -> Floats:
        """Probabilities on `judged`, (M, N)."""
        return self.judged[list(names)].to_numpy(np.float64).T

    def loader(self, split: str, *, whole: bool = False) -> Loader:
        """The images of "fit", "select" or "report", in the table's order; after those of select
        its altered ones, if the objective needs them.

        Args:
            split: its name.
            whole: with them in any case.
        """
        table = tables(self.splits)[split]
        if split == "select" and (whole or needs_altered(self.objective)):
            table = with_altered(table, self.splits.altered)
        return eval_batches(self.reader, table, batch_size=SCORING_BATCH)

    def evaluate(
        self,
        model: nn.Module,
        split: str,
        on_batch: Callable[[], None] = lambda: None,
        *,
        whole: bool = False,
    ) -> Evaluation:
        """Scores a model on the images of `loader`."""
        loader = self.loader(split, whole=whole)
        return evaluate(model, loader, self.runtime, on_batch, table=loader.table)


def open_pool(
    run: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    allow_tainted: bool = False,
    cache: str | None = None,
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
        cache: where canvases are kept, see `open_cache`; None leaves it to the settings.
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
    quarantine = open_quarantine(run, console)
    reader = open_reader(
        splits,
        canvas_of(run),
        cache=settings.cache if cache is None else cache,
        runtime=runtime,
        quarantine=quarantine,
        console=console,
    )
    finished = finished_candidates(run, console, settings.objective)
    verdicts = {c.name: judge_origin(c, catalogue) for c in finished}
    tainted = {name: origin.reason for name, origin in verdicts.items() if not origin.allowed}
    candidates = [c for c in finished if c.has_weights and (allow_tainted or c.name not in tainted)]
    check_enough(run, settings, finished, candidates, () if allow_tainted else tuple(tainted))
    for name, reason in tainted.items():
        fate = "allowed by --allow-tainted" if allow_tainted else "left out"
        tell_line(console, f"candidate {name} is tainted, {fate}: {reason}")
    _score_on_report(candidates, splits.report, runtime, reader, console, on_batch)
    altered_scores = {c.name: c.altered_scores for c in candidates}
    if all(scores is not None for scores in altered_scores.values()):
        splits = add_altered(
            splits,
            reader.side,
            run,
            seed=settings.seed,
            console=console,
            check=on_batch,
        )
    altered = align_altered(altered_scores, splits.altered)
    splits = replace(splits, altered=None if altered is None else splits.altered)
    return Pool(
        run=run,
        settings=settings,
        splits=splits,
        catalogue=catalogue,
        runtime=runtime,
        reader=reader,
        candidates=tuple(candidates),
        select=_align({c.name: c.scores for c in candidates}, splits.select, quarantine, console),
        report=_align(
            {c.name: c.report_scores for c in candidates if c.report_scores is not None},
            splits.report,
            quarantine,
            console,
        ),
        altered=altered,
        tainted=tainted,
        allow_tainted=allow_tainted,
    )


def _score_on_report(
    candidates: Sequence[Candidate],
    table: pd.DataFrame,
    runtime: Runtime,
    reader: Reader,
    console: Console,
    on_batch: Callable[[], None],
) -> None:
    for candidate in candidates:
        if candidate.report_scores is not None:
            continue
        tell_line(console, f"scoring candidate {candidate.name} on report")
        score_on_report(candidate, candidate.load(), table, runtime, reader, on_batch)


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
        tell=lambda line: tell_line(console, line),
    )


def _workers(given: int | None, of_run: int | None, device: torch.device) -> int:
    if given is not None or of_run is not None:
        return given if given is not None else of_run or 0
    return default_workers(device)
