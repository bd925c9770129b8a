"""What a finished trial shows in the Optuna dashboard: a note, its ROC and its history."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from search.candidate import HISTORY, Candidate
from search.dashboard import publish_trial
from search.objective import CANDIDATE, REASON, RECIPE, ROW, STATE
from search.plots import draw_candidate_roc, draw_epochs

FIGURES = ("auc", "auc_low", "auc_high", "tpr_at_fpr_1e-2", "accuracy", "log_loss")


def publish_outcome(study: optuna.Study, trial: FrozenTrial, run: Path) -> None:
    """Writes a trial's note and uploads its plots and history as artifacts."""
    attributes = trial.user_attrs
    artifacts: list[Path] = []
    if name := attributes.get(CANDIDATE):
        candidate = Candidate(run / "candidates" / name)
        folder = run / "plots" / "trials" / name
        folder.mkdir(parents=True, exist_ok=True)
        artifacts = [
            draw_candidate_roc(candidate.scores, folder / "roc.png"),
            draw_epochs({name: candidate.history}, folder / "history.png"),
            candidate.path / HISTORY,
        ]
    note = trial_note(
        attributes.get(STATE, "failed"),
        attributes.get(REASON, ""),
        attributes.get(ROW, {}),
        attributes.get(RECIPE, {}),
    )
    publish_trial(study, trial, note, artifacts, run)


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
