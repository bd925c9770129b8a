"""What a trial tells of its end: the user attributes that leaderboard, report and notes read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

from search.candidate import HISTORY, Candidate
from search.dashboard import mark_infeasible, publish_trial
from search.plots import draw_candidate_roc, draw_epochs
from search.rules import Verdict

STATE = "state"
"""complete, pruned, failed or rejected."""

REASON = "reason"
"""Why, for failed and rejected."""

CANDIDATE = "candidate"
"""Name of the folder in candidates/; empty where the trial left none."""

ROW = "row"
"""The trial's values in the leaderboard's columns."""

RECIPE = "recipe"
"""All fields of the Recipe."""

INTERRUPTED = "interrupted"
"""True for a trial that was closed early and enqueued again."""

FIGURES = ("auc", "auc_low", "auc_high", "tpr_at_fpr_1e-2", "accuracy", "log_loss")


def record_outcome(
    trial: optuna.Trial,
    run: Path,
    *,
    state: str,
    reason: str,
    row: Mapping[str, Any],
    candidate: str,
) -> None:
    """Writes how a trial ended, for the leaderboard and for the dashboard.

    Must come before the trial is told to Optuna, which then takes no more attributes.

    Args:
        trial: the trial.
        run: the run folder.
        state: complete, pruned, failed or rejected.
        reason: why, for failed and rejected.
        row: its values in the leaderboard's columns.
        candidate: its folder in candidates/, or empty.
    """
    trial.set_user_attr(ROW, dict(row))
    trial.set_user_attr(CANDIDATE, candidate)
    trial.set_user_attr(REASON, reason)
    note = trial_note(state, reason, row, trial.user_attrs.get(RECIPE, {}))
    publish_trial(trial, note, _artifacts(run, candidate), run)
    # Last: `recover` takes a trial that has its state for finished.
    trial.set_user_attr(STATE, state)


def reject(trial: optuna.Trial, run: Path, verdict: Verdict, budget: int) -> None:
    """Tells Optuna, its dashboard and the leaderboard that the rules forbid a trial's backbone."""
    excess = max(verdict.params_exact, verdict.params_thop) / budget - 1.0
    # Provenance has no measure: 1 stands for a broken rule.
    mark_infeasible(trial, "rules", excess if excess > 0 else 1.0)
    row = {**trial.user_attrs.get(ROW, {}), **verdict_row(verdict), "path": ""}
    reason = "; ".join(verdict.reasons)
    record_outcome(trial, run, state="rejected", reason=reason, row=row, candidate="")


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


def trial_note(state: str, reason: str, row: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Markdown: outcome, verdict of the rules, and the whole recipe."""
    lines = [f"**{state}**" + (f": {reason}" if reason else "")]
    if "auc" in row:
        lines += ["", "| on select | |", "|---|---|"]
        lines += [f"| {name} | {row[name]:.4f} |" for name in FIGURES if name in row]
    if "params_exact" in row:
        lines += [
            "",
            f"Verdict of the rules: {'rejected' if state == 'rejected' else 'allowed'}; "
            f"{row['params_thop'] / 1e6:.2f}M parameters by thop, "
            f"{row['params_exact'] / 1e6:.2f}M exactly; pretraining: {row['pretraining']}.",
        ]
    if recipe:
        lines += ["", "| recipe | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in recipe.items()]
    return "\n".join(lines)


def _artifacts(run: Path, name: str) -> list[Path]:
    """Draws a candidate's ROC and epochs; returns them and its history."""
    if not name:
        return []
    candidate = Candidate(run / "candidates" / name)
    folder = run / "plots" / "trials" / name
    folder.mkdir(parents=True, exist_ok=True)
    return [
        draw_candidate_roc(candidate.scores, folder / "roc.png"),
        draw_epochs({name: candidate.history}, folder / "history.png"),
        candidate.path / HISTORY,
    ]
