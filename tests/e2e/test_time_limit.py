"""`--timeout`, on a clock that goes on only where a test says so."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import search.data.inputs
import search.run.search
from search.cli import main
from search.validation.forgeries import finding
from search.validation.forgeries.describing import Frequencies
from tests.e2e.conftest import DataSet
from tests.hub import Hub
from tests.stopping import Clock

POOL = ("test_resnet.r160_in1k", "test_vit.r160_in1k")


def with_weights_of_the_hub(quick: list[str]) -> list[str]:
    flags = list(quick)
    flags[flags.index("--weights") + 1] = "hub"
    return flags


@pytest.mark.parametrize("slow", ["labels", "weights", "forgeries", "leaks"])
def test_time_that_is_up_before_a_search_is_begun_leaves_nothing(
    slow: str,
    data_set: DataSet,
    quick: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only the training was bounded: a download of hours came on top."""
    clock, hub, begun = Clock(monkeypatch), Hub(POOL), list[str]()

    def late(do: Any) -> Any:
        def count(*arguments: Any, **options: Any) -> Any:
            begun.append(slow)
            return do(*arguments, **options)

        return clock.taking(4000.0, count)

    monkeypatch.setattr(finding, "BATCH", 8)
    module, name = {
        "labels": (search.data.inputs, "read_labels"),
        "weights": (hub, "metadata"),
        "forgeries": (Frequencies, "forward"),
        "leaks": (search.run.search, "leak_warnings"),
    }[slow]
    monkeypatch.setattr(module, name, late(getattr(module, name)))
    hub.stand_in(monkeypatch)
    flags = with_weights_of_the_hub(quick) if slow == "weights" else quick
    split = ["--split", "unseen", "--clusters", "4"] if slow == "forgeries" else []
    # What another test described is not described again.
    split += ["--cache", str(tmp_path / "cache")]
    run = tmp_path / "run"
    arguments = ["run", *data_set.flags, *flags, *split, "--timeout", "1h", "--out", str(run)]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: --timeout must leave time to search")
    assert "found the 3600 s up before; give more" in told
    assert len(begun) == 1
    assert not hub.fetched
    assert not run.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_a_search_is_begun_ends_it_at_once(
    number: signal.Signals,
    data_set: DataSet,
    quick: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SIGTERM killed the process, and what it was writing stayed half-written."""
    before = signal.getsignal(number)

    def struck(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("it went on")

    monkeypatch.setattr(search.data.inputs, "read_labels", struck)
    run = tmp_path / "run"
    assert main(["run", *data_set.flags, *quick, "--out", str(run)]) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert signal.getsignal(number) is before
    assert not run.exists()
