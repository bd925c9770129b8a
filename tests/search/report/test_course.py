from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial

from search.report.course import (
    LOOK_COLUMNS,
    continued,
    finished_against_presets,
    gain_at_the_same_time,
    pieces_of,
    search_looks,
)

Curve = tuple[str, Sequence[tuple[float, float]]]
"""Kind of a configuration, and its looks: seconds of its own training, AUC."""


def table(*curves: Curve) -> pd.DataFrame:
    """Looks of configurations that were trained one after the other."""
    rows, before = [], 0.0
    for trial, (kind, looks) in enumerate(curves):
        rows += [(trial, kind, f"b{trial}", 1_000, own, before + own, auc) for own, auc in looks]
        before += looks[-1][0] if looks else 0.0
    return pd.DataFrame(rows, columns=list(LOOK_COLUMNS))


@pytest.mark.parametrize(
    ("curves", "told"),
    [
        ([("preset", [(60, 0.7)]), ("drawn", [(60, 0.75)])], "The search brought +0.0500 over"),
        (
            [("preset", [(60, 0.8)]), ("drawn", [(60, 0.75)])],
            "The presets were best at the same ti",
        ),
        (
            [("preset", [(60, 0.8)]), ("drawn", [(60, 0.8)])],
            "The search brought nothing over the b",
        ),
        # What a drawn one won with time that no preset had does not count,
        (
            [("preset", [(60, 0.7)]), ("drawn", [(60, 0.69), (600, 0.9)])],
            "The presets were best at the same time, by 0.0100: within 1 min 0 s",
        ),
        # nor what a preset won alone;
        (
            [("preset", [(60, 0.7), (600, 0.9)]), ("drawn", [(60, 0.71)])],
            "The search brought +0.0100 over the best preset at the same time: within 1 min 0 s",
        ),
        # but a look that comes a little later is of the same stretch.
        ([("preset", [(60, 0.7)]), ("drawn", [(65, 0.72)])], "The search brought +0.0200 over"),
        # Whoever was best by then, whatever became of it.
        (
            [
                *[("preset", [(60, 0.7), (120, 0.8)]), ("preset", [(60, 0.75)])],
                *[("drawn", [(60, 0.81), (120, 0.6)]), ("drawn", [(60, 0.7), (120, 0.79)])],
            ],
            "The search brought +0.0100 over the best preset at the same time: within 2 min 0 s of "
            "its own training, the longest that both kinds have had, the best of 2 drawn, trial "
            "0002, has AUC 0.8100 and the best of 2 presets, trial 0000, 0.8000 on the images of a "
            "look.",
        ),
        # The baseline is neither.
        ([("baseline", [(60, 0.9)]), ("drawn", [(60, 0.8)])], None),
        ([("preset", [(60, 0.9)])], None),
        ([], None),
        # One kind's first look came after the last of the other: no time is the same.
        ([("preset", [(60, 0.8)]), ("drawn", [(90, 0.85)])], None),
    ],
)
def test_what_the_search_brought_at_the_same_time(curves: list[Curve], told: str | None) -> None:
    found = gain_at_the_same_time(table(*curves))
    assert len(found) == (told is not None)
    assert told is None or found[0].startswith(told)


PRESET: dict[str, Any] = {"is_baseline": False, "is_preset": True}
DRAWN: dict[str, Any] = {"is_baseline": False, "is_preset": False}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [
                {"objective": 0.95, "candidate": "0005", **DRAWN},
                {"objective": 0.9, "candidate": "1", **PRESET},
            ],
            "the best drawn configuration, candidate 0005, is 0.0500 above the best preset, "
            "candidate 1, on select.",
        ),
        (
            [
                {"objective": 0.9, "candidate": "0001", **PRESET},
                {"objective": 0.89, "candidate": "7", **DRAWN},
            ],
            "the best preset, candidate 0001, is 0.0100 above the best drawn configuration, "
            "candidate 7, on select.",
        ),
        (
            [{"objective": 0.9, "candidate": "0001", **PRESET}],
            "No drawn configuration is complete: all that are, are presets.",
        ),
        # The baseline is neither; without the study nobody knows.
        ([{"objective": 0.9, "candidate": "0", "is_baseline": True, "is_preset": False}], None),
        ([{"objective": 0.9, "candidate": "0", "is_baseline": False, "is_preset": None}], None),
    ],
)
def test_what_is_complete_is_compared_as_it_is(
    rows: list[dict[str, Any]], expected: str | None
) -> None:
    found = finished_against_presets(rows)
    assert len(found) == (expected is not None)
    assert expected is None or found[0].endswith(expected)


@pytest.mark.parametrize(
    ("own", "spent", "expected"),
    [
        ([], [], []),
        ([10], [30], [0]),
        ([10, 20, 40], [110, 120, 140], [0, 0, 0]),
        ([10, 20, 40], [110, 180, 200], [0, 1, 1]),
        # Rounded to thousandths, each for itself.
        ([10.001, 20.002], [110.0, 120.003], [0, 0]),
    ],
)
def test_pieces_part_where_others_were_trained(
    own: list[float], spent: list[float], expected: list[int]
) -> None:
    assert pieces_of(own, spent) == expected


def test_those_that_were_gone_on_with_are_listed_with_when() -> None:
    rows = [
        # It was begun after a minute, paused, and trained for five more minutes after eight.
        *[(3, "drawn", "b", 1_000, 60.0, 120.0, 0.6), (3, "drawn", "b", 2_000, 120.0, 180.0, 0.7)],
        *[(3, "drawn", "b", 8_000, 420.0, 780.0, 0.65), (1, "preset", "c", 1_000, 60.0, 60.0, 0.5)],
    ]
    (found,) = continued(pd.DataFrame(rows, columns=list(LOOK_COLUMNS)))
    assert found["spans"] == "1.0 to 3.0, 8.0 to 13.0"
    assert (found["trial"], found["kind"], found["images"]) == (3, "drawn", 8_000)
    assert (found["first_auc"], found["best_auc"], found["own_seconds"]) == (0.6, 0.7, 420.0)
    assert continued(table()) == []


def test_looks_are_those_of_the_study() -> None:
    study = optuna.create_study()
    for preset, looks in (("baseline", [[40, 2.0, 0.5, 2.0]]), (None, [[64, 3.0, 0.6, 5.0]])):
        attributes: dict[str, Any] = {"looks": looks, "row": {"backbone": "b"}}
        attributes |= {} if preset is None else {"preset": preset}
        study.add_trial(create_trial(state=TrialState.WAITING, user_attrs=attributes))
    study.add_trial(create_trial(state=TrialState.WAITING, user_attrs={"preset": "default:b"}))
    assert search_looks(study).to_dict("records") == [
        dict(zip(LOOK_COLUMNS, values, strict=True))
        for values in (
            (0, "baseline", "b", 40, 2.0, 2.0, 0.5),
            (1, "drawn", "b", 64, 3.0, 5.0, 0.6),
        )
    ]
    assert search_looks(None).empty
