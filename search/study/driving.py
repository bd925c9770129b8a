"""Driving a study: ask, train, tell; and which candidates keep their weights."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import optuna
import pandas as pd
import torch
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter, ValidationError

from search.errors import REFUSALS, UserError
from search.machine.device import is_out_of_memory
from search.machine.files import CANDIDATES
from search.machine.interruption import Interrupted, Interruption
from search.machine.seconds import SECONDS
from search.pixels.loading.reading import Reader
from search.study.decisions.proposals import propose
from search.study.decisions.scheduler import (
    Finish,
    GoOn,
    Start,
    Stop,
    best_auc,
    compared,
    next_work,
    worth_keeping,
)
from search.study.orphans import set_aside_orphan
from search.study.plan import SearchPlan
from search.study.trials import (
    LOOKS,
    LOST,
    PAUSED,
    RECIPE,
    RESTING,
    ROW,
    UNTIL,
    claim,
    complete_trials,
    known_trials,
    looks_of,
    new_trial,
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
from search.training.candidate import CHECKPOINT, HISTORY, Candidate, Look
from search.training.loop import NonFiniteLossError, StepRecord
from search.training.metrics import Metrics
from search.training.objective import value_of
from search.training.recipe import Recipe
from search.training.train import HOW_NOT_WHAT, ITS_END, Watch, steps_done, train

FAILURES_TO_STOP = 3
"""A study whose first so many trials all fail is stopped: the next would fail as well."""

LOST_DEVICE = "lost_device"
"""User attribute of a trial during which the GPU was lost."""

NO_ROOM = "its checkpoint was deleted: --disk"
"""Why a paused trial is pruned."""


class Progress(Protocol):
    """What shows a study on the terminal."""

    def trial_started(
        self, name: str, recipe: Recipe, *, until: int | None = None, goes_on: bool = False
    ) -> None:
        """Told of every piece of a trial's training, under its number in four digits."""

    def step(self, record: StepRecord) -> None:
        """Told of every step."""

    def look(self, record: Look) -> None:
        """Told of every look."""

    def tell(self, line: str) -> None:
        """Told what a user should know."""

    def trial_finished(self, state: str, value: float | None, reason: str = "") -> None:
        """Told of every trial that counts, with its objective."""

    def trial_paused(self, reason: str = "") -> None:
        """Told of a trial that will go on, or may: then without a reason."""


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

    def folder(self, trial: optuna.Trial | FrozenTrial) -> Path:
        """Where a trial's candidate lies."""
        return self.run / CANDIDATES / trial_name(trial)

    def drive(self) -> str:
        """Does what the scheduler says until it says stop, --timeout is reached or Ctrl-C is
        pressed; returns why it stopped before all was done, if it did.

        Raises:
            UserError: if the data are at fault, or nothing but failures comes.
        """
        failures: list[str] = []
        # What the last piece of work took beside its training: a network that is built, a state
        # that is read, the leaderboard. The next one is not planned with it.
        beside = 0.0
        while not self.interruption.must_stop:
            known, left = known_trials(self.study), self.interruption.seconds_left
            work = next_work(known, self.plan.rules, None if left is None else left - beside)
            if isinstance(work, Stop):
                return work.reason
            began = time.monotonic()
            reason = self.run_trial(*self._taken(work))
            spent = sum(one.seconds + one.lost for one in known_trials(self.study))
            spent -= sum(one.seconds + one.lost for one in known)
            beside = max(0.0, time.monotonic() - began - spent)
            if reason is not None:
                failures.append(reason)
            if len(failures) >= FAILURES_TO_STOP and not any(
                one.points for one in known_trials(self.study)
            ):
                raise UserError(
                    f"the first {len(failures)} trials all failed, the last with: {failures[-1]}"
                )
        return ""

    def keep_best(self) -> None:
        """Completes the best candidate as it is, where all that is complete is worse, or nothing
        is: its average was scored at looks, and there is no time left for its rate to fall. Not
        with a schedule that must know its end."""
        for one in worth_keeping(known_trials(self.study), self.plan.rules):
            trial = self._trial(one.number)
            steps = steps_done(self.folder(trial), self.plan.steps)
            if steps is None:
                continue  # its checkpoint is gone or damaged
            name = trial_name(trial)
            self.progress.tell(f"no time is left: trial {name} is taken as it was at its best look")
            images = steps * self.plan.space.batch_size
            if self.run_trial(claim(self.study, trial), None, images, keeps=True) is None:
                return

    def _taken(self, work: Start | GoOn | Finish) -> tuple[optuna.Trial, int | None, int | None]:
        """The trial of a piece of work, running now; the images at which the piece ends (None: at
        the trial's end), and the images of the whole training where that is to be moved."""
        number = work.number
        if number is None:
            number = self._drawn()
        until = None if isinstance(work, Finish) else work.until
        return (
            claim(self.study, self._trial(number)),
            until,
            work.images if isinstance(work, Finish) else None,
        )

    def _trial(self, number: int) -> FrozenTrial:
        (found,) = (t for t in self.study.get_trials(deepcopy=False) if t.number == number)
        return found

    def _drawn(self) -> int:
        """Adds a configuration that is drawn; returns its number."""
        known = known_trials(self.study)
        aucs = compared(known, self.plan.rules, self.interruption.seconds_left)
        trials = self.study.get_trials(deepcopy=False)
        results = [(trials[number].params, auc) for number, auc in aucs.items()]
        parameters = propose(self.plan.space, results, len(trials))
        new_trial(self.study, parameters, self.plan.space)
        return len(trials)

    def run_trial(
        self,
        trial: optuna.Trial,
        until: int | None = None,
        images: int | None = None,
        *,
        keeps: bool = False,
    ) -> str | None:
        """Trains a trial, or goes on with it, and tells the study; returns why it failed.

        Args:
            trial: a running one.
            until: images at which to pause it; None trains it to its end.
            images: of the whole training, if they are settled only now.
            keeps: these are what it has seen: nothing more is trained.

        Raises:
            UserError: if the data or the machine are at fault, which no further trial could mend.
        """
        try:
            return self._run_trial(trial, until, images, keeps=keeps)
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
            self._drop_surplus_checkpoints()
            self.after_trial(trial.number)

    def _run_trial(
        self, trial: optuna.Trial, until: int | None, images: int | None, *, keeps: bool
    ) -> str | None:
        recipe = self._recipe(trial)
        if images is not None and self.plan.rules.prolongs:
            recipe = self.plan.ended(recipe, images, images if keeps else self._images(trial))
        verdict = self.plan.judge_recipe(recipe)
        # Figures that the trial had reached stay until there are others.
        row = trial.user_attrs.get(ROW, {}) | recipe_row(recipe) | verdict_row(verdict)
        if not keeps:
            # What is only kept as it is may have to wait all the same, for a later command.
            trial.set_user_attr(RECIPE, asdict(recipe))
            trial.set_user_attr(UNTIL, until)
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
        began, looked = time.monotonic(), _seconds_of_looks(trial)

        def fail(reason: str) -> str:
            lost = time.monotonic() - began - (_seconds_of_looks(trial) - looked)
            trial.set_user_attr(LOST, round(max(0.0, lost), 3))
            return self._fail(trial, reason, row)

        if not keeps:
            self.progress.trial_started(folder.name, recipe, until=until, goes_on=goes_on)
        try:
            candidate = train(
                recipe,
                self.plan.splits,
                folder,
                until,
                interruption=self.interruption,
                runtime=self.plan.runtime,
                reader=self.reader,
                watch=watch,
                facts=facts,
                checkpoint_minutes=self.plan.settings.checkpoint_minutes,
            )
        except Interrupted as reason:
            self._pause(trial, str(reason), watch.row(row))
            return None
        except (NonFiniteLossError, FloatingPointError, torch.OutOfMemoryError) as error:
            return fail(" ".join(str(error).split()))
        except torch.AcceleratorError as error:
            found = " ".join(str(error).split())[:200]
            if is_out_of_memory(error):
                return fail(found)
            if trial.user_attrs.get(LOST_DEVICE):
                # Once is an accident, twice is what this recipe does.
                fail(found)
            else:
                trial.set_user_attr(LOST_DEVICE, True)
            # The GPU is lost to this process: every later trial would fail within seconds.
            raise UserError(
                f"the GPU stopped working ({found}); what was begun goes on from its last "
                "checkpoint with the same command, in a new process"
            ) from error
        except OSError as error:
            # No recipe is at fault: a full disk, say, would fail the next trial as well.
            is_refused = error.errno in REFUSALS
            what = "take what is written" if is_refused else "let a trial be trained"
            remedy = "mend that, and the" if is_refused else "the"
            raise UserError(
                f"the run folder must {what}, found: {error}; {remedy} same command goes on from "
                "the last checkpoint"
            ) from error
        except (UserError, StorageInternalError):
            raise  # no recipe is at fault: it goes on from its checkpoint
        except Exception as error:
            if self.interruption.requested:
                # Workers that the signal reached as well may fail first.
                self._pause(trial, "interrupted by the user", watch.row(row))
                return None
            # One broken recipe must not cost the night; `drive` stops if nothing else works.
            found = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return fail(found)
        if not candidate.is_complete:
            record_outcome(trial, PAUSED, RESTING, watch.row(row))
            put_back(self.study, trial)
            self.progress.trial_paused()
            return None
        trial.set_user_attr(RECIPE, asdict(recipe))
        value = tell_complete(self.study, trial, candidate)
        self.progress.trial_finished("complete", value)
        return None

    def _recipe(self, trial: optuna.Trial) -> Recipe:
        """What a trial proposes; one that goes on keeps the recipe that it began with, and one that
        begins anew, because its checkpoint is gone, the end that it was given."""
        recipe = self.plan.recipe_of(trial)
        begun = trial.user_attrs.get(RECIPE)
        if begun is None:
            return recipe
        try:
            kept = TypeAdapter(Recipe).validate_python(begun)
        except ValidationError:
            return recipe
        if (self.folder(trial) / CHECKPOINT).exists():
            return replace(kept, **{name: getattr(recipe, name) for name in HOW_NOT_WHAT})
        if recipe.epochs is not None:
            return recipe
        return replace(recipe, **{name: getattr(kept, name) for name in ITS_END})

    def _images(self, trial: optuna.Trial) -> int:
        """That a trial has seen by its last look."""
        looks = looks_of(trial)
        return int(looks[-1][0]) if looks else 0

    def _drop_surplus_checkpoints(self) -> None:
        """Deletes the checkpoints of the worst paused candidates where all take more than --disk:
        they are pruned."""
        known = {one.number: one for one in known_trials(self.study)}
        trials = {trial.number: trial for trial in paused_trials(self.study)}
        paths = {number: self.folder(trial) / CHECKPOINT for number, trial in trials.items()}
        sizes = {number: path.stat().st_size for number, path in paths.items() if path.exists()}
        if sum(sizes.values()) <= self.plan.disk_bytes(self.run):
            return
        # Who was stopped amid its work goes on; of the others, the best.
        left = self.interruption.seconds_left
        # As they are compared: who had the shortest training is not the worst by that.
        aucs = compared(list(known.values()), self.plan.rules, left)
        worst_first = sorted(
            sizes,
            key=lambda number: (
                known[number].was_interrupted,
                aucs.get(number, best_auc(known[number])),
            ),
        )
        for trial in [trials[number] for number in worst_first[:-1]]:
            if sum(sizes.values()) <= self.plan.disk_bytes(self.run):
                return
            del sizes[trial.number]
            row = trial.user_attrs.get(ROW, {})
            self._close(claim(self.study, trial), "pruned", TrialState.PRUNED, NO_ROOM, row=row)

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
        self.progress.trial_finished(state, row.get("objective"), reason)

    def _fail(self, trial: optuna.Trial, reason: str, row: dict[str, Any]) -> str:
        self._close(trial, "failed", TrialState.FAIL, reason, row=row)
        return reason

    def _pause(self, trial: optuna.Trial, reason: str, row: dict[str, Any]) -> None:
        record_outcome(trial, PAUSED, reason, row)
        put_back(self.study, trial)
        self.progress.trial_paused(reason)


class _TrialWatch(Watch):
    """Tells the progress display and the study of a training."""

    def __init__(self, search: Search, trial: optuna.Trial) -> None:
        self.search, self.trial = search, trial
        self.best: Metrics | None = None
        self.told = set(trial.storage.get_trial(trial._trial_id).intermediate_values)
        # The process may have died between a look and its report.
        self._report()

    def step(self, record: StepRecord) -> None:
        self.search.progress.step(record)

    def tell(self, line: str) -> None:
        self.search.progress.tell(line)

    def resumed(self, best: Metrics) -> None:
        self.best = best

    def look(self, record: Look, best: Metrics | None) -> None:
        self.best = best
        self.search.progress.look(record)
        # Before the look: a process that dies now may have done all that the trial waited for.
        self.trial.set_user_attr(ROW, self.row(self.trial.user_attrs.get(ROW, {})))
        self._report()

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """The trial's row with the figures it has reached."""
        figures: dict[str, Any] = {}
        if self.best is not None:
            figures = self.best.to_dict()
            figures["objective"] = value_of(figures, self.search.plan.space.objective)
        history = self._history()
        sums = history.reindex(columns=SECONDS).sum()
        if not history.empty:
            figures["epochs"] = float(history["epoch"].iloc[-1])
        return {**row, **figures, **{name: round(float(sums[name]), 2) for name in SECONDS}}

    def _history(self) -> pd.DataFrame:
        path = self.search.folder(self.trial) / HISTORY
        return Candidate(path.parent).history if path.exists() else pd.DataFrame()

    def _report(self) -> None:
        """Reports every look once: it may come again after a kill."""
        history = self._history()
        if history.empty:
            return
        seconds = history.reindex(columns=SECONDS).sum(axis=1).cumsum()
        # A history that began before there were objectives is of AUCs.
        values = history.reindex(columns=["select_objective"])["select_objective"]
        values = values.fillna(history["select_auc"])
        looks = list(zip(history["images"], seconds, values, strict=True))
        others = sum(
            one.seconds
            for one in known_trials(self.search.study)
            if one.number != self.trial.number
        )
        told = looks_of(self.trial)
        seen = told[-1][0] if told else 0
        told += [
            [int(images), round(float(taken), 3), float(value), round(float(taken) + others, 3)]
            for images, taken, value in looks
            # Not by their number: the last look of a training that was kept in vain is not there.
            if images > seen
        ]
        self.trial.set_user_attr(LOOKS, told)
        for images, _, value in looks:
            if int(images) not in self.told:
                self.told.add(int(images))
                self.trial.report(float(value), step=int(images))


def _seconds_of_looks(trial: optuna.Trial) -> float:
    looks = looks_of(trial)
    return float(looks[-1][1]) if looks else 0.0


def drop_surplus_weights(study: optuna.Study, run: Path, keep: int) -> None:
    """Deletes the weights of all but the `keep` best candidates and the baseline."""
    for trial in searched_trials(study)[keep:]:
        Candidate(run / CANDIDATES / trial_name(trial)).drop_weights()


def kept_candidates(study: optuna.Study, run: Path) -> list[Candidate]:
    """Complete candidates that have their weights, best first."""
    found = [Candidate(run / CANDIDATES / trial_name(trial)) for trial in complete_trials(study)]
    return [candidate for candidate in found if candidate.has_weights and candidate.is_complete]
