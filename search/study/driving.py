"""Driving a study: ask, train, tell; and which candidates keep their weights."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import optuna
import pandas as pd
import torch
from optuna.trial import TrialState
from pydantic import TypeAdapter, ValidationError

from search.errors import UserError
from search.machine.device import is_out_of_memory
from search.machine.files import CANDIDATES
from search.machine.interruption import Interrupted, Interruption
from search.machine.seconds import SECONDS
from search.pixels.reading import Reader
from search.study.plan import SearchPlan
from search.study.space import BASELINE, PRESET
from search.study.trials import (
    PAUSED,
    RECIPE,
    ROW,
    claim,
    complete_trials,
    counted_trials,
    paused_trials,
    put_back,
    recipe_row,
    record_outcome,
    reject,
    searched_trials,
    tell_complete,
    trial_name,
    verdict_row,
)
from search.training.candidate import CHECKPOINT, HISTORY, Candidate, EpochRecord
from search.training.candidate import RECIPE as RECIPE_FILE
from search.training.loop import NonFiniteLossError, StepRecord
from search.training.metrics import Metrics
from search.training.recipe import Recipe
from search.training.train import HOW_NOT_WHAT, Watch, train

FAILURES_TO_STOP = 3
"""A study whose first so many trials all fail is stopped: the next would fail as well."""

LOST_DEVICE = "lost_device"
"""User attribute of a trial during which the GPU was lost."""

FEWEST_COMPLETE = 3
"""Nothing is pruned before so many candidates are complete: a pruned trial leaves no weights, and
there must be something to merge. On dfdc-faces ASHA alone left one candidate, beside the baseline,
of the first nine trials."""


class Progress(Protocol):
    """What shows a study on the terminal."""

    def trial_started(self, name: str, recipe: Recipe, *, goes_on: bool = False) -> None:
        """Told of every trial that is trained, under its number in four digits."""

    def step(self, record: StepRecord) -> None:
        """Told of every step."""

    def epoch(self, record: EpochRecord) -> None:
        """Told of every finished epoch."""

    def tell(self, line: str) -> None:
        """Told what a user should know."""

    def trial_finished(self, state: str, auc: float | None, reason: str = "") -> None:
        """Told of every trial that counts."""

    def trial_paused(self, reason: str) -> None:
        """Told of a trial that will go on."""


@dataclass(frozen=True, eq=False)
class Search:
    """One process's search: what is searched, where it is kept, and who follows it."""

    plan: SearchPlan
    run: Path
    study: optuna.Study
    reader: Reader
    progress: Progress
    interruption: Interruption
    after_trial: Callable[[int], None] = lambda _: None
    """Called with the number of a trial that was told, or waits again."""

    def folder(self, trial: optuna.Trial | optuna.trial.FrozenTrial) -> Path:
        """Where a trial's candidate lies."""
        return self.run / CANDIDATES / trial_name(trial)

    def drive(self) -> None:
        """Runs trials until --trials or --timeout is reached or Ctrl-C is pressed.

        Raises:
            UserError: if the data are at fault, or nothing but failures comes.
        """
        trials = self.plan.settings.trials
        assert trials is not None
        failures: list[str] = []
        while not self.interruption.must_stop and len(counted_trials(self.study)) < trials:
            trial = next_trial(self.study)
            reason = self.run_trial(trial)
            if reason is not None:
                failures.append(reason)
            if len(failures) >= FAILURES_TO_STOP and not complete_trials(self.study):
                raise UserError(
                    f"the first {len(failures)} trials all failed, the last with: {failures[-1]}"
                )

    def run_trial(self, trial: optuna.Trial) -> str | None:
        """Trains a trial, or goes on with it, and tells the study; returns why it failed.

        Raises:
            UserError: if the data or the machine are at fault, which no further trial could mend.
        """
        try:
            return self._run_trial(trial)
        except (UserError, KeyboardInterrupt) as error:
            # It goes on once the data are mended; a trial that failed for good is told already.
            if trial.storage.get_trial(trial._trial_id).state is TrialState.RUNNING:
                reason = " ".join(str(error).split()) or "interrupted by the user"
                self._pause(trial, reason, trial.user_attrs.get(ROW, {}))
            raise
        finally:
            # Networks hold references to themselves; on a GPU their memory is needed now.
            gc.collect()
            drop_surplus_weights(self.study, self.run, self.plan.settings.keep)
            self.after_trial(trial.number)

    def _run_trial(self, trial: optuna.Trial) -> str | None:
        recipe = self._recipe(trial)
        verdict = self.plan.judge_recipe(recipe)
        # Figures that the trial had reached stay until there are others.
        row = trial.user_attrs.get(ROW, {}) | recipe_row(recipe) | verdict_row(verdict)
        trial.set_user_attr(RECIPE, asdict(recipe))
        trial.set_user_attr(ROW, row)
        if not verdict.allowed:
            reject(trial, verdict, self.plan.catalogue.budget)
            self.study.tell(trial, state=TrialState.PRUNED)
            return None
        folder = self.folder(trial)
        set_aside_orphan(folder, recipe, self.progress.tell)
        row["path"] = f"{CANDIDATES}/{folder.name}"
        facts = recipe_row(recipe) | verdict_row(verdict) | {"path": row["path"]}
        watch = _TrialWatch(self, trial)
        goes_on = (folder / CHECKPOINT).exists()
        self.progress.trial_started(folder.name, recipe, goes_on=goes_on)
        try:
            candidate = train(
                recipe,
                self.plan.splits,
                folder,
                interruption=self.interruption,
                runtime=self.plan.runtime,
                reader=self.reader,
                watch=watch,
                facts=facts,
                checkpoint_minutes=self.plan.settings.checkpoint_minutes,
            )
        except optuna.TrialPruned:
            self._close(trial, "pruned", TrialState.PRUNED, row=watch.row(row))
            return None
        except Interrupted as reason:
            self._pause(trial, str(reason), watch.row(row))
            return None
        except (NonFiniteLossError, FloatingPointError, torch.OutOfMemoryError) as error:
            return self._fail(trial, " ".join(str(error).split()), row)
        except torch.AcceleratorError as error:
            found = " ".join(str(error).split())[:200]
            if is_out_of_memory(error):
                return self._fail(trial, found, row)
            if trial.user_attrs.get(LOST_DEVICE):
                # Once is an accident, twice is what this recipe does.
                self._fail(trial, found, row)
            else:
                trial.set_user_attr(LOST_DEVICE, True)
            # The GPU is lost to this process: every later trial would fail within seconds.
            raise UserError(
                f"the GPU stopped working ({found}); what was begun goes on from its last "
                "checkpoint with the same command, in a new process"
            ) from error
        except OSError as error:
            # No recipe is at fault: a full disk, say, would fail the next trial as well.
            raise UserError(
                f"the run folder must take what is written, found: {error}; make room, and the "
                "same command goes on from the last checkpoint"
            ) from error
        except UserError:
            raise
        except Exception as error:
            if self.interruption.requested:
                # Workers that the signal reached as well may fail first.
                self._pause(trial, "interrupted by the user", watch.row(row))
                return None
            # One broken recipe must not cost the night; `drive` stops if nothing else works.
            found = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return self._fail(trial, found, row)
        auc = tell_complete(self.study, trial, candidate)
        self.progress.trial_finished("complete", auc)
        return None

    def _recipe(self, trial: optuna.Trial) -> Recipe:
        """What a trial proposes; one that goes on keeps the recipe that it began with."""
        recipe = self.plan.space.recipe(trial)
        begun = trial.user_attrs.get(RECIPE)
        if begun is None or not (self.folder(trial) / CHECKPOINT).exists():
            return recipe
        try:
            kept = TypeAdapter(Recipe).validate_python(begun)
        except ValidationError:
            return recipe
        return replace(kept, **{name: getattr(recipe, name) for name in HOW_NOT_WHAT})

    def _close(
        self,
        trial: optuna.Trial,
        state: str,
        told: TrialState,
        reason: str = "",
        *,
        row: dict[str, Any],
    ) -> None:
        """Ends a trial that did not come to its end; what it would go on from is deleted."""
        record_outcome(trial, state, reason, {**row, "path": ""})
        self.study.tell(trial, state=told)
        Candidate(self.folder(trial)).drop_checkpoint()
        self.progress.trial_finished(state, row.get("auc"), reason)

    def _fail(self, trial: optuna.Trial, reason: str, row: dict[str, Any]) -> str:
        self._close(trial, "failed", TrialState.FAIL, reason, row=row)
        return reason

    def _pause(self, trial: optuna.Trial, reason: str, row: dict[str, Any]) -> None:
        record_outcome(trial, PAUSED, reason, row)
        put_back(self.study, trial)
        self.progress.trial_paused(reason)


class _TrialWatch(Watch):
    """Tells the progress display and Optuna of a training, and asks whether it lags behind."""

    def __init__(self, search: Search, trial: optuna.Trial) -> None:
        self.search, self.trial = search, trial
        self.best: Metrics | None = None
        self.told = set(trial.storage.get_trial(trial._trial_id).intermediate_values)
        # The process may have died between an epoch and its report.
        for epoch, auc in self._reached():
            self._report(epoch, auc)

    def step(self, record: StepRecord) -> None:
        self.search.progress.step(record)

    def tell(self, line: str) -> None:
        self.search.progress.tell(line)

    def epoch(self, record: EpochRecord, best: Metrics) -> None:
        self.best = best
        self.search.progress.epoch(record)
        self._report(record.epoch, record.select_auc)
        is_baseline = self.trial.user_attrs.get(PRESET) == BASELINE
        if is_baseline or record.epoch == self.search.plan.space.epochs:
            return
        # Always asked: ASHA compares later trials with what this one had at its rungs.
        lags_behind = self.trial.should_prune()
        if lags_behind and len(searched_trials(self.search.study)) >= FEWEST_COMPLETE:
            raise optuna.TrialPruned

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """The trial's row with the figures it has reached."""
        figures = {} if self.best is None else self.best.to_dict()
        path = self.search.folder(self.trial) / HISTORY
        history = Candidate(path.parent).history if path.exists() else pd.DataFrame()
        sums = history.reindex(columns=SECONDS).sum()
        return {**row, **figures, **{name: round(float(sums[name]), 2) for name in SECONDS}}

    def _reached(self) -> Iterator[tuple[int, float]]:
        path = self.search.folder(self.trial) / HISTORY
        if path.exists():
            history = Candidate(path.parent).history
            for epoch, auc in zip(history["epoch"], history["select_auc"], strict=True):
                yield int(epoch), float(auc)

    def _report(self, epoch: int, auc: float) -> None:
        """Reports an epoch once: it may come again after a kill."""
        if epoch not in self.told:
            self.told.add(epoch)
            self.trial.report(auc, step=epoch)


def next_trial(study: optuna.Study) -> optuna.Trial:
    """The trial to train now: a paused one goes on before anything new is begun."""
    paused = paused_trials(study)
    return claim(study, paused[0]) if paused else study.ask()


def drop_surplus_weights(study: optuna.Study, run: Path, keep: int) -> None:
    """Deletes the weights of all but the `keep` best candidates and the baseline."""
    for trial in searched_trials(study)[keep:]:
        Candidate(run / CANDIDATES / trial_name(trial)).drop_weights()


def kept_candidates(study: optuna.Study, run: Path) -> list[Candidate]:
    """Complete candidates that have their weights, best first."""
    found = [Candidate(run / CANDIDATES / trial_name(trial)) for trial in complete_trials(study)]
    return [candidate for candidate in found if candidate.has_weights and candidate.is_complete]


ORPHANS = "orphans"


def set_aside_orphan(folder: Path, recipe: Recipe, tell: Callable[[str], None]) -> None:
    """Moves a trial's folder to the run's orphans/ if it is another training's: the study lost a
    trial (restored from a copy, say) and gave its number to this one. Its figures stay; its weights
    and its checkpoint, which nothing could use, are deleted."""
    path = folder / RECIPE_FILE
    if not path.exists():
        return
    try:
        found = Candidate(folder).recipe
    except UserError:
        found = None
    if found is not None and _what(found) == _what(recipe):
        return
    orphans = folder.parent.parent / ORPHANS
    orphans.mkdir(exist_ok=True)
    number = 1
    while (orphan := orphans / f"{folder.name}-{number}").exists():
        number += 1
    folder.rename(orphan)
    Candidate(orphan).drop_weights()
    Candidate(orphan).drop_checkpoint()
    tell(
        f"{folder.name} held another training: its figures are in {ORPHANS}/{orphan.name}, its "
        "weights are deleted"
    )


def _what(recipe: Recipe) -> Recipe:
    return replace(recipe, **{name: getattr(Recipe, name) for name in HOW_NOT_WHAT})
