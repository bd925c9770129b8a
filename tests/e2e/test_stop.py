"""SIGTERM while a network is at work: no command waits for the end of a batch."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from torch import Tensor, nn

from ensemble.cli import main as merge
from search.cli import main
from search.machine.interruption import SECONDS_BETWEEN_LAYERS
from search.training.candidate import REPORT_SCORES

MERGES = ("soup", "fuse", "distill")


@pytest.mark.parametrize("command", ["run", "refit", "report", *MERGES])
def test_a_stop_is_obeyed_after_the_layer_under_way(
    command: str, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    if command in ("report", *MERGES):
        for scores in run.glob(f"candidates/*/{REPORT_SCORES}"):
            scores.unlink()
    layer, layers = nn.Conv2d.forward, list[nn.Module]()

    def struck(own: nn.Conv2d, images: Tensor) -> Tensor:
        if images.device.type == "cpu":
            layers.append(own)
            if len(layers) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1.1 * SECONDS_BETWEEN_LAYERS)
        return layer(own, images)

    monkeypatch.setattr(nn.Conv2d, "forward", struck)
    where = {"run": "--out", "report": "--out"}.get(command, "--run")
    more = ["--trials", "12"] if command == "run" else []
    begin = merge if command in MERGES else main
    assert begin([command, where, str(run), *more]) == 130
    assert len(layers) == 1
