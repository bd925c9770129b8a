"""How a search went: which candidate was trained when, and what drawing brought over presets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from search.report.terminal import format_seconds
from search.study.decisions.layout import ALMOST
from search.study.decisions.space import BASELINE, PRESET
from search.study.opening import DEFAULT
from search.study.trials import ROW, STATE, looks_of
from search.training.objective import NAMES

if TYPE_CHECKING:
    import optuna

LOOK_COLUMNS = ("trial", "kind", "backbone", "images", "own_seconds", "seconds", "auc")
"""Of a look: images that the candidate had seen, seconds of its own training, and of all trainings
by then, looks included."""

GAP_SECONDS = 0.1
"""Trainings of others between two looks take longer; what is shorter is rounding."""


def search_looks(study: optuna.Study | None) -> pd.DataFrame:
    """Every look of a study, a row each with `LOOK_COLUMNS`; none without the study."""
    trials = [] if study is None else study.get_trials(deepcopy=False)
    rows = [
        (
            trial.number,
            _kind(trial.user_attrs.get(PRESET)),
            trial.user_attrs.get(ROW, {}).get("backbone", ""),
            *(images, own, spent, auc),
        )
        for trial in trials
        for images, own, auc, spent in looks_of(trial)
    ]
    return pd.DataFrame(rows, columns=list(LOOK_COLUMNS))


def never_begun(study: optuna.Study | None) -> list[str]:
    """The backbones whose default waits still: with little time a large pool has too many."""
    trials = [] if study is None else study.get_trials(deepcopy=False)
    waiting = [trial for trial in trials if trial.state.name == "WAITING"]
    presets = [str(t.user_attrs.get(PRESET)) for t in waiting if STATE not in t.user_attrs]
    prefix = f"{DEFAULT}:"
    return [preset.removeprefix(prefix) for preset in presets if preset.startswith(prefix)]


def _kind(preset: object) -> str:
    if preset == BASELINE:
        return "baseline"
    return "drawn" if preset is None else "preset"


def pieces_of(own_seconds: Sequence[float], seconds: Sequence[float]) -> list[int]:
    """To which piece of its training each look of one candidate belongs, from 0: between two pieces
    it waited while others were trained.

    Args:
        own_seconds: of its own training, by each look.
        seconds: of all trainings, likewise.
    """
    pieces: list[int] = []
    for place, (own, spent) in enumerate(zip(own_seconds, seconds, strict=True)):
        if not pieces:
            pieces.append(0)
            continue
        waited = (spent - seconds[place - 1]) - (own - own_seconds[place - 1])
        pieces.append(pieces[-1] + (waited > GAP_SECONDS))
    return pieces


def continued(looks: pd.DataFrame) -> list[dict[str, Any]]:
    """Candidates that were gone on with after others had been trained, in the order of their
    numbers, and when, in seconds of all trainings."""
    rows = []
    for trial, own in looks.groupby("trial", sort=True):
        spent, took = own["seconds"].tolist(), own["own_seconds"].tolist()
        pieces = pieces_of(took, spent)
        if pieces[-1] == 0:
            continue
        spans = []
        for piece in range(pieces[-1] + 1):
            first, last = pieces.index(piece), len(pieces) - 1 - pieces[::-1].index(piece)
            length = took[last] - (took[first - 1] if first else 0.0)
            spans.append((max(0.0, spent[last] - length), spent[last]))
        rows.append(
            {
                "trial": trial,
                "kind": own["kind"].iloc[0],
                "backbone": own["backbone"].iloc[0],
                "is_baseline": False,  # it says so as its kind
                "spans": ", ".join(f"{start / 60:.1f} to {end / 60:.1f}" for start, end in spans),
                "own_seconds": took[-1],
                "images": own["images"].iloc[-1],
                "first_auc": own["auc"].iloc[0],
                "best_auc": own["auc"].max(),
            }
        )
    return rows


def gain_at_the_same_time(looks: pd.DataFrame, compared_by: str = NAMES["auc"]) -> list[str]:
    """What the search brought over the best preset at the same time, in a sentence; nothing where
    there is no time by which both kinds were looked at.

    The same time is the longest own training that a configuration of each kind has had, in seconds:
    what the best drawn one won later, with time that no preset was given, does not count, nor the
    other way round. Of each candidate its best look by then counts, as of a candidate that is kept.

    Args:
        looks: with `LOOK_COLUMNS`.
        compared_by: what looks are compared by, for people.
    """
    kinds = {kind: looks[looks["kind"] == kind] for kind in ("drawn", "preset")}
    same = min(own["own_seconds"].max() for own in kinds.values())
    # Speeds vary: a look that comes a little later is of the same stretch.
    by_then = {kind: own[own["own_seconds"] <= same / ALMOST] for kind, own in kinds.items()}
    if any(own.empty for own in by_then.values()):
        return []
    best = {kind: own.loc[own["auc"].idxmax()] for kind, own in by_then.items()}
    drawn, preset = best["drawn"], best["preset"]
    difference = float(drawn["auc"] - preset["auc"])
    if difference > 0:
        told = f"The search brought {difference:+.4f} over the best preset at the same time"
    elif difference < 0:
        told = f"The presets were best at the same time, by {-difference:.4f}"
    else:
        told = "The search brought nothing over the best preset at the same time"
    counts = {kind: own["trial"].nunique() for kind, own in by_then.items()}
    return [
        f"{told}: within {format_seconds(same)} of its own training, the longest that both kinds "
        f"have had, the best of {counts['drawn']} drawn, trial {drawn['trial']:04d}, has "
        f"{compared_by} {drawn['auc']:.4f} and the best of {counts['preset']} presets, trial "
        f"{preset['trial']:04d}, {preset['auc']:.4f} on the images of a look."
    ]


def finished_against_presets(complete: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the best drawn configuration stands beside the best preset when both are complete, in a
    sentence; nothing where both are not at hand.

    Args:
        complete: rows of complete trials, best first.
    """
    searched = [row for row in complete if not row["is_baseline"]]
    presets = [row for row in searched if row.get("is_preset") is True]
    drawn = [row for row in searched if row.get("is_preset") is False]
    if not presets:
        return []
    if not drawn:
        return ["No drawn configuration is complete: all that are, are presets."]
    difference = drawn[0]["objective"] - presets[0]["objective"]
    names = [f"candidate {row['candidate'] or row['trial']}" for row in (drawn[0], presets[0])]
    if difference > 0:
        return [
            f"Of what is complete, however long it was trained, the best drawn configuration, "
            f"{names[0]}, is {difference:.4f} above the best preset, {names[1]}, on select."
        ]
    return [
        f"Of what is complete, however long it was trained, the best preset, {names[1]}, is "
        f"{-difference:.4f} above the best drawn configuration, {names[0]}, on select."
    ]
