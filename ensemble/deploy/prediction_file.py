"""prediction.csv, what is handed in: written from scores, read back, and checked against a list."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from search.errors import UserError
from search.machine.files import write_atomically

PREDICTION = "prediction.csv"
COLUMNS = ("img_name", "y_pred")

_EXAMPLES = 3


def write_prediction(path: Path, names: Sequence[str], scores: Sequence[float]) -> None:
    """Writes scores, probabilities of fake, so that reading them gives the very same numbers.

    Args:
        path: the file.
        names: as the list spells them.
        scores: one a name.

    Raises:
        ValueError: if the two differ in length or `find_faults` finds anything.
    """
    table = pd.DataFrame({"img_name": list(names), "y_pred": list(scores)}, columns=list(COLUMNS))
    if faults := find_faults(table, names):
        raise ValueError("; ".join(faults))
    write_atomically(path, lambda temporary: table.to_csv(temporary, index=False))


def read_prediction(path: Path) -> pd.DataFrame:
    """The table of a prediction file: img_name (str) and y_pred (float64; NaN if not a number).

    Raises:
        UserError: if the file is absent or is no table with just these columns.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, strict=True)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} must be a table with the columns {','.join(COLUMNS)}: {error}"
        ) from None
    if tuple(header) != COLUMNS:
        raise UserError(f"{path} line 1: header must be {','.join(COLUMNS)}, found {header}")
    for line, row in enumerate(rows, 2):
        if len(row) != len(COLUMNS):
            raise UserError(f"{path} line {line}: must have 2 fields, found {len(row)}")
    return pd.DataFrame(
        {
            "img_name": pd.Series([row[0] for row in rows], dtype=str),
            "y_pred": pd.Series([_number(row[1]) for row in rows], dtype="float64"),
        }
    )


def find_faults(table: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """What keeps a table from being a prediction for a list of images; nothing if it is one.

    Args:
        table: has the columns img_name and y_pred.
        names: the listed images, in their order.
    """
    found, scores = table["img_name"].tolist(), table["y_pred"]
    faults = []
    repeated = [name for name, count in Counter(found).items() if count > 1]
    for what, which in (
        ("listed images are absent", sorted(set(names) - set(found))),
        ("images are not on the list", sorted(set(found) - set(names))),
        ("images occur more than once", repeated),
    ):
        if which:
            faults.append(f"{len(which)} {what}: {examples(which)}")
    if not faults and found != list(names):
        faults.append("the images are not in the list's order")
    finite = scores.map(math.isfinite)
    for what, wrong in (
        ("scores are not finite numbers", ~finite),
        ("scores are outside [0, 1]", finite & ~scores.between(0.0, 1.0)),
    ):
        if wrong.any():
            faults.append(f"{int(wrong.sum())} {what}: {examples(table['img_name'][wrong])}")
    return faults


def examples(names: Sequence[str] | pd.Series[str]) -> str:
    """The first few of some names, for a message."""
    return ", ".join(list(names)[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
