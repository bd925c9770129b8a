"""`ensemble stress`: the search's own room, with every model that merging knows."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from ensemble.cli import main
from ensemble.network.model import SPEC, HeadSpec, ModelSpec, build_model
from ensemble.submission.manifest import MANIFEST
from search.cli import main as search_main
from search.training.candidate import RECIPE as RECIPE_FILE
from search.training.candidate import WEIGHTS, Candidate, copy_state, save_weights
from search.validation.stress.stress import COLUMNS, STRESS

pytestmark = pytest.mark.usefixtures("blank_figures")


def test_a_fused_network_is_tried_on_its_runs_select_split(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = tuple(Candidate(run_folder / "candidates" / n).recipe for n in ("0000", "0002"))
    spec = ModelSpec("fused", recipes, HeadSpec("weights"))
    folder = run_folder / "merged" / "fused"
    folder.mkdir(parents=True)
    spec.save(folder / SPEC)
    save_weights(folder / WEIGHTS, copy_state(build_model(spec)))
    command = ["stress", "--model", str(folder), "--device", "cpu", "--workers", "0"]
    assert search_main(command) == 2
    assert f"has no {RECIPE_FILE}" in capsys.readouterr().err
    assert main([*command, "--limit", "10"]) == 0
    rows = pd.read_csv(folder / STRESS)
    assert tuple(rows.columns) == COLUMNS
    assert (rows["images"] == 10).all()


def test_a_submission_stays_as_it_is(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidate = run_folder / "candidates" / "0000"
    (candidate / MANIFEST).write_text("{}", encoding="utf-8")
    assert main(["stress", "--model", str(candidate), "--device", "cpu"]) == 2
    assert "a submission must stay as it is" in capsys.readouterr().err
    assert not (candidate / STRESS).exists()
