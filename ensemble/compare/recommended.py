"""Which model of a run is meant: by name, by folder, or the one that its comparison recommends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from search.errors import UserError
from search.machine.files import CANDIDATES, COMPARISON, MERGED, REFITS, suggestion
from search.training.candidate import RECIPE, WEIGHTS, Candidate

AUTO = "auto"

_PARENTS = (CANDIDATES, MERGED, REFITS)
_TRUE = frozenset({"true", "yes", "1"})


@dataclass(frozen=True)
class Choice:
    """A model of a run."""

    name: str  # its folder relative to the run's; without parents if it lies elsewhere
    folder: Path
    reason: str  # why the comparison recommends it; empty if it was named


def choose_model(run: Path, model: str) -> Choice:
    """Finds a model.

    Args:
        run: the run folder.
        model: "auto", the name of a candidate (0007), merged model (fused) or refit, or a folder.

    Raises:
        UserError: if there is none of that name, or "auto" finds no recommendation.
    """
    if model == AUTO:
        return _recommended(run)
    folders = [run / parent / model for parent in _PARENTS] + [run / model, Path(model)]
    for folder in folders:
        if _holds_model(folder):
            return Choice(_relative(folder, run), folder, "")
    known = sorted(
        path.name for parent in _PARENTS for path in (run / parent).glob("*") if _holds_model(path)
    )
    raise UserError(
        f"--model must be auto, a folder, or one of {', '.join(known) or 'none'}, found '{model}'"
        f"{suggestion(model, known)}"
    )


def _recommended(run: Path) -> Choice:
    path = run / COMPARISON
    remedy = f"run `python -m ensemble compare --run {run}`, or name a --model"
    if not path.exists():
        raise UserError(f"--model auto needs {path}, which is absent; {remedy}")
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        chosen = table[table["recommended"].str.lower().isin(_TRUE)]
        rows = chosen.to_dict("records")
        folders = [run / row["path"] for row in rows]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} must be a comparison that onefold wrote, found {error}; {remedy}"
        ) from None
    if len(rows) != 1:
        raise UserError(f"{path} must recommend one model, found {len(rows)}; {remedy}")
    if not _holds_model(folders[0]):
        raise UserError(f"{path} recommends {folders[0]}, which holds no model; {remedy}")
    measured = rows[0].get("auc_select")
    if measured is not None and measured != str(float(Candidate(folders[0]).metrics["auc"])):
        raise UserError(
            f"{path} recommends {folders[0]} as it was before, found another model there; {remedy}"
        )
    return Choice(_relative(folders[0], run), folders[0], str(rows[0].get("reason", "")))


def _holds_model(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / RECIPE).is_file()


def _relative(folder: Path, run: Path) -> str:
    folder, run = folder.resolve(), run.resolve()
    return folder.relative_to(run).as_posix() if folder.is_relative_to(run) else folder.name
