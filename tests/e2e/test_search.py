"""The search as a user runs it, on real image files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
import yaml
from filelock import FileLock

from search.cli import main
from search.data.batches import eval_loader
from search.data.inputs import read_splits
from search.settings import load_settings
from search.study.storage import open_storage
from search.training.candidate import Candidate
from search.training.device import Runtime
from search.training.scoring import predict
from tests.e2e.conftest import QUICK, DataSet, make_data_set

MEASURED = ["train_seconds", "images_per_second"]


def leaderboard(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "leaderboard.csv", dtype={"candidate": str})


def study_of(run: Path) -> optuna.Study:
    return optuna.load_study(study_name=run.name, storage=open_storage(run, None))


def test_a_run_leaves_everything_it_promises(finished_run: Path) -> None:
    for name in (
        "settings.yaml",
        "study.journal",
        "leaderboard.csv",
        "report.html",
        "candidates/0000/model.safetensors",
        "candidates/0000/recipe.yaml",
        "candidates/0000/metrics.json",
        "candidates/0000/history.csv",
        "candidates/0000/scores.csv",
        "candidates/0000/scores_report.csv",
    ):
        assert (finished_run / name).stat().st_size > 0, name
    assert len(list((finished_run / "plots").glob("*.png"))) >= 5
    table = leaderboard(finished_run)
    assert table["state"].tolist() == ["complete"] * 4
    assert table["rank"].tolist() == [1, 2, 3, 4]
    assert table["auc"].is_monotonic_decreasing
    assert table["auc_report"].notna().all()
    assert (table["auc_low"] <= table["auc"]).all()
    assert (table["auc"] <= table["auc_high"]).all()
    assert table["pretraining"].str.contains("scratch").all()


def test_a_loaded_candidate_gives_the_scores_on_disk(finished_run: Path) -> None:
    splits = read_splits(load_settings(finished_run))
    runtime = Runtime(torch.device("cpu"))
    for name in ("0000", "0001"):
        candidate = Candidate(finished_run / "candidates" / name)
        network = candidate.load()
        for table, scores in (
            (splits.select, candidate.scores),
            (splits.report, candidate.report_scores),
        ):
            assert scores is not None
            # Another batch size than the search's: scores must not depend on it.
            loader = eval_loader(table, network.image_size, batch_size=5)
            predictions = predict(network, loader, runtime)
            assert scores["img_name"].tolist() == table["img_name"].tolist()
            np.testing.assert_allclose(scores["y_pred"], predictions.scores, atol=1e-5)


def test_the_baseline_is_the_challenges(finished_run: Path) -> None:
    baseline = Candidate(finished_run / "candidates" / "0000")
    recipe = baseline.recipe
    assert recipe.architecture == "resnet18"
    assert (recipe.optimizer, recipe.schedule, recipe.learning_rate) == ("adam", "step", 5e-3)
    assert (recipe.epochs, recipe.batch_size, recipe.augmentation) == (2, 40, "baseline")


def test_the_same_seed_gives_the_same_leaderboard(
    finished_run: Path, data_set: DataSet, tmp_path: Path
) -> None:
    arguments = [
        "run",
        *data_set.flags,
        *QUICK,
        "--epochs",
        "2",
        "--trials",
        "4",
        "--pruner",
        "none",
    ]
    assert main([*arguments, "--out", str(tmp_path / "again")]) == 0
    first = leaderboard(finished_run).drop(columns=MEASURED)
    again = leaderboard(tmp_path / "again").drop(columns=MEASURED)
    pd.testing.assert_frame_equal(first, again, check_exact=True)


def test_more_trials_resume_and_repeat_nothing(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "finished"
    shutil.copytree(finished_run, run)
    before = leaderboard(run)
    assert main(["run", "--out", str(run), "--trials", "5", "--keep", "1"]) == 0
    after = leaderboard(run)
    assert len(after) == 5
    kept = after[after["candidate"].isin(before["candidate"])]
    assert sorted(kept["auc"]) == sorted(before["auc"])
    # The best one and the baseline keep their weights, everyone keeps the rest.
    with_weights = {path.parent.name for path in run.glob("candidates/*/model.safetensors")}
    best = after[after["candidate"] != "0000"].iloc[0]["candidate"]
    assert with_weights == {"0000", best}
    assert len(list(run.glob("candidates/*/scores.csv"))) == 5
    before = leaderboard(run)
    assert main(["run", "--out", str(run)]) == 0
    pd.testing.assert_frame_equal(before, leaderboard(run))


def test_a_run_of_other_data_is_refused(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "finished"
    shutil.copytree(finished_run, run)
    data = yaml.safe_load((run / "data.yaml").read_text())
    data["fingerprint"] = "0" * 64
    (run / "data.yaml").write_text(yaml.safe_dump(data))
    assert main(["run", "--out", str(run), "--trials", "9"]) == 2


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "search", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def wait_for_trial(process: subprocess.Popen[str], name: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"trial {name}"):
            time.sleep(1)
            return
    raise AssertionError("the search ended before the trial began")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_search_resumes_and_loses_nothing(
    number: signal.Signals, data_set: DataSet, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [
        "run",
        *data_set.flags,
        *QUICK,
        "--epochs",
        "300",
        "--trials",
        "2",
        "--out",
        str(run),
    ]
    process = start(arguments)
    wait_for_trial(process, "0001")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        assert "resume with: python -m search run --out" in output
        assert (run / "report.html").exists()
        table = leaderboard(run)
        assert table["state"].tolist() == ["complete", "failed"]
        assert "interrupted" in table["reason"].iloc[1]
    baseline = (run / "candidates" / "0000" / "metrics.json").read_text()
    process = start(["run", "--out", str(run)])
    wait_for_trial(process, "0002")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    study = study_of(run)
    states = [trial.state.name for trial in study.trials]
    assert states.count("RUNNING") == 0
    assert states.count("COMPLETE") == 1
    # The trials that were stopped are queued again with the very same parameters.
    stopped = [trial for trial in study.trials if trial.user_attrs.get("interrupted")]
    queued = [t.system_attrs.get("fixed_params") for t in study.trials if not t.state.is_finished()]
    assert len(stopped) == 2
    assert all(trial.params in queued for trial in stopped)
    assert (run / "candidates" / "0000" / "metrics.json").read_text() == baseline


def test_forbidden_backbones_are_told_and_never_trained(
    data_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = yaml.safe_load((Path(__file__).parents[2] / "backbones.yaml").read_text())
    catalogue["budget"] = 350_000
    path = tmp_path / "backbones.yaml"
    path.write_text(yaml.safe_dump(catalogue))
    run = tmp_path / "run"
    arguments = [
        "run",
        *data_set.flags,
        *QUICK,
        "--epochs",
        "2",
        "--trials",
        "1",
        "--out",
        str(run),
    ]
    assert main([*arguments, "--backbones", str(path)]) == 0
    table = leaderboard(run)
    rejected = table[table["state"] == "rejected"]
    assert len(rejected) > 0
    assert (rejected["params_exact"] > 350_000).all()
    assert rejected["reason"].str.contains("over the budget").all()
    assert rejected["auc"].isna().all()
    for trial in study_of(run).trials:
        if trial.user_attrs.get("state") == "rejected":
            assert max(trial.system_attrs["constraints"]) > 0
            assert trial.state.name == "PRUNED"
    assert "over the budget" in capsys.readouterr().out


def test_a_nan_loss_fails_the_trial_and_not_the_study(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from search.training.loss import ClassificationLoss

    plain = ClassificationLoss.__call__
    calls = {"count": 0}

    def sometimes_nan(self: ClassificationLoss, network: torch.nn.Module, batch: object) -> object:
        calls["count"] += 1
        factor = float("nan") if calls["count"] == 1 else 1.0
        return plain(self, network, batch) * factor  # type: ignore[arg-type]

    monkeypatch.setattr(ClassificationLoss, "__call__", sometimes_nan)
    run = tmp_path / "run"
    arguments = [
        "run",
        *data_set.flags,
        *QUICK,
        "--epochs",
        "2",
        "--trials",
        "2",
        "--out",
        str(run),
    ]
    assert main(arguments) == 0
    table = leaderboard(run)
    assert table["state"].tolist() == ["complete", "failed"]
    assert "the loss must be finite" in table["reason"].iloc[1]


def test_broken_images_are_quarantined_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data_set(tmp_path / "data")
    (data.folder / "trainset" / "trainset003.png").write_bytes(b"broken")
    (data.folder / "valset" / "valset000.png").write_bytes(b"")
    run = tmp_path / "run"
    arguments = ["run", *data.flags, *QUICK, "--epochs", "2", "--trials", "1", "--out", str(run)]
    assert main(arguments) == 0
    quarantine = pd.read_csv(run / "quarantine.csv")
    assert set(quarantine["img_name"]) == {"trainset003.png", "valset000.png"}
    assert quarantine["reason"].str.len().min() > 5
    assert "set aside trainset003.png: " in capsys.readouterr().out


def test_many_broken_images_end_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data_set(tmp_path / "data")
    for number in range(20):
        (data.folder / "trainset" / f"trainset{number:03d}.png").write_bytes(b"broken")
    run = tmp_path / "run"
    arguments = ["run", *data.flags, *QUICK, "--epochs", "2", "--trials", "1", "--out", str(run)]
    assert main(arguments) == 2
    assert "5%" in capsys.readouterr().err
    assert (run / "quarantine.csv").exists()
    assert (run / "leaderboard.csv").exists()


def test_a_broken_report_split_is_told_after_everything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data_set(tmp_path / "data")
    arguments = ["run", *data.flags, *QUICK, "--epochs", "2", "--trials", "1", "--out"]
    sound, run = tmp_path / "sound", tmp_path / "run"
    assert main([*arguments, str(sound)]) == 0
    for path in read_splits(load_settings(sound)).report["path"]:
        Path(path).write_bytes(b"broken")
    capsys.readouterr()
    assert main([*arguments, str(run)]) == 2
    told = capsys.readouterr()
    assert "5%" in told.err
    assert "Best candidates" in told.out
    assert (run / "report.html").exists()
    assert leaderboard(run)["state"].tolist() == ["complete"]


def test_the_time_limit_ends_the_search_with_a_leaderboard(
    data_set: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = ["run", *data_set.flags, *QUICK, "--epochs", "1000", "--out", str(run)]
    started = time.monotonic()
    assert main([*arguments, "--timeout", "8s"]) == 0
    assert time.monotonic() - started < 60
    assert "resume with: python -m search run --out" in capsys.readouterr().out
    assert len(leaderboard(run)) >= 1
    assert (run / "report.html").exists()


def test_the_baseline_command_adds_a_candidate(data_set: DataSet, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["baseline", *data_set.flags, *QUICK, "--out", str(run)]) == 0
    table = leaderboard(run)
    assert table["backbone"].tolist() == ["resnet18.a1_in1k"]
    assert main(["run", "--out", str(run), "--trials", "2"]) == 0
    assert len(leaderboard(run)) == 2


def test_the_report_is_written_anew(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "finished"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "plots")
    (run / "report.html").unlink()
    (run / "leaderboard.csv").unlink()
    assert main(["report", "--out", str(run)]) == 0
    pd.testing.assert_frame_equal(leaderboard(run), leaderboard(finished_run))
    assert "onefold" in (run / "report.html").read_text()


def test_a_report_of_a_running_search_leaves_the_report_split_alone(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "renamed"
    shutil.copytree(finished_run, run)
    for scores in run.glob("candidates/*/scores_report.csv"):
        scores.unlink()
    with FileLock(run / ".lock"):
        assert main(["report", "--out", str(run)]) == 0
    assert "the search is running" in capsys.readouterr().out
    assert not list(run.glob("candidates/*/scores_report.csv"))
    assert len(leaderboard(run)) == len(leaderboard(finished_run))


@pytest.mark.parametrize("state", ["notes", "artifacts"])
def test_trials_carry_their_note_and_artifacts(finished_run: Path, state: str) -> None:
    study = study_of(finished_run)
    trial = study.trials[1]
    # The dashboard keeps those of all trials with the study, which a told trial does not close.
    attributes = study._storage.get_study_system_attrs(study._study_id)
    if state == "notes":
        assert "Verdict of the rules: allowed" in json.dumps(attributes)
        assert f"{trial.value:.4f}" in json.dumps(attributes)
    else:
        prefix = f"dashboard:artifacts:{trial._trial_id}:"
        metas = [json.loads(value) for key, value in attributes.items() if key.startswith(prefix)]
        names = sorted(meta["filename"] for meta in metas)
        assert names == ["history.csv", "history.png", "roc.png"]


def test_a_one_class_list_is_refused(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shared_data / "multiffdi-sample"
    (labels,) = folder.glob("trainset*label*")
    (images,) = (path for path in folder.iterdir() if path.is_dir() and "train" in path.name)
    out = tmp_path / "run"
    arguments = ["run", "--train-labels", str(labels), "--train-images", str(images)]
    assert main([*arguments, "--weights", "none", "--out", str(out)]) == 2
    assert "found only fake (1) ones among 5" in capsys.readouterr().err
    assert not out.exists()
