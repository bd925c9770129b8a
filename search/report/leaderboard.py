"""leaderboard.csv: one row a trial of a study, best first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from search.errors import UserError
from search.machine.files import CANDIDATES, write_atomically
from search.machine.seconds import SECONDS
from search.report.recorded import has_candidate, read_metrics, report_figures_of

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

TEXTS = ("candidate", "state", "backbone", "pretraining", "augmentation", "reason", "path")
INTEGERS = (
    *("rank", "params_thop", "params_exact", "image_size"),
    *("tp", "fp", "tn", "fn", "batch_size", "seed", "trial"),
)
COLUMNS = (
    *("rank", "candidate", "state", "backbone", "pretraining"),
    *("params_thop", "params_exact", "gmacs", "image_size", "epochs"),
    *("auc", "auc_low", "auc_high", "auc_report"),
    *("tpr_at_fpr_1e-2", "tpr_at_fpr_5e-3", "tpr_at_fpr_1e-3"),
    *("accuracy", "log_loss", "tp", "fp", "tn", "fn"),
    *("learning_rate", "weight_decay", "augmentation", "batch_size"),
    *SECONDS,
    *("images_per_second", "peak_memory_mb", "seed", "reason", "path"),
    *("trial", "auc_seen", "auc_unseen", "auc_stress", "objective"),
)
"""auc_low to auc_high is DeLong's 95% interval over groups: images of one source count together.
auc_seen and auc_unseen are of fakes of methods that fit has or lacks, auc_stress is the mean over
alterations of select; objective is what --objective says, on select."""

ON_SELECT = (
    *("auc", "auc_low", "auc_high", "auc_seen", "auc_unseen", "auc_stress"),
    *("tpr_at_fpr_1e-2", "tpr_at_fpr_5e-3", "tpr_at_fpr_1e-3"),
    *("accuracy", "log_loss", "tp", "fp", "tn", "fn"),
)
"""On all of select, in fp32, with the weights that are kept: blank until a trial is complete. A
look is at a part of select, in the training's arithmetic; `objective` is what the best one said."""

SINCE_OBJECTIVES = ("auc_seen", "auc_unseen", "auc_stress", "objective")
"""Columns that a leaderboard may lack, because an earlier version wrote it; then it goes by auc."""

STATES = ("complete", "paused", "pruned", "failed", "rejected")
"""In the order of the table."""


def rows_from_study(
    study: optuna.Study, run_folder: Path, tell: Callable[[str], None] = lambda _: None
) -> pd.DataFrame:
    """The leaderboard of a study.

    Complete trials come first, by objective, then by fewer parameters, then by trial number; they
    alone have a rank. Paused and pruned trials follow by the objective they had reached, then
    failed, then rejected ones.

    Args:
        study: its trials tell their outcome in the user attributes `state`, `reason` and `row`.
        run_folder: holds candidates/, whose metrics.json gives `auc_report` where it is known.
        tell: given a line on each file that is damaged; its figures are left blank.

    Returns:
        `COLUMNS` in that order, indexed by the trial's number (named "trial"). Unknown numbers are
        missing, unknown texts empty.
    """
    outcomes = [(trial, outcome(trial)) for trial in study.get_trials(deepcopy=False)]
    rows = [_row(trial, *told, run_folder, tell) for trial, told in outcomes if told is not None]
    return _ordered(_typed(pd.DataFrame(rows, columns=list(COLUMNS))))


def read_leaderboard(path: Path) -> pd.DataFrame:
    """The leaderboard that `write_leaderboard` wrote, for where its study is not at hand.

    Raises:
        UserError: if the file is absent, or no leaderboard.
    """
    try:
        # The name "NA" is a name.
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if "objective" not in table and "auc" in table:
            table = table.assign(**dict.fromkeys(SINCE_OBJECTIVES, ""))
            table["objective"] = table["auc"]
        missing = [name for name in COLUMNS if name not in table]
        if missing:
            raise ValueError(f"column {missing[0]} is missing")
        numbers = table[list(COLUMNS)].drop(columns=list(TEXTS)).replace("", pd.NA)
        table = _typed(table.assign(**numbers.apply(pd.to_numeric)))
        if not set(table["state"]) <= set(STATES):
            raise ValueError("a state is unknown")
        return _ordered(table)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} must be a leaderboard that onefold wrote: {error}") from None


def outcome(trial: FrozenTrial) -> tuple[str, str] | None:
    """State and reason of a trial; None if it is running, or waits and was never begun.

    A trial that ended without telling is one whose process was killed, and that another one closed.
    """
    state, reason = trial.user_attrs.get("state"), str(trial.user_attrs.get("reason", ""))
    if trial.state.name == "WAITING" and state == "paused":
        return state, reason
    if not trial.state.is_finished():
        return None
    if state in STATES and state != "paused":
        return state, reason
    return {
        "COMPLETE": ("complete", ""),
        "PRUNED": ("pruned", ""),
    }.get(trial.state.name, ("failed", "process ended"))


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Best first, with ranks, indexed by the trial."""
    keys = pd.DataFrame(
        {
            "state": table["state"].map(STATES.index),
            "objective": -table["objective"],
            "params_exact": table["params_exact"],
            "trial": table["trial"],
        }
    )
    table = table.loc[keys.sort_values(["state", "objective", "params_exact", "trial"]).index]
    complete = table["state"] == "complete"
    table = table.assign(rank=complete.cumsum().where(complete).astype("Int64"))
    return table.set_index(pd.Index(table["trial"], name="trial", dtype="int64"))


def write_leaderboard(frame: pd.DataFrame, path: Path) -> None:
    """Writes a leaderboard as CSV; a reader sees the old file or the new, never a part."""
    write_atomically(
        path,
        lambda temporary: frame.to_csv(
            temporary, columns=list(COLUMNS), index=False, lineterminator="\n"
        ),
    )


def _row(
    trial: FrozenTrial, state: str, reason: str, run: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    row = trial.user_attrs.get("row", {})
    # A study that began before there were objectives goes by the AUC.
    row = {"auc": trial.value, "objective": row.get("auc", trial.value), **row}
    name = f"{trial.number:04d}"
    if state != "complete":
        row = {name: value for name, value in row.items() if name not in ON_SELECT}
    folder = run / CANDIDATES / name
    is_there = has_candidate(folder)
    return {
        **dict.fromkeys(TEXTS, ""),
        **{name: value for name, value in row.items() if name in COLUMNS and value is not None},
        "candidate": name if is_there else "",
        "state": state,
        # A line break in a message would break the row for readers that go by lines.
        "reason": " ".join(reason.split()),
        "auc_report": report_figures_of(read_metrics(folder, tell)).get("auc"),
        "path": f"{CANDIDATES}/{name}" if is_there else "",
        "trial": trial.number,
    }


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Integers that may be missing, floats, and texts that are never missing."""
    numbers = {name: "Int64" if name in INTEGERS else "float64" for name in COLUMNS}
    return table.astype(numbers | dict.fromkeys(TEXTS, "str"))
