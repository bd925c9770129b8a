from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from search.report.terminal import introduce, print_top

NO_ROWS = pd.DataFrame({"state": ["failed"], "candidate": [""]})


def plan(trials: int, notes: tuple[str, ...] = ()) -> Any:
    table = pd.DataFrame({"target": [0, 1]})
    recipe = SimpleNamespace(backbone="resnet18.a1_in1k", image_size=224, epochs=2)
    return SimpleNamespace(
        settings=SimpleNamespace(pool="small", trials=trials),
        splits=SimpleNamespace(fit=table, select=table, report=table),
        space=SimpleNamespace(
            backbones=("a", "b"),
            baseline="resnet18.a1_in1k",
            baseline_recipe=lambda: recipe,
            precision="fp32",
        ),
        runtime=SimpleNamespace(device="cpu"),
        rejected=(),
        notes=notes,
    )


def introduction(of: Any) -> str:
    stream = io.StringIO()
    introduce(of, Path("results/x"), Console(file=stream, width=40))
    return stream.getvalue()


def test_the_baseline_and_its_own_epochs_are_named() -> None:
    text = introduction(plan(9))
    assert "2 backbones of pool 'small'" in text
    assert "baseline (resnet18.a1_in1k at 224 px, always 2 epochs)" in text


def test_a_note_stays_on_its_line_when_it_is_not_a_terminal() -> None:
    note = "one [note] that is much longer than forty columns are"
    assert note in introduction(plan(9, (note,))).splitlines()


@pytest.mark.parametrize(("trials", "told"), [(2, True), (3, True), (4, False)])
def test_too_few_trials_to_search_are_told(trials: int, told: bool) -> None:
    assert ("ends before anything is searched" in introduction(plan(trials))) is told


def test_without_a_complete_candidate_there_is_no_table() -> None:
    stream = io.StringIO()
    print_top(NO_ROWS, Console(file=stream))
    assert stream.getvalue() == "no candidate is complete yet\n"
