"""The part of a time limit that is kept for scoring on report and for the results."""

from __future__ import annotations

import math
from pathlib import Path

import optuna

from search.machine.files import CANDIDATES
from search.report.recorded import read_metrics
from search.study.decisions.scheduler import worth_keeping
from search.study.plan import SearchPlan
from search.study.trials import (
    ROW,
    complete_trials,
    known_trials,
    looks_of,
    paused_trials,
    trial_name,
)
from search.training.candidate import Candidate

SCORING_SPEED = "scoring_images_per_second"
"""Entry of metrics.json."""

RESULTS_SECONDS = 10.0
"""Kept of the time limit for plots and pages, at least."""

SLOWER = 2.0
"""Times that a first scoring may take longer than looks did: without it nothing is complete."""

LARGEST_RESERVE = 1 / 3
"""Share of the time limit that is kept for scoring on report and for the results at most."""


class Reserve:
    """The time that scoring on report and writing the results will take, as measured so far."""

    def __init__(self, plan: SearchPlan, run: Path, study: optuna.Study) -> None:
        self.plan, self.run, self.study = plan, run, study
        self.results_seconds = RESULTS_SECONDS
        self.measured_trials = 0
        timeout = plan.settings.timeout
        self.most = math.inf if timeout is None else LARGEST_RESERVE * timeout.total_seconds()

    @property
    def is_due(self) -> bool:
        """Whether the results are to be written to see how long it takes: of the first trial, and
        when there are twice as many as the last time."""
        return self._begun >= max(1, 2 * self.measured_trials)

    def measured(self, seconds: float) -> None:
        """Takes note of how long the results took to write: what is kept back lasts until there are
        twice as many trials, which take twice as long."""
        self.results_seconds = max(RESULTS_SECONDS, 2 * seconds)
        self.measured_trials = self._begun

    @property
    def _begun(self) -> int:
        """Trials that the results are of."""
        return sum(one.state != "waiting" for one in known_trials(self.study))

    def seconds_to_keep_one(self) -> float:
        """For the scoring of the best candidate, if all that is complete is worse: it then is
        complete as well, and is scored on report. 0 before the first look."""
        kept = {one.number for one in worth_keeping(known_trials(self.study), self.plan.rules)}
        splits, limit = self.plan.splits, self.plan.images_of_a_look
        altered = 0 if splits.altered is None else len(splits.altered)
        images = limit + len(splits.select) + altered + len(splits.report)
        costs = [
            images
            * float(trial.user_attrs.get(ROW, {}).get("score_seconds", 0.0))
            / (len(looks_of(trial)) * limit)
            for trial in paused_trials(self.study)
            if trial.number in kept
        ]
        return min(SLOWER * max(costs, default=0.0), self.most)

    def seconds(self) -> float:
        """For the kept candidates that are not scored yet, and one that may come; 0 without a
        limit."""
        settings = self.plan.settings
        if settings.timeout is None:
            return 0.0
        images = len(self.plan.splits.report)
        folders = [
            self.run / CANDIDATES / trial_name(trial)
            for trial in complete_trials(self.study)[: settings.keep + 1]
        ]
        costs = []
        for candidate in map(Candidate, folders):
            speed = read_metrics(candidate.path, lambda _line: None).get(SCORING_SPEED)
            if speed and candidate.report_scores is None:
                costs.append(images / float(speed))
        total = sum(costs) + max(costs, default=0.0) + self.results_seconds
        return min(total + self.seconds_to_keep_one(), self.most)
