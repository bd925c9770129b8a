"""What is made of a run for people, when something is in its way."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch
from optuna.storages.journal import JournalFileBackend
from rich.console import Console

import search.machine.device
import search.report.projections
from search.report.projections import write_after_trial, write_projections
from search.study.storage import open_storage
from tests.search.report.conftest import HandMadeRun

pytestmark = pytest.mark.usefixtures("blank_figures")


def project(
    run: HandMadeRun, study: optuna.Study | None = None, *, without_study: bool = False
) -> tuple[list[Path], list[str]]:
    """Writes everything; returns the paths and the lines that were told."""
    stream = io.StringIO()
    study = None if without_study else study or run.study
    paths = write_projections(run.folder, study, Console(file=stream, width=80))
    return paths, stream.getvalue().splitlines()


def states(run: HandMadeRun) -> list[str]:
    return pd.read_csv(run.folder / "leaderboard.csv")["state"].tolist()


def page(run: HandMadeRun) -> str:
    return (run.folder / "report.html").read_text(encoding="utf-8")


def test_all_is_written_and_nothing_told(
    night: HandMadeRun, coarse: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # it is drawn
    paths, told = project(night)
    assert told == []
    assert paths == [night.folder / name for name in ("leaderboard.csv", "report.html", "plots")]
    assert states(night) == ["complete", "complete", "paused", "pruned", "failed", "rejected"]
    assert len(list((night.folder / "artifacts").iterdir())) == 3 + 3 + 2 + 2
    assert "cuda NVIDIA H200, torch 2.15.0" in page(night)


def test_a_leaderboard_that_cannot_be_written_is_one_line_and_costs_nothing_else(
    night: HandMadeRun,
) -> None:
    (night.folder / "leaderboard.csv").mkdir()
    paths, (line,) = project(night)
    assert line.startswith("leaderboard.csv could not be made: Is a directory")
    assert line.endswith(f"`python -m search report --out {night.folder}` makes it again")
    assert [path.name for path in paths] == ["report.html", "plots"]
    assert "cuda NVIDIA H200" in page(night)
    stream = io.StringIO()
    write_after_trial(night.folder, night.study, 0, Console(file=stream))
    assert stream.getvalue().count("\n") == 1
    assert not list(night.folder.glob(".*part")), "a temporary file was left"


@pytest.mark.parametrize(
    ("in_the_way", "lost", "made"),
    [
        ("report.html", "report.html", ["leaderboard.csv"]),
        (
            "artifacts",
            "notes and artifacts of the dashboard",
            ["leaderboard.csv", "report.html", "plots"],
        ),
        ("plots", "plots/", ["leaderboard.csv", "report.html"]),
    ],
)
def test_what_cannot_be_written_costs_no_other(
    in_the_way: str, lost: str, made: list[str], night: HandMadeRun
) -> None:
    if in_the_way == "report.html":
        (night.folder / in_the_way).mkdir()
    else:
        (night.folder / in_the_way).write_text("a file")
    paths, told = project(night)
    assert [path.name for path in paths] == made
    assert all(line.startswith(lost) and "could not be made" in line for line in told)
    assert len(told) == (6 if in_the_way == "plots" else 1)


@pytest.mark.parametrize("part", ["rows_from_study", "publish", "describe_run", "write_report"])
def test_no_failure_of_a_part_is_an_exception(
    part: str, night: HandMadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of two\nlines")

    monkeypatch.setattr(search.report.projections, part, fail)
    _, told = project(night)
    assert sum("ZeroDivisionError: of two lines" in line for line in told) == 1
    assert not any("Traceback" in line for line in told)


def test_ctrl_c_passes(night: HandMadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(search.report.projections, "rows_from_study", press)
    with pytest.raises(KeyboardInterrupt):
        project(night)
    with pytest.raises(KeyboardInterrupt):
        write_after_trial(night.folder, night.study, 0, Console(file=io.StringIO()))


def test_one_damaged_candidate_leaves_a_blank_and_the_rest_whole(night: HandMadeRun) -> None:
    (night.candidate(0) / "metrics.json").write_text('{"auc": ')
    _, told = project(night)
    (line,) = told
    assert str(Path("0000") / "metrics.json") in line
    table = pd.read_csv(night.folder / "leaderboard.csv", dtype={"candidate": str})
    assert table["candidate"].tolist()[:2] == ["0000", "0001"]
    assert table["auc_report"].notna().tolist()[:2] == [False, True]


def test_a_run_folder_elsewhere_reports_without_images_and_settings_of_this_machine(
    night: HandMadeRun, tmp_path: Path
) -> None:
    project(night)
    first = page(night)
    moved = tmp_path / "elsewhere"
    shutil.copytree(night.folder, moved)
    shutil.rmtree(night.folder)
    for name in ("report.html", "leaderboard.csv", "plots", "artifacts"):
        path = moved / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    study = optuna.load_study(storage=open_storage(moved, None), study_name="night")
    stream = io.StringIO()
    write_projections(moved, study, Console(file=stream))
    assert stream.getvalue() == ""
    text = (moved / "report.html").read_text(encoding="utf-8")
    assert text.replace("elsewhere", "night") == first
    assert len(list((moved / "artifacts").iterdir())) == 3 + 3 + 2 + 2


def test_without_its_study_the_last_leaderboard_is_shown(night: HandMadeRun) -> None:
    project(night)
    before = (night.folder / "leaderboard.csv").read_bytes()
    (night.folder / "report.html").unlink()
    paths, (line,) = project(night, without_study=True)
    assert line.startswith("the study is not at hand: leaderboard.csv is shown")
    assert [path.name for path in paths] == ["report.html", "plots"]
    assert (night.folder / "leaderboard.csv").read_bytes() == before
    text = page(night)
    assert "6 trials: 2 complete, 1 paused, 1 pruned, 1 failed, 1 rejected." in text
    assert "The study was not at hand when this page was made" in text
    assert "All networks were trained from scratch" in text
    assert "the loss must be finite" in text


def test_without_study_and_leaderboard_there_is_one_line(night: HandMadeRun) -> None:
    paths, (line,) = project(night, without_study=True)
    assert paths == []
    assert line.startswith("report.html could not be made: ")
    assert "leaderboard.csv must be a leaderboard that onefold wrote" in line


def test_a_storage_that_dies_amid_the_report_is_told(
    night: HandMadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(night)

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(JournalFileBackend, "read_logs", fail)
    paths, told = project(night)
    assert told[0].startswith("the leaderboard could not be made: Input/output error")
    assert told[1].startswith("the study is not at hand")
    assert [path.name for path in paths] == ["report.html", "plots"]


def test_an_empty_run_has_its_page(make_run: Callable[[str], HandMadeRun]) -> None:
    run = make_run("empty")
    _, told = project(run)
    assert told == []
    assert "No trial has ended yet." in page(run)


def test_after_a_trial_only_that_trial_is_published(night: HandMadeRun) -> None:
    stream = io.StringIO()
    write_after_trial(night.folder, night.study, 0, Console(file=stream))
    assert stream.getvalue() == ""
    assert len(states(night)) == 6
    assert len(list((night.folder / "artifacts").iterdir())) == 3
    assert not (night.folder / "report.html").exists()


def test_no_device_is_asked(night: HandMadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's settings say --device cuda, which is not here, or is another GPU."""

    def fail(*_: object) -> None:
        raise AssertionError("the machine was asked")

    for name in ("is_available", "get_device_name", "set_device", "device_count", "init"):
        monkeypatch.setattr(torch.cuda, name, fail)
    for name in ("resolve_device", "describe_device"):
        monkeypatch.setattr(search.machine.device, name, fail)
    _, told = project(night)
    assert told == []
    assert "cuda NVIDIA H200, torch 2.15.0" in page(night)
