"""Every benchmark runs; its figures are for a quiet machine."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.benchmarks.pixels.bench_epoch import BEFORE
from tests.processes import Process

FOLDER = Path(__file__).parent


def has_history() -> bool:
    """Whether the state that an epoch is compared with is at hand."""
    found = subprocess.run(
        ["git", "cat-file", "-e", BEFORE], cwd=FOLDER, capture_output=True, check=False
    )
    return found.returncode == 0


@pytest.mark.timeout(900)  # the longest takes 40 s on two slow cores
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            ["pixels.bench_alterations"],
            marks=pytest.mark.skipif(
                importlib.util.find_spec("kornia") is None, reason="kornia is compared with"
            ),
        ),
        pytest.param(
            ["pixels.bench_epoch", "seconds", "train_seconds", "score_seconds"],
            marks=pytest.mark.skipif(not has_history(), reason=f"commit {BEFORE} is not at hand"),
        ),
        ["study.bench_anytime", "seconds", "auc_select", "auc_report"],
        ["validation.bench_audit"],
        ["study.bench_centre", "auc_select", "auc_report"],
        ["validation.bench_clusters", "purity", "mutual_information"],
        ["validation.bench_coverage", "coverage", "median_width", "milliseconds"],
        ["validation.bench_criteria", "auc_unseen", "auc_stress", "report_unseen"],
        ["validation.bench_options", "auc_seen", "auc_unseen", "auc_stress"],
        ["validation.bench_leaks", "auc_of_headers"],
        ["pixels.bench_memory"],
        ["validation.bench_objectives", "auc", "auc_seen", "auc_stress"],
        ["pixels.bench_pipeline", "images_per_second", "times_challenge"],
        ["study.bench_probe", "auc", "seconds"],
        ["study.bench_scheduler", "auc", "difference", "best_share"],
        ["pixels.bench_shrinking", "auc_select", "auc_report"],
        ["study.record_curves", "seconds", "score_seconds", "auc_select", "auc_report"],
    ],
    ids=lambda command: command[0],
)
def test_it_runs(command: list[str], tmp_path: Path) -> None:
    """And what it writes has a figure in these columns."""
    name, *columns = command
    output = tmp_path / "found.csv"
    written = ["--output", str(output)] if columns else []
    module = f"tests.benchmarks.{name}"
    process = Process(tmp_path / "told.txt", module, "--quick", *written)
    assert process.wait() == 0, process.told[-2000:]
    assert "A new study" not in process.told
    if columns:
        figures = pd.read_csv(output)
        assert len(figures)
        if name == "study.bench_anytime":
            # Before the end of a training, report is not scored.
            is_end = figures["images"] == figures["images"].max()
            assert figures["auc_report"].notna().equals(is_end)
            figures = figures.fillna({"auc_report": 0.5})
        assert np.isfinite(figures[columns].to_numpy()).all()
