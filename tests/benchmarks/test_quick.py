"""Every benchmark runs; its figures are for a quiet machine."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.benchmarks.bench_epoch import BEFORE
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
            ["bench_alterations.py"],
            marks=pytest.mark.skipif(
                importlib.util.find_spec("kornia") is None, reason="kornia is compared with"
            ),
        ),
        pytest.param(
            ["bench_epoch.py", "seconds", "train_seconds", "score_seconds"],
            marks=pytest.mark.skipif(not has_history(), reason=f"commit {BEFORE} is not at hand"),
        ),
        ["bench_anytime.py", "seconds", "auc_select", "auc_report"],
        ["bench_audit.py"],
        ["bench_centre.py", "auc_select", "auc_report"],
        ["bench_clusters.py", "purity", "mutual_information"],
        ["bench_coverage.py", "coverage", "median_width", "milliseconds"],
        ["bench_criteria.py", "auc_unseen", "auc_stress", "report_unseen"],
        ["bench_options.py", "auc_seen", "auc_unseen", "auc_stress"],
        ["bench_leaks.py", "auc_of_headers"],
        ["bench_memory.py"],
        ["bench_objectives.py", "auc", "auc_seen", "auc_stress"],
        ["bench_pipeline.py", "images_per_second", "times_challenge"],
        ["bench_probe.py", "auc", "seconds"],
        ["bench_scheduler.py", "auc", "difference", "best_share"],
        ["bench_shrinking.py", "auc_select", "auc_report"],
        ["record_curves.py", "seconds", "score_seconds", "auc_select", "auc_report"],
    ],
    ids=lambda command: command[0],
)
def test_it_runs(command: list[str], tmp_path: Path) -> None:
    """And what it writes has a figure in these columns."""
    name, *columns = command
    output = tmp_path / "found.csv"
    written = ["--output", str(output)] if columns else []
    module = f"tests.benchmarks.{Path(name).stem}"
    process = Process(tmp_path / "told.txt", module, "--quick", *written)
    assert process.wait() == 0, process.told[-2000:]
    assert "A new study" not in process.told
    if columns:
        figures = pd.read_csv(output)
        assert len(figures)
        if name == "bench_anytime.py":
            # Before the end of a training, report is not scored.
            is_end = figures["images"] == figures["images"].max()
            assert figures["auc_report"].notna().equals(is_end)
            figures = figures.fillna({"auc_report": 0.5})
        assert np.isfinite(figures[columns].to_numpy()).all()
