"""The ways from nothing to an end that are struck; the search's, and what must hold on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from search.machine.files import LEADERBOARD
from search.machine.seconds import SECONDS
from search.study.decisions.layout import Rules
from search.study.decisions.space import PRESET
from search.study.driving import kept_candidates
from search.study.storage import open_storage
from search.study.trials import (
    PAUSED,
    REASON,
    RESTING,
    STATE,
    UNTIL,
    known_trials,
    looks_of,
    paused_trials,
    trial_name,
)
from search.training.candidate import CHECKPOINT, METRICS, Candidate, load_state
from tests.e2e.conftest import QUICK, DataSet
from tests.faults.evidence import FinishedCandidates, Problem, half_written, left_over
from tests.faults.phases import OPENING, REPORT_SCORING, RESULTS, SEARCH, SPLITS, Phase

CHECKPOINT_MINUTES = 0.0025
"""0.15 s: between three of the slowed steps, so that some are lost to a kill."""

MEASURED = [*SECONDS, "images_per_second", "peak_memory_mb"]
"""Columns of the leaderboard that differ between two runs alike."""


@dataclass(frozen=True)
class Command:
    """A command line.

    Attributes:
        program: "search" or "ensemble".
        arguments: its words, the command's name first.
    """

    program: str
    arguments: tuple[str, ...]


class Course(Protocol):
    """A run folder's way, in one command or several, gone on with after each blow.

    Attributes:
        phases: those that can be struck on it.
        run: its folder.
    """

    phases: tuple[Phase, ...]
    run: Path

    @property
    def finished(self) -> frozenset[str]:
        """Names of the trainings that were seen complete."""

    def command(self) -> Command | None:
        """The next process's; None at the end."""

    def reachable(self) -> tuple[Phase, ...]:
        """The phases that the next process will come to."""

    def succeeded(self) -> None:
        """Told that the last process did all it was asked for."""

    def examine(self, *, gracefully: bool) -> list[Problem]:
        """What is wrong after a process has ended.

        Args:
            gracefully: whether it was asked to end, and could.
        """

    def examine_end(self) -> list[Problem]:
        """What is wrong once the course came to its end."""


def cache_of(run: Path) -> Path:
    """Where a run's canvases lie."""
    return run.with_name(f"{run.name}-cache")


class SearchCourse:
    """A search in a folder of its own: a Course of one command."""

    phases: tuple[Phase, ...] = SEARCH

    def __init__(
        self,
        folder: Path,
        data: DataSet,
        *,
        trials: int,
        epochs: int,
        in_database: bool,
        unbroken: Path | None,
    ) -> None:
        """
        Args:
            folder: the run folder, which names the study.
            data: the images.
            trials: to ask for.
            epochs: of each.
            in_database: keep the study in SQLite instead of the journal.
            unbroken: the folder of the same search without a blow; None compares nothing.
        """
        self.run, self.trials, self.unbroken = folder, trials, unbroken
        self.storage = f"sqlite:///{folder}.db" if in_database else None
        self._has_ended = False
        self._running: set[int] = set()
        self._arguments: tuple[str, ...] = (
            *("run", *data.flags, *QUICK, "--pool", "tiny"),
            *("--backbones", str(data.folder / "backbones.yaml")),
            *("--epochs", str(epochs), "--trials", str(trials)),
            *("--checkpoint-minutes", str(CHECKPOINT_MINUTES), "--out", str(folder)),
            # Its own, so that every run fills one: what is read from it decides the weights.
            *("--cache", str(cache_of(folder))),
            *(() if self.storage is None else ("--storage", self.storage)),
        )
        self._finished = FinishedCandidates(folder / "candidates")
        self._told: dict[int, tuple[str, float | None]] = {}
        self._looks: dict[int, list[list[float]]] = {}

    def command(self) -> Command | None:
        """The same from beginning to end."""
        return None if self._has_ended else Command("search", self._arguments)

    def succeeded(self) -> None:
        """One success is the end."""
        self._has_ended = True

    @property
    def finished(self) -> frozenset[str]:
        """Names of the trainings that were seen complete."""
        return self._finished.names

    def reachable(self) -> tuple[Phase, ...]:
        """The phases that the next process will come to."""
        study = self._study()
        if study is None or not self._is_searched(study):
            return self.phases
        missing = any(c.report_scores is None for c in kept_candidates(study, self.run))
        return (SPLITS, OPENING, RESULTS, *((REPORT_SCORING,) if missing else ()))

    def examine(self, *, gracefully: bool) -> list[Problem]:
        """What is wrong after a process has died.

        Args:
            gracefully: whether it was asked to end, and could.
        """
        problems = [*half_written(self.run), *self._finished.examine()]
        study = self._study()
        if study is None:
            return problems
        problems += self._examine_told(study) + self._examine_looks(study)
        found = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        running = {trial.number for trial in found}
        # One that was asked to end may have ended before it came to what another had left.
        if len(running) > 1 or (gracefully and not running <= self._running):
            names = ", ".join(map(str, sorted(running)))
            problems.append(Problem("broken", f"trials are left RUNNING: {names}"))
        self._running = running
        return problems

    def examine_end(self) -> list[Problem]:
        """What is wrong once a process came to the search's end."""
        study = self._study()
        if study is None:
            return [Problem("lost", "the search ended without a study")]
        problems = left_over(self.run, [trial_name(trial) for trial in paused_trials(study)])
        begun = [one for one in known_trials(study) if one.state != "waiting"]
        if len(begun) != self.trials:
            kind = "lost" if len(begun) < self.trials else "repeated"
            problems.append(Problem(kind, f"{len(begun)} trials were begun, not {self.trials}"))
        if not self._is_searched(study):
            problems.append(Problem("lost", "the search ended before it was done"))
        for trial in study.get_trials(deepcopy=False):
            problems += self._examine_ended(trial)
        presets = [t.user_attrs[PRESET] for t in study.get_trials() if PRESET in t.user_attrs]
        problems += [
            Problem("repeated", f"the trial {preset} is there {presets.count(preset)} times")
            for preset in sorted(set(presets))
            if presets.count(preset) > 1
        ]
        told = {f"{trial.number:04d}" for trial in study.trials if _is(trial, "COMPLETE")}
        problems += [
            Problem("lost", f"{name} is complete on disk, and not told")
            for name in self.finished - told
        ]
        return problems + self._compare(study)

    def _is_searched(self, study: optuna.Study) -> bool:
        """Whether all trials were begun, none waits amid its work, and as many are finished as a
        search promises."""
        known = known_trials(study)
        begun = [one for one in known if one.state != "waiting"]
        complete = sum(one.state == "complete" for one in begun)
        is_amid = any(one.was_interrupted for one in begun)
        # The baseline is complete beside the finalists.
        wanted = min(self.trials, Rules.finalists + 1)
        return len(begun) >= self.trials and complete >= wanted and not is_amid

    def _study(self) -> optuna.Study | None:
        # Before data.yaml is there, opening the study here could mend what the run must mend.
        if not (self.run / "data.yaml").exists():
            return None
        storage = open_storage(self.run, self.storage)
        return optuna.load_study(study_name=self.run.name, storage=storage)

    def _examine_told(self, study: optuna.Study) -> list[Problem]:
        """What was told stays told."""
        problems = []
        trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
        for number, told in self._told.items():
            found = trials.get(number)
            now = None if found is None else (found.state.name, found.value)
            if now != told:
                problems.append(Problem("lost", f"trial {number} was told {told}, now {now}"))
        for trial in trials.values():
            if trial.state.is_finished() and trial.number not in self._told:
                self._told[trial.number] = (trial.state.name, trial.value)
                if _is(trial, "FAIL"):
                    reason = trial.user_attrs.get("reason", "")
                    problems.append(Problem("lost", f"trial {trial.number} failed: {reason}"))
        return problems

    def _examine_looks(self, study: optuna.Study) -> list[Problem]:
        """A look that was told stays told."""
        problems = []
        trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
        for number, told in self._looks.items():
            now = looks_of(trials[number]) if number in trials else []
            if now[: len(told)] != told:
                problems.append(Problem("lost", f"trial {number} had looks {told}, now {now}"))
        self._looks |= {number: looks_of(trial) for number, trial in trials.items()}
        return problems

    def _examine_ended(self, trial: FrozenTrial) -> list[Problem]:
        """A trial of a search that came to its end."""
        name = f"{trial.number:04d}"
        candidate = Candidate(self.run / "candidates" / name)
        if _is(trial, "WAITING") and trial.user_attrs.get(STATE) == PAUSED:
            return self._examine_paused(trial, candidate)
        if not trial.state.is_finished():
            return [Problem("broken", f"trial {name} is left {trial.state.name}")]
        if not _is(trial, "COMPLETE"):
            return []
        if not candidate.is_complete:
            return [Problem("lost", f"{name} is told complete, and has no {METRICS}")]
        problems = []
        if candidate.metrics["auc"] != trial.value:
            problems.append(Problem("broken", f"{name} was told with another AUC than on disk"))
        if candidate.report_scores is None or "report" not in candidate.metrics:
            problems.append(Problem("broken", f"{name} was not scored on report"))
        return problems

    def _examine_paused(self, trial: FrozenTrial, candidate: Candidate) -> list[Problem]:
        """A trial that others were better than: it could go on from its last look."""
        name, reason = candidate.name, trial.user_attrs[REASON]
        images = [int(look[0]) for look in looks_of(trial)]
        problems = []
        if reason != RESTING:
            problems.append(Problem("broken", f"{name} is left paused: {reason}"))
        if images != candidate.history["images"].tolist():
            problems.append(Problem("broken", f"{name} was told with other looks than on disk"))
        if not (candidate.path / CHECKPOINT).exists():
            return [*problems, Problem("lost", f"{name} is paused, and has no {CHECKPOINT}")]
        saved = load_state(candidate.path / CHECKPOINT)
        if [row["images"] for row in saved["history"]] != images:
            problems.append(Problem("lost", f"{name} would go on from another look than its last"))
        if trial.user_attrs[UNTIL] != images[-1]:
            problems.append(Problem("lost", f"{name} waits amid its work"))
        return problems

    def _compare(self, study: optuna.Study) -> list[Problem]:
        """All rows equal those of an unbroken run, to the digit: what is drawn depends on what was
        found, not on how often the search was gone on with."""
        found = _read_leaderboard(self.run)
        trials = study.get_trials(deepcopy=False)
        if len(found) != len(trials):
            found_rows = f"{len(found)} rows for {len(trials)} trials"
            return [Problem("broken", f"leaderboard.csv has {found_rows}")]
        if self.unbroken is None:
            return []
        wanted = pd.read_csv(
            self.unbroken / LEADERBOARD, dtype=str, keep_default_na=False
        ).set_index("trial")
        numbers = [str(trial.number) for trial in trials]
        compared = (
            found.drop(columns=MEASURED)
            .reindex(numbers)
            .compare(
                wanted.drop(columns=MEASURED).reindex(numbers), result_names=("found", "unbroken")
            )
        )
        return [
            Problem(
                "broken",
                f"trial {number} differs from that of an unbroken run: {row.dropna().to_dict()}",
            )
            for number, row in compared.iterrows()
        ]


def _is(trial: FrozenTrial, state: str) -> bool:
    return trial.state.name == state


def _read_leaderboard(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / LEADERBOARD, dtype=str, keep_default_na=False).set_index("trial")
