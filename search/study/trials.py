"""What the study knows of a trial: how it ended, in user attributes that every report reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.catalogue.rules import Verdict
from search.errors import UserError
from search.study.decisions.layout import Known, Point, State
from search.study.decisions.space import BASELINE, PRESET, Space
from search.training.candidate import METRICS, Candidate
from search.training.recipe import Recipe

STATE = "state"
"""complete, paused, pruned, failed or rejected."""

REASON = "reason"
"""Why, for paused, failed and rejected."""

ROW = "row"
"""The trial's values in the leaderboard's columns."""

RECIPE = "recipe"
"""All fields of the Recipe."""

RULES = "rules"
"""The constraint that a rejected trial breaks."""

PAUSED = "paused"
"""The state of a trial that waits in Optuna to go on from its checkpoint."""

RESTING = "others are trained first"
"""Why a trial is paused that was not stopped."""

LOOKS = "looks"
"""[images, seconds, objective, seconds of all trials by then] of each look so far."""

UNTIL = "until"
"""Images at which the piece of work that was begun last ends; None: at the trial's end."""

LOST = "lost_seconds"
"""Of a failed trial, what it took beside what came to a look."""

NOT_IN_ROW = frozenset(
    {"best_epoch", "micro_batch_size", "device", "precision", "versions", "report"}
    | {"scoring_images_per_second", "images_of_a_look"}
)
"""Entries of metrics.json that are no columns of the leaderboard."""


def trial_name(trial: optuna.Trial | FrozenTrial | Known) -> str:
    """The trial's number in four digits: the name of its folder in candidates/."""
    return f"{trial.number:04d}"


def record_outcome(
    trial: optuna.Trial, state: str, reason: str = "", row: Mapping[str, Any] | None = None
) -> None:
    """Writes how a trial ended, or why it waits.

    Must come before the trial is told to Optuna, which then takes no more attributes.
    """
    if row is not None:
        trial.set_user_attr(ROW, dict(row))
    trial.set_user_attr(REASON, reason)
    trial.set_user_attr(STATE, state)


def tell_complete(study: optuna.Study, trial: optuna.Trial, candidate: Candidate) -> float:
    """Tells the study of a candidate that is complete on disk; returns its objective on select.

    Raises:
        UserError: if its figures are damaged.
    """
    try:
        metrics = candidate.metrics
        # A candidate that was trained before there were objectives goes by its AUC.
        value = float(metrics["objective"] if "objective" in metrics else metrics["auc"])
    except (UserError, KeyError, TypeError, ValueError) as error:
        problem = (
            error if isinstance(error, UserError) else f"{candidate.path / METRICS} lacks them"
        )
        raise UserError(
            f"trial {candidate.name} must have its figures to be told, but {problem}; delete "
            f"{candidate.path}, and the search trains it anew"
        ) from None
    row = {name: value for name, value in metrics.items() if name not in NOT_IN_ROW}
    record_outcome(trial, "complete", row=row)
    study.tell(trial, value)
    return value


def put_back(study: optuna.Study, trial: optuna.Trial | FrozenTrial) -> None:
    """Lets a running trial wait again: the next one that is asked for is the waiting one with the
    lowest number, and it keeps its number, its parameters and its checkpoint."""
    study._storage.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)


def claim(study: optuna.Study, waiting: FrozenTrial) -> optuna.Trial:
    """Makes a certain waiting trial the running one, whatever else waits before it."""
    study._storage.set_trial_state_values(waiting._trial_id, state=TrialState.RUNNING)
    return optuna.Trial(study, waiting._trial_id)


def add_rejected(study: optuna.Study, verdict: Verdict, budget: int) -> None:
    """Adds a backbone that the rules forbid, as a finished trial: nothing that waits is taken."""
    value = _excess(verdict, budget)
    study.add_trial(
        create_trial(
            state=TrialState.PRUNED,
            user_attrs={
                STATE: "rejected",
                REASON: "; ".join(verdict.reasons),
                ROW: {**verdict_row(verdict), "path": ""},
            },
            # As `Trial.set_constraint` writes it, and as optuna-dashboard 0.21 reads it.
            system_attrs={f"constraints:{RULES}": value, "constraints": [value]},
        )
    )


def reject(trial: optuna.Trial, verdict: Verdict, budget: int) -> None:
    """Records that the rules forbid what a trial proposes; it is not told yet."""
    value = _excess(verdict, budget)
    trial.set_constraint(RULES, value)
    # optuna-dashboard 0.21 reads the attribute that Optuna 4 wrote.
    trial.storage.set_trial_system_attr(trial._trial_id, "constraints", [value])
    row = {**trial.user_attrs.get(ROW, {}), **verdict_row(verdict), "path": ""}
    record_outcome(trial, "rejected", "; ".join(verdict.reasons), row)


def _excess(verdict: Verdict, budget: int) -> float:
    """By how much the rules are broken, above 0; 1 for provenance, which has no measure."""
    excess = max(verdict.params_exact, verdict.params_thop) / budget - 1.0
    return excess if excess > 0 else 1.0


def verdict_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict in the leaderboard's columns."""
    return {
        "backbone": verdict.backbone,
        "pretraining": verdict.pretraining,
        "params_thop": verdict.params_thop,
        "params_exact": verdict.params_exact,
        "gmacs": verdict.gmacs,
        "image_size": verdict.image_size,
    }


def recipe_row(recipe: Recipe) -> dict[str, Any]:
    """A recipe in the leaderboard's columns."""
    names = ("backbone", "image_size", "epochs", "learning_rate", "weight_decay", "batch_size")
    row = {name: getattr(recipe, name) for name in (*names, "seed")}
    row["augmentation"] = f"{recipe.augmentation}:{recipe.augmentation_strength:.2f}"
    return row


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials, best first; of equals, as in the leaderboard, the smaller network."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return sorted(
        trials, key=lambda t: (-(t.value or 0.0), t.user_attrs[ROW]["params_exact"], t.number)
    )


def searched_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials without the baseline, best first."""
    return [t for t in complete_trials(study) if t.user_attrs.get(PRESET) != BASELINE]


def counted_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that count towards --trials: finished ones that the rules did not reject."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and trial.user_attrs.get(STATE) != "rejected"
    ]


def paused_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that wait to go on from their checkpoint."""
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return [trial for trial in waiting if trial.user_attrs.get(STATE) == PAUSED]


def new_trial(
    study: optuna.Study, parameters: Mapping[str, Any], space: Space, **more: Any
) -> None:
    """Adds a trial that waits, with its parameters; `more` are user attributes."""
    distributions = space.distributions if parameters else {}
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=dict(parameters),
            distributions=distributions,
            user_attrs=more,
        )
    )


def known_trials(study: optuna.Study) -> list[Known]:
    """What the scheduler is asked by: every trial but those that the rules reject."""
    return [
        Known(
            number=trial.number,
            state=_scheduled_state(trial),
            points=tuple(Point(int(n), float(s), float(a)) for n, s, a, _ in looks_of(trial)),
            until=trial.user_attrs.get(UNTIL),
            is_baseline=trial.user_attrs.get(PRESET) == BASELINE,
            lost=float(trial.user_attrs.get(LOST, 0.0)),
        )
        for trial in study.get_trials(deepcopy=False)
        if trial.user_attrs.get(STATE) != "rejected"
    ]


def looks_of(trial: optuna.Trial | FrozenTrial) -> list[list[float]]:
    """`LOOKS` of a trial; none before the first."""
    found: list[list[float]] = trial.user_attrs.get(LOOKS, [])
    return found


def _scheduled_state(trial: FrozenTrial) -> State:
    told: dict[TrialState, State] = {
        TrialState.COMPLETE: "complete",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
    }
    if trial.state in told:
        return told[trial.state]
    # Without UNTIL its process ended before it knew how far to train it.
    was_begun = trial.user_attrs.get(STATE) == PAUSED and UNTIL in trial.user_attrs
    return "paused" if was_begun else "waiting"
