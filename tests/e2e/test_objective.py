"""A search, its merging and their comparison by something else than the AUC of select."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from ensemble.cli import main as ensemble
from search.cli import main
from tests.e2e.conftest import DataSet


def metrics_of(folder: Path) -> dict[str, float]:
    content: dict[str, float] = json.loads((folder / "metrics.json").read_text("utf-8"))
    return content


def test_all_stages_go_by_the_objective(
    data_set: DataSet,
    quick: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("ensemble.compare.speed.SECONDS_PER_MEASUREMENT", 0.01)
    out = tmp_path / "run"
    flags = ["--split", "unseen", "--clusters", "4", "--objective", "mean"]
    size = ["--trials", "3", "--epochs", "2"]
    assert main(["run", *data_set.flags, *quick, *size, *flags, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "by mean AUC (--objective)" in told
    assert told.count("--objective mean is the mean of auc, auc_unseen, auc_stress.") == 1
    board = pd.read_csv(out / "leaderboard.csv", dtype={"candidate": str})
    complete = board[board["state"] == "complete"]
    assert len(complete) >= 2
    means = complete[["auc", "auc_unseen", "auc_stress"]].mean(axis=1)
    assert complete["objective"].to_numpy() == pytest.approx(means.to_numpy())
    assert complete["objective"].is_monotonic_decreasing
    assert "chose by mean AUC on select" in (out / "report.html").read_text("utf-8")
    # A search does not change what it goes by.
    assert main(["run", "--out", str(out), "--objective", "auc"]) == 2
    assert "--objective mean" in capsys.readouterr().err

    assert ensemble(["fuse", "--run", str(out), "--device", "cpu", "--workers", "0"]) == 0
    fused = metrics_of(out / "merged" / "fused")
    parts = [fused[name] for name in ("auc", "auc_unseen", "auc_stress")]
    assert fused["objective"] == pytest.approx(sum(parts) / 3)
    assert fused["objective"] >= fused["equal_weights"] - 1e-9
    assert ensemble(["compare", "--run", str(out), "--device", "cpu", "--workers", "0"]) == 0
    table = pd.read_csv(out / "comparison.csv")
    assert table["objective"].is_monotonic_decreasing
    assert set(table["objective_name"]) == {"mean"}
    assert table[["auc_unseen", "auc_stress", "objective"]].notna().all(axis=None)


def test_unseen_methods_cannot_be_gone_by_where_there_are_none(
    data_set: DataSet, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = [*data_set.flags, *quick, "--epochs", "1", "--objective", "auc_unseen"]
    assert main(["run", *flags, "--out", str(out)]) == 2
    assert "use --split unseen, or --objective auc" in capsys.readouterr().err
    assert not out.exists()
