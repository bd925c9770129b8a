"""The short version of `kill.py --kills 200`: a kill amid each of five kinds of work. Around the
ledger tests/ensemble/submission/test_submit.py kills."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.faults.kill import main

PHASES = (
    *("training", "checkpoint write", "telling"),
    *("joint training", "packaging"),
)


@pytest.mark.timeout(900)  # 90 s on two slow cores, without coverage
def test_nothing_is_lost_wherever_a_process_is_killed(tmp_path: Path) -> None:
    output = tmp_path / "faults.csv"
    told = ("--kills", str(len(PHASES)), "--phases", ",".join(PHASES), "--signals", "KILL")
    # One of the five is left paused.
    size = ("--trials", "5", "--epochs", "2", "--work", str(tmp_path / "work"))
    assert main([*told, *size, "--output", str(output)]) == 0
    table = pd.read_csv(output)
    assert sorted(table["phase"]) == sorted(PHASES)
    assert table["kills"].tolist() == [1] * len(PHASES)
    for column in ("trials_lost", "trials_repeated", "broken_promises"):
        assert table[column].tolist() == [0] * len(PHASES)


@pytest.mark.parametrize(
    ("flag", "found"), [("--phases", "training,lunch"), ("--signals", "KILL,lunch")]
)
def test_unknown_names_are_told_in_one_line(
    flag: str, found: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([flag, found])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{flag} must be among" in last
    assert last.endswith("found 'lunch'")
