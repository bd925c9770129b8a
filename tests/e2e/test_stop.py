"""SIGTERM while a network is at work: no command waits for the end of a batch."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor, nn

from ensemble.cli import main as merge
from search.cli import main
from search.machine.interruption import SECONDS_BETWEEN_LAYERS
from search.training.candidate import REPORT_SCORES

GOES_ON = "the same command goes on from there"


@pytest.mark.parametrize(
    ("begin", "arguments", "told"),
    [
        (main, ["run", "--out", "RUN", "--trials", "12"], "interrupted: what was begun goes on"),
        (main, ["refit", "--run", "RUN"], GOES_ON),
        (main, ["report", "--out", "RUN"], "not scored on report: "),
        (merge, ["compare", "--run", "RUN", "--device", "cpu"], GOES_ON),
        (merge, ["soup", "--run", "RUN", "--device", "cpu"], "the same command starts anew"),
        (merge, ["fuse", "--run", "RUN", "--device", "cpu"], "the same command starts anew"),
        (merge, ["distill", "--run", "RUN", "--device", "cpu"], GOES_ON),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_stop_is_obeyed_after_the_layer_under_way(
    begin: Callable[[list[str]], int],
    arguments: list[str],
    told: str,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    if arguments[0] in ("report", "compare"):
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

    with monkeypatch.context() as patch:
        patch.setattr(nn.Conv2d, "forward", struck)
        assert begin([str(run) if a == "RUN" else a for a in arguments]) == 130
    assert len(layers) == 1
    assert told in " ".join(capsys.readouterr().out.split())
