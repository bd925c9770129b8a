"""leaderboard.csv: one row a trial of a study, best first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from search.files import write_atomically
from search.training.candidate import METRICS, Candidate

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

TEXTS = ("candidate", "state", "backbone", "pretraining", "augmentation", "reason", "path")
INTEGERS = (
    *("rank", "params_thop", "params_exact", "image_size", "epochs"),
    *("tp", "fp", "tn", "fn", "batch_size", "seed"),
)
COLUMNS = (
    *("rank", "candidate", "state", "backbone", "pretraining"),
    *("params_thop", "params_exact", "gmacs", "image_size", "epochs"),
    *("auc", "auc_low", "auc_high", "auc_report"),
    *("tpr_at_fpr_1e-2", "tpr_at_fpr_5e-3", "tpr_at_fpr_1e-3"),
    *("accuracy", "log_loss", "tp", "fp", "tn", "fn"),
    *("learning_rate", "weight_decay", "augmentation", "batch_size"),
    *("train_seconds", "images_per_second", "peak_memory_mb", "seed", "reason", "path"),
)
STATES = ("complete", "pruned", "failed", "rejected")
"""In the order of the table."""


def rows_from_study(study: optuna.Study, run_folder: Path) -> pd.DataFrame:
    """The leaderboard of a study.

    Complete trials come first, by AUC, then by fewer parameters, then by trial number; they alone
    have a rank. Pruned trials follow by the AUC they had reached, then failed, then rejected ones.

    Args:
        study: its finished trials tell their outcome in the user attributes `state`, `reason`,
            `candidate` and `row`; running and waiting trials are left out. A trial that failed
            without an outcome is one whose process ended.
        run_folder: holds candidates/, whose metrics.json gives `auc_report` where it is known.

    Returns:
        `COLUMNS` in that order, indexed by the trial's number (named "trial"). Unknown numbers are
        missing, unknown texts empty.

    Raises:
        UserError: if a candidate's metrics.json is damaged.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    table = pd.DataFrame(
        [_row(trial, run_folder) for trial in trials],
        columns=list(COLUMNS),
        index=pd.Index([trial.number for trial in trials], name="trial", dtype="int64"),
    )
    table = _typed(table)
    # Stable, so that the trials' own order decides between equals.
    table = table.iloc[
        pd.DataFrame(
            {
                "state": table["state"].map(STATES.index),
                "auc": -table["auc"],
                "params_exact": table["params_exact"],
            }
        )
        .reset_index(drop=True)
        .sort_values(["state", "auc", "params_exact"], kind="stable")
        .index
    ]
    complete = table["state"] == "complete"
    return table.assign(rank=complete.cumsum().where(complete).astype("Int64"))


def write_leaderboard(frame: pd.DataFrame, path: Path) -> None:
    """Writes a leaderboard as CSV; a reader sees the old file or the new, never a part."""
    write_atomically(
        path,
        lambda temporary: frame.to_csv(
            temporary, columns=list(COLUMNS), index=False, lineterminator="\n"
        ),
    )


def _row(trial: FrozenTrial, run_folder: Path) -> dict[str, Any]:
    attributes = trial.user_attrs
    state, reason = attributes.get("state"), attributes.get("reason", "")
    if state not in STATES:
        state, reason = _outcome_by_optuna(trial)
    row = {"auc": trial.value, **attributes.get("row", {})}
    candidate = str(attributes.get("candidate", ""))
    return {
        **dict.fromkeys(TEXTS, ""),
        **{name: value for name, value in row.items() if name in COLUMNS and value is not None},
        "candidate": candidate,
        "state": state,
        # A line break in a message would break the row for readers that go by lines.
        "reason": " ".join(str(reason).split()),
        "auc_report": _auc_report(run_folder / "candidates" / candidate) if candidate else None,
    }


def _outcome_by_optuna(trial: FrozenTrial) -> tuple[str, str]:
    """State and reason of a trial whose objective told none."""
    return {
        "COMPLETE": ("complete", ""),
        "PRUNED": ("pruned", ""),
    }.get(trial.state.name, ("failed", "process ended"))


def _auc_report(candidate: Path) -> float | None:
    if not (candidate / METRICS).exists():
        return None
    auc: float | None = Candidate(candidate).metrics.get("report", {}).get("auc")
    return auc


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Integers that may be missing, floats, and texts that are never missing."""
    numbers = {name: "Int64" if name in INTEGERS else "float64" for name in COLUMNS}
    return table.astype(numbers | dict.fromkeys(TEXTS, "str"))
