"""`search refit` as a user runs it, on copies of the finished run."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

import search.run.refit as module
import search.run.refit_plan
from ensemble.cli import main as merge
from search.cli import main
from search.report.leaderboard import read_leaderboard
from search.training.candidate import CHECKPOINT, WEIGHTS, Candidate
from search.training.recipe import Recipe
from tests.stopping import StopAfter

BASELINE = 0
"""Its number: it is begun first."""


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def refit(run: Path, *more: str) -> int:
    return main(["refit", "--run", str(run), *more])


def best(run: Path) -> str:
    table = read_leaderboard(run / "leaderboard.csv")
    searched = table[(table["state"] == "complete") & (table["trial"] != BASELINE)]
    return str(searched["candidate"].iloc[0])


def test_the_best_is_trained_longer_on_more_and_handed_in(
    run: Path, data_set: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, found = best(run), Candidate(run / "candidates" / best(run))
    assert refit(run) == 0
    told = capsys.readouterr().out
    candidate = Candidate(run / "refits" / f"refit-{name}")
    assert candidate.recipe.epochs == 2 * (found.recipe.epochs or 0)
    assert candidate.recipe.trained_on == "fit+select"
    metrics = candidate.metrics
    assert metrics["refit_of"] == name
    assert "auc" not in metrics
    assert 0 < metrics["report"]["auc"] <= 1
    assert candidate.scores.empty
    report = candidate.report_scores
    assert report is not None
    assert len(report) == 24
    assert "none on select, which it was trained on; AUC" in told
    page = (run / "report.html").read_text(encoding="utf-8")
    assert f">refit-{name}<" in page

    before = {path: path.read_bytes() for path in candidate.path.iterdir()}
    assert refit(run) == 0  # once is enough
    assert {path: path.read_bytes() for path in candidate.path.iterdir()} == before

    listed = tmp_path / "list.csv"
    labels = pd.read_csv(data_set.folder / "valset_label.txt")
    labels[["img_name"]].to_csv(listed, index=False)
    arguments = ["--run", str(run), "--device", "cpu", "--workers", "0"]
    assert merge(["compare", *arguments]) == 0
    table = pd.read_csv(run / "comparison.csv").set_index("model").loc[f"refit-{name}"]
    assert pd.isna(table["auc_select"])
    assert table["auc"] == pytest.approx(metrics["report"]["auc"])
    images = ["--images", str(data_set.folder / "valset"), "--list", str(listed)]
    model = ["--model", f"refit-{name}", "--phase", "validation"]
    assert merge(["submit", *arguments, *images, *model]) == 0
    assert merge(["verify", str(run / "submission"), *images[:2]]) == 0
    commands = (run / "submission" / "reproduce" / "commands.sh").read_text(encoding="utf-8")
    assert f"search refit --run results/run --candidate {int(name)} --on fit+select" in commands
    card = (run / "submission" / "model_card.md").read_text(encoding="utf-8")
    assert "It was trained on select, which therefore cannot measure it." in card
    assert "epochs on fit and select" in card


def test_what_was_trained_on_all_has_no_figures(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refit(run, "--on", "all", "--epochs", "1") == 0
    candidate = Candidate(run / "refits" / f"refit-{best(run)}-all")
    assert not {"auc", "report"} & candidate.metrics.keys()
    assert candidate.report_scores is None
    assert "none on report, which it was trained on" in capsys.readouterr().out
    # Nor does a report that looks for missing scores give it any.
    assert main(["report", "--out", str(run)]) == 0
    assert candidate.report_scores is None


def test_the_same_command_goes_on_as_if_it_had_never_stopped(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--on", "all", "--epochs", "2")
    assert refit(run, *flags, "--name", "unbroken") == 0
    folder = run / "refits" / "broken"
    with monkeypatch.context() as patch:
        for checks in (5, 4):
            patch.setattr(module, "Interruption", lambda *_, checks=checks: StopAfter(checks))
            assert refit(run, *flags, "--name", "broken") == 0
            assert "stopped by the test: the same command goes on" in capsys.readouterr().out
            assert (folder / CHECKPOINT).exists()
    assert refit(run, *flags, "--name", "broken") == 0
    assert not (folder / CHECKPOINT).exists()
    found, expected = (
        load_file(run / "refits" / name / WEIGHTS) for name in ("broken", "unbroken")
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_ctrl_c_ends_a_download(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was obeyed when all was fetched."""

    def fetch(*_: object, on_progress: Callable[[], None], **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        on_progress()
        raise AssertionError("it went on")

    monkeypatch.setattr(search.run.refit_plan, "check_weights", fetch)
    assert refit(run) == 130
    told = capsys.readouterr()
    assert "interrupted by the user: the same command goes on from there" in told.out
    assert told.err == "stopped\n"
    assert not (run / "refits").exists()


def test_the_time_settles_the_end(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (module, search.run.refit_plan):
        monkeypatch.setattr(room, "RESULTS_SECONDS", 0.1)
    folder = run / "refits" / "timed"
    for _ in range(10):
        # A machine that is slow all of a sudden stops in time, and goes on.
        assert refit(run, "--timeout", "3s", "--name", "timed") == 0
        if Candidate(folder).is_complete:
            break
    candidate = Candidate(folder)
    assert candidate.recipe.epochs is not None
    assert candidate.recipe.epochs > 1
    assert candidate.metrics["epochs"] == candidate.recipe.epochs
    rates = candidate.history["learning_rate"].tolist()
    assert len(rates) > 2
    # A machine that is slow at the end has no time left for the rate to fall in.
    assert rates[-1] < rates[-2] or candidate.recipe.decay_fraction == 0


@pytest.fixture(scope="module")
def own_run(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A refit locks its run, and `finished_run` is that of all processes."""
    return Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("refused") / "run"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--candidate", "77"], "--candidate must be one of the run's, found 77; choose one of"),
        (["--candidate", "0"], "0000 is the challenge's baseline; choose one of"),
        (["--candidate", "{paused}"], "must be complete, found it paused; choose one of"),
        (["--name", "a/b"], "--name must be letters, digits"),
        (["--name", "{best}"], "--name must not mean another model of the run"),
        (["--epochs", "2", "--timeout", "1h"], "--epochs and --timeout exclude each other"),
        (["--timeout", "0.001s"], "--timeout must leave"),
        (["--on", "report"], "Choose from"),
    ],
)
def test_what_cannot_be_refitted_is_told_in_one_line(
    flags: list[str], told: str, own_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = read_leaderboard(own_run / "leaderboard.csv")
    paused = int(table.index[table["state"] == "paused"][0])
    given = [flag.format(paused=paused, best=best(own_run)) for flag in flags]
    assert refit(own_run, *given) == 2
    error = capsys.readouterr().err
    assert told in " ".join(error.split())
    assert error.count("\n") == 1
    assert not (own_run / "refits").exists()


def test_a_name_is_not_taken_for_other_settings(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run / "refits" / "mine"
    shutil.copytree(run / "candidates" / best(run), folder)
    recipe = Recipe.load(folder / "recipe.yaml")
    content = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    content["trained_on"] = "fit+select"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert refit(run, "--name", "mine", "--on", "all") == 2
    assert "holds a refit with trained_on fit+select, found trained_on all" in _error(capsys)
    assert refit(run, "--name", "mine", "--epochs", "77") == 2
    assert f"holds a refit with epochs {recipe.epochs}, found epochs 77" in _error(capsys)


def test_other_images_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = yaml.safe_load((run / "data.yaml").read_text(encoding="utf-8"))
    data["fingerprint"] = "0" * 64
    (run / "data.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    assert refit(run) == 2
    assert "holds a search on another data set" in _error(capsys)


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())
