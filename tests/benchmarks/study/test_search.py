from __future__ import annotations

from datetime import timedelta
from math import inf, nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from search.settings.search import SearchSettings
from tests.benchmarks.study.bench_search import COLUMNS, GIVEN, check, main
from tests.benchmarks.study.real.arms import ARMS
from tests.benchmarks.study.real.summary import summary
from tests.benchmarks.study.replay.arms import A_FIFTH, OURS
from tests.processes import Process


@pytest.mark.usefixtures("blank_figures")
def test_every_arm_ends_with_a_network_that_is_scored_on_report(tmp_path: Path) -> None:
    """In this process: its figures need not be drawn."""
    output, folder = tmp_path / "search.csv", tmp_path / "runs"
    main(output=output, folder=folder, quick=True)
    found = pd.read_csv(output)
    assert found.columns.tolist() == COLUMNS
    assert found["arm"].unique().tolist() == [OURS, A_FIFTH, *ARMS]
    for arm, rows in found.groupby("arm"):
        looks, end = rows.iloc[:-1], rows.iloc[-1]
        assert looks["auc_report"].isna().all(), "report was looked at on the way"
        assert 0 < end["auc_report"] < 1
        assert rows["seconds"].is_monotonic_increasing, arm
        assert looks["best_auc"].is_monotonic_increasing
    assert len(list((tmp_path / "search").glob("*.csv"))) == len(ARMS) + 2
    before = output.read_bytes()
    main(output=output, folder=folder, quick=True)
    assert output.read_bytes() == before, "an arm was trained again"
    given = folder / "hand-0" / GIVEN
    given.write_text(given.read_text().replace("seconds: 1.0", "seconds: 3600.0"))
    with pytest.raises(SystemExit, match=r"hand-0 must have been given .* found other seconds"):
        main(folder=folder, quick=True)


@pytest.mark.parametrize(
    ("settings", "arms", "message"),
    [
        (SearchSettings(), (OURS,), "--timeout must say how long each arm has"),
        (SearchSettings(timeout=timedelta(hours=1)), ("lunch",), "found lunch"),
        (
            SearchSettings(timeout=timedelta(hours=1), objective="mean"),
            (OURS,),
            "--objective must be auc, which all arms go by, found mean",
        ),
    ],
)
def test_what_no_arm_could_do_is_refused(
    settings: SearchSettings, arms: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit, match=message):
        check(settings, arms)


def test_its_command_line_can_be_read(tmp_path: Path) -> None:
    process = Process(tmp_path / "told.txt", "tests.benchmarks.study.bench_search", "--help")
    assert process.wait() == 0, process.told
    assert "--arms" in process.told


def test_ours_is_compared_with_every_arm() -> None:
    table = pd.DataFrame({"target": [0, 1] * 20, "group": [f"g{row // 2}" for row in range(40)]})
    right = table["target"].to_numpy(float)
    chance = np.random.default_rng(0).random(40)
    chance[3] = nan  # an image that could not be read counts for neither
    rows = pd.DataFrame(
        [
            (OURS, 0, 10.0, 0.7, nan),
            (OURS, 0, 30.0, 0.8, nan),
            (OURS, 0, 100.0, 0.78, 1.0),
            ("hand", 0, 60.0, 0.75, nan),
            ("hand", 0, 100.0, 0.6, 0.5),
            ("optuna", 0, 60.0, 0.95, nan),
            ("optuna", 0, 100.0, 0.7, 1.0),
        ],
        columns=COLUMNS,
    )
    scores = {(OURS, 0): right, ("hand", 0): chance, ("optuna", 0): right}
    found = summary(rows, scores, {0: table}, resamplings=200).set_index("arm")
    assert found.loc["hand", "when_as_good"] == pytest.approx(0.3)
    assert found.loc["optuna", "when_as_good"] == inf
    assert found.loc["optuna", "above_report"] == 0
    low, mean = found.loc["hand", ["above_report_low", "above_report"]]
    assert 0 < low < mean
    assert np.isnan(found.loc[OURS, "above_report"])


def test_seeds_that_divide_the_same_images_draw_the_same_groups() -> None:
    """The same halves for every seed: three of them tell no more than one."""
    table = pd.DataFrame({"target": [0, 1] * 40, "group": [f"g{row // 2}" for row in range(80)]})
    generator = np.random.default_rng(0)
    right, less = (table["target"] + generator.normal(0, sd, 80) for sd in (0.5, 1.0))
    seeds = range(3)
    rows = pd.DataFrame(
        [(arm, seed, 9.0, 0.7, 0.7) for seed in seeds for arm in (OURS, "hand") for _ in range(2)],
        columns=COLUMNS,
    )
    scores = {(OURS, seed): right.to_numpy() for seed in seeds}
    scores |= {("hand", seed): less.to_numpy() for seed in seeds}
    widths = []
    for count in (1, 3):
        tables = dict.fromkeys(range(count), table)
        line = summary(rows, scores, tables, resamplings=200).set_index("arm").loc["hand"]
        assert line["above_report_least"] == line["above_report_most"] == line["above_report"]
        widths.append(line["above_report_high"] - line["above_report_low"])
    assert widths[0] == widths[1]
