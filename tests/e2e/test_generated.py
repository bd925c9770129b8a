"""From generated samples to a run that is trained on them, through the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from search.cli import main
from tests.e2e.conftest import make_data_set


def test_a_search_trains_on_samples_and_knows_them_again(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data_set(tmp_path / "data")
    generated, run = tmp_path / "generated", tmp_path / "run"
    assert main(["expand", *data.flags, "--count", "10", "--out", str(generated)]) == 0
    search = ["run", *data.flags, *quick, "--out", str(run), "--trials", "1", "--epochs", "1"]
    assert main([*search, "--generated", str(generated)]) == 0
    saved = yaml.safe_load((run / "data.yaml").read_text("utf-8"))
    assert saved["generated"]["kinds"] == {"self-blended": 5, "mixed": 5}
    assert saved["splits"]["fit"]["images"] == 64 + 10
    assert saved["splits"]["select"]["images"] + saved["splits"]["report"]["images"] == 48
    names = pd.read_csv(run / "candidates" / "0000" / "scores.csv")["img_name"]
    assert not names.str.startswith("generated/").any()
    assert "10 (5 self-blended, 5 mixed), made of its other" in (run / "report.html").read_text()
    manifest = generated / "manifest.json"
    assert (run / "generated" / "manifest.json").read_bytes() == manifest.read_bytes()
    capsys.readouterr()

    # Moved, and made again from the run's own copy, it is the same; without it, it is another.
    shutil.rmtree(generated)
    assert main(["run", "--out", str(run)]) == 2
    assert "--from a copy of the manifest makes them again" in capsys.readouterr().err
    copy, elsewhere = str(run / "generated" / "manifest.json"), str(tmp_path / "elsewhere")
    assert main(["expand", "--run", str(run), "--from", copy, "--out", elsewhere]) == 0
    assert main(["run", "--out", str(run), "--generated", elsewhere]) == 0
    capsys.readouterr()
    other = str(tmp_path / "other")
    assert main(["expand", "--run", str(run), "--seed", "1", "--count", "10", "--out", other]) == 0
    assert main(["run", "--out", str(run), "--generated", other]) == 2
    assert "holds a search on another data set" in capsys.readouterr().err
