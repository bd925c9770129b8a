"""Which candidates of a study keep their weights: the best ones and the baseline."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.candidate import WEIGHTS, Candidate
from search.outcome import CANDIDATE, ROW
from search.space import BASELINE, PRESET


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials, best first; of equals, as in the leaderboard, the smaller network."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(
        trials, key=lambda t: (-(t.value or 0.0), t.user_attrs[ROW]["params_exact"], t.number)
    )


def searched_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials without the baseline, best first."""
    return [t for t in complete_trials(study) if t.user_attrs.get(PRESET) != BASELINE]


def weights_threshold(study: optuna.Study, keep: int) -> float:
    """The AUC that a new candidate must reach for its weights to be among the `keep` best."""
    best = searched_trials(study)
    return -1.0 if len(best) < keep else float(best[keep - 1].value or 0.0)


def drop_surplus_weights(study: optuna.Study, run: Path, keep: int) -> None:
    """Deletes the weights of all but the `keep` best candidates and the baseline."""
    best = searched_trials(study)
    for trial in best[keep:]:
        Candidate(run / "candidates" / trial.user_attrs[CANDIDATE]).drop_weights()


def kept_candidates(study: optuna.Study, run: Path) -> list[Candidate]:
    """Candidates that have their weights, best first."""
    folders = [run / "candidates" / trial.user_attrs[CANDIDATE] for trial in complete_trials(study)]
    return [Candidate(folder) for folder in folders if (folder / WEIGHTS).exists()]
