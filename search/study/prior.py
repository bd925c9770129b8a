"""What frozen features and speeds say of a pool before anything is trained: which backbones are
tried first, and which cannot win in the time given.

`probe.csv` in the run folder has a row a backbone; its columns are the fields of a `Probe`. It is
written anew after each backbone, and once more, with `kept` filled in, when all are there: a search
that was stopped before goes on with those that are missing, and one that was stopped after keeps to
what was decided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from search.errors import UserError
from search.machine.files import first_problem, write_text_atomically
from search.study.decisions.layout import Rules

PROBE = "probe.csv"

CERTAIN = 2.0
"""Standard errors by which a backbone must be worse than another to be left out."""

FASTER = 1.1
"""Times as fast another must be for that: two measurements of one speed differ by less."""


@dataclass(frozen=True)
class Probe:
    """What was found out of one backbone; a row of `probe.csv`."""

    backbone: str
    image_size: int
    """In pixels: the first that the backbone is tried at."""
    images: int = 0
    """Of fit, whose features were looked at."""
    folds: int = 0
    auc: float | None = None
    """Of a logistic regression on frozen features, the mean over the folds; None: not known."""
    auc_spread: float | None = None
    """Standard deviation over the folds."""
    images_per_second: float | None = None
    """Of training; None: not known."""
    is_estimated: bool = False
    """Whether the speed is that of forward passes over three, for want of time to measure it."""
    seconds: float = 0.0
    """That it took to find out."""
    kept: bool | None = None
    """Whether it is searched; None: not decided yet."""
    reason: str = ""
    """Why it is not, or what could not be found out."""

    @property
    def auc_error(self) -> float | None:
        """Standard error of the AUC. Folds share most of what they are trained on, so it shrinks
        less than with the root of their number (doi:10.1023/A:1024068626366)."""
        if self.auc_spread is None or self.folds < 2:
            return None
        return self.auc_spread * math.sqrt(1 / self.folds + 1 / (self.folds - 1))


def settled(probes: Sequence[Probe], rules: Rules, seconds_left: float | None) -> tuple[Probe, ...]:
    """The same probes, with what is kept.

    Without a time limit all are: a seed must give the same search on a fast machine and on a slow
    one. With one, a backbone is left out whose first look alone would take more than half of the
    time in which configurations are drawn and begun, and one that is slower than another, and worse
    by more than the error of both. The fastest stays in any case, with those that are hardly
    slower, and of those that are worse as many of the best that there is something to merge. What
    is not known of a backbone never costs it its place.

    Args:
        probes: of all backbones of the pool.
        rules: how the search is laid out.
        seconds_left: of the time limit, for training; None without a limit.
    """
    if seconds_left is None:
        return tuple(replace(probe, kept=True) for probe in probes)
    most = rules.explored * seconds_left / 2
    out: dict[str, str] = {}
    fastest = max((probe.images_per_second or 0.0 for probe in probes), default=0.0)
    for probe in probes:
        speed = probe.images_per_second
        if speed and FASTER * speed < fastest and rules.first_look / speed > most:
            out[probe.backbone] = (
                f"its first look at {rules.first_look:,} images would take "
                f"{rules.first_look / speed:,.0f} s, more than half of the {2 * most:,.0f} s to "
                "begin configurations in"
            )
    quick = [probe for probe in probes if probe.backbone not in out]
    for probe in reversed(ordered(quick)[rules.finalists :]):
        better = next((other for other in ordered(quick) if _dominates(other, probe)), None)
        if better is not None:
            out[probe.backbone] = (
                f"slower than {better.backbone} ({_speed(probe)} against {_speed(better)} "
                f"images/s) and worse by more than the error (probe {_worth(probe)} against "
                f"{_worth(better)})"
            )
    return tuple(
        replace(
            probe,
            kept=probe.backbone not in out,
            reason="; ".join(filter(None, (probe.reason, out.get(probe.backbone)))),
        )
        for probe in probes
    )


def _dominates(other: Probe, probe: Probe) -> bool:
    """Whether another backbone is faster, and better beyond doubt."""
    if not other.images_per_second or not probe.images_per_second:
        return False
    errors = (other.auc_error, probe.auc_error)
    if other.auc is None or probe.auc is None or None in errors:
        return False
    doubt = CERTAIN * math.hypot(*(error or 0.0 for error in errors))
    is_faster = other.images_per_second > FASTER * probe.images_per_second
    return is_faster and other.auc - probe.auc > doubt


def ordered(probes: Sequence[Probe]) -> list[Probe]:
    """Best first; those whose AUC is not known last; equals in the order given."""
    return sorted(probes, key=lambda probe: math.inf if probe.auc is None else -probe.auc)


def _speed(probe: Probe) -> str:
    return f"{probe.images_per_second or 0.0:.3g}"


def _worth(probe: Probe) -> str:
    return f"{probe.auc or 0.0:.3f} ± {probe.auc_error or 0.0:.3f}"


COLUMNS = tuple(field.name for field in fields(Probe))


def write_probes(probes: Sequence[Probe], run: Path) -> None:
    """Writes `probe.csv` into a run folder, as a whole."""
    table = pd.DataFrame([asdict(probe) for probe in probes], columns=list(COLUMNS))
    write_text_atomically(run / PROBE, table.to_csv(index=False))


def read_probes(run: Path) -> list[Probe]:
    """The rows of a run's `probe.csv`; none without one.

    Raises:
        UserError: if it is damaged.
    """
    path = run / PROBE
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError) as error:
        found = " ".join(str(error).split())
        raise UserError(f"{path} must be a table that onefold wrote, found: {found}") from None
    if tuple(table.columns) != COLUMNS:
        raise UserError(
            f"{path} must have the columns {', '.join(COLUMNS)}, found {', '.join(table.columns)}; "
            "restore it, or delete it to probe anew what was not begun yet"
        )
    rows = [
        {name: text for name, text in row.items() if text or name == "reason"}
        for row in table.to_dict("records")
    ]
    try:
        return TypeAdapter(list[Probe]).validate_python(rows)
    except (ValidationError, TypeError) as error:
        found = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{path} must be a table that onefold wrote, found: {found}") from None


def tell_settled(probes: Sequence[Probe], tell: Callable[[str], None]) -> None:
    """Tells the order of the first trials, and each backbone that is left out, a line each."""
    first = [probe for probe in ordered(probes) if probe.kept and probe.auc is not None]
    if first:
        tell(
            "tried in the order of their probes: "
            + ", ".join(f"{probe.backbone} {probe.auc:.3f}" for probe in first)
        )
    for probe in probes:
        if not probe.kept:
            tell(f"left out of the pool: {probe.backbone}: {probe.reason}")
