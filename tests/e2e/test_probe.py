"""A search that starts from weights probes its pool before the first trial."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

from search.cli import main
from search.report.probes import probed
from search.study import probing
from search.study.opening import POOL
from search.study.storage import open_storage
from tests.e2e.conftest import BACKBONES, QUICK, DataSet

NAMES = ["test_resnet.r160_in1k", "test_vit.r160_in1k"]


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory, data_set: DataSet) -> list[str]:
    """Of a search whose weights are files, with what a random start holds."""
    folder = tmp_path_factory.mktemp("weights")
    for name in NAMES:
        torch.manual_seed(0)
        state = timm.create_model(name.partition(".")[0]).state_dict()
        save_file(dict(state), folder / f"{name}.safetensors")
    catalogue = folder / "backbones.yaml"
    catalogue.write_text(BACKBONES)
    quick = [value for value in QUICK if value not in ("--weights", "none")]
    return [
        *("run", *data_set.flags, *quick, "--pool", "tiny", "--backbones", str(catalogue)),
        *("--weights-dir", str(folder), "--epochs", "1"),
    ]


def study_of(run: Path) -> optuna.Study:
    return optuna.load_study(study_name=run.name, storage=open_storage(run, None))


def test_the_pool_is_probed_before_the_first_trial_and_never_again(
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    assert main([*flags, "--trials", "2", "--out", str(run)]) == 0
    told = capsys.readouterr().out
    assert told.index("probing 2 of 2 backbones") < told.index("trial 0000")
    table = pd.read_csv(run / "probe.csv")
    assert sorted(table["backbone"]) == sorted(NAMES)
    assert table["kept"].all()
    assert table["auc"].between(0, 1).all()
    study = study_of(run)
    best_first = [probe.backbone for probe in probed(run, pytest.fail)]
    assert study.user_attrs[POOL] == best_first
    defaults = [trial.params["backbone"] for trial in study.trials if trial.params]
    assert defaults == best_first
    assert "Probe of the backbones" in (run / "report.html").read_text()
    # Resumed, even without the file, it keeps to what was decided.
    monkeypatch.setattr(probing, "_probed", None)
    (run / "probe.csv").unlink()
    assert main(["run", "--out", str(run), "--trials", "3"]) == 0
    assert "probing" not in capsys.readouterr().out
    assert len(study_of(run).trials) == 3


def test_a_pool_that_was_cut_stays_cut(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided = probing.settled

    def cut(*arguments: Any) -> Any:
        first, second = decided(*arguments)
        return first, probing.replace(second, kept=False, reason="it is slow")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(probing, "settled", cut)
        assert main([*flags, "--trials", "2", "--out", str(run)]) == 0
    assert main(["run", "--out", str(run), "--trials", "4"]) == 0
    trials = study_of(run).trials
    assert len(trials) == 4
    assert {trial.params["backbone"] for trial in trials if trial.params} == {NAMES[0]}


def test_it_can_be_left_out(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*flags, "--no-probe", "--trials", "1", "--out", str(run)]) == 0
    assert "probing" not in capsys.readouterr().out
    assert not (run / "probe.csv").exists()


def test_ctrl_c_amid_the_probe_loses_nothing(
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    features = probing.frozen_features
    calls: list[int] = []

    def pressed(*arguments: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return features(*arguments)

    monkeypatch.setattr(probing, "frozen_features", pressed)
    assert main([*flags, "--trials", "2", "--out", str(run)]) == 130
    assert "resume with: python -m search run" in capsys.readouterr().out
    (first,) = probed(run, pytest.fail)
    assert (first.backbone, first.kept) == (NAMES[0], None)
    assert study_of(run).trials == []
    assert main(["run", "--out", str(run)]) == 0
    assert "probing 1 of 2 backbones" in capsys.readouterr().out
    assert len(calls) == 3
    assert len(study_of(run).trials) == 3  # one of them waits
