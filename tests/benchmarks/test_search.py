from __future__ import annotations

from math import inf, nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.benchmarks.bench_search import ARMS, COLUMNS, OURS, main, summary


@pytest.mark.usefixtures("blank_figures")
def test_every_arm_ends_with_a_network_that_is_scored_on_report(tmp_path: Path) -> None:
    """In this process: its figures need not be drawn."""
    output, folder = tmp_path / "search.csv", tmp_path / "runs"
    main(output=output, folder=folder, quick=True)
    found = pd.read_csv(output)
    assert found.columns.tolist() == COLUMNS
    assert found["arm"].unique().tolist() == [OURS, *ARMS]
    for arm, rows in found.groupby("arm"):
        looks, end = rows.iloc[:-1], rows.iloc[-1]
        assert looks["auc_report"].isna().all(), "report was looked at on the way"
        assert 0 < end["auc_report"] < 1
        assert rows["seconds"].is_monotonic_increasing, arm
        assert looks["best_auc"].is_monotonic_increasing
    assert len(list((tmp_path / "search").glob("*.csv"))) == len(ARMS) + 1
    before = output.read_bytes()
    main(output=output, folder=folder, quick=True)
    assert output.read_bytes() == before, "an arm was trained again"


def test_ours_is_compared_with_every_arm() -> None:
    table = pd.DataFrame({"target": [0, 1] * 20, "group": [f"g{row // 2}" for row in range(40)]})
    right = table["target"].to_numpy(float)
    generator = np.random.default_rng(0)
    rows = pd.DataFrame(
        [
            (OURS, 0, 10.0, 0.7, nan),
            (OURS, 0, 30.0, 0.8, nan),
            (OURS, 0, 100.0, 0.9, 1.0),
            ("hand", 0, 100.0, 0.75, 0.5),
            ("optuna", 0, 100.0, 0.95, 1.0),
        ],
        columns=COLUMNS,
    )
    ends = [(OURS, 0, right), ("hand", 0, generator.random(40)), ("optuna", 0, right)]
    found = summary(rows, ends, {0: table}, resamplings=200).set_index("arm")
    assert found.loc["hand", "share_of_time"] == pytest.approx(0.3)
    assert found.loc["optuna", "share_of_time"] == inf
    assert found.loc["optuna", ["above_report", "above_low", "above_high"]].tolist() == [0, 0, 0]
    assert 0 < found.loc["hand", "above_low"] < found.loc["hand", "above_report"]
