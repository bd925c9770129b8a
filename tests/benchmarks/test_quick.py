"""Every benchmark runs; its figures are for a quiet machine."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.bench_epoch import BEFORE

FOLDER = Path(__file__).parent


def has_history() -> bool:
    """Whether the state that an epoch is compared with is at hand."""
    found = subprocess.run(
        ["git", "cat-file", "-e", BEFORE], cwd=FOLDER, capture_output=True, check=False
    )
    return found.returncode == 0


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            ["bench_alterations.py", "--quick"],
            marks=pytest.mark.skipif(
                importlib.util.find_spec("kornia") is None, reason="kornia is compared with"
            ),
        ),
        pytest.param(
            ["bench_epoch.py", "--quick"],
            marks=pytest.mark.skipif(not has_history(), reason=f"commit {BEFORE} is not at hand"),
        ),
        ["bench_anytime.py", "--quick"],
        ["bench_memory.py", "--quick"],
        ["bench_pipeline.py", "--quick"],
    ],
    ids=lambda command: command[0],
)
def test_it_runs(command: list[str]) -> None:
    told = subprocess.run(
        [sys.executable, str(FOLDER / command[0]), *command[1:]],
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    assert "nan" not in told.stdout
