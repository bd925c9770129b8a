"""Which of the search's parameters mattered."""

from __future__ import annotations

import warnings

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

TRIALS_NEEDED = 10
"""Complete trials below which importance is noise: the evaluator asks for five good ones, and there
must be others to tell them from."""


def parameter_importance(study: optuna.Study) -> dict[str, float]:
    """Share of each parameter in what told a study's best trials from the others.

    Conditional PED-ANOVA (arXiv:2601.20800), which can judge parameters that only the trials of one
    backbone have; those, named "<backbone>/<parameter>", are summed over the backbones. Trials
    without parameters, as the baseline, are left out.

    Returns:
        Shares that sum to 1; none with fewer than `TRIALS_NEEDED` complete trials, or if no
        parameter tells them apart.
    """
    complete = (TrialState.COMPLETE,)
    trials = [trial for trial in study.get_trials(deepcopy=False, states=complete) if trial.params]
    if len(trials) < TRIALS_NEEDED:
        return {}
    drawn = optuna.create_study(direction=study.direction)
    drawn.add_trials(trials)
    # The best tenth, as by default, but at least the five trials that the evaluator's notes advise.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(0.1, 5 / len(trials)))
    with warnings.catch_warnings(action="ignore"):
        importances = get_param_importances(drawn, evaluator=evaluator, normalize=False)
    shares: dict[str, float] = {}
    for name, value in importances.items():
        short = name.rpartition("/")[2]
        shares[short] = shares.get(short, 0.0) + value
    total = sum(shares.values())
    return {name: value / total for name, value in shares.items()} if total > 0 else {}
