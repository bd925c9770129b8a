"""Forgeries held out by method, through the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

from search.cli import main
from search.data.inputs import check_data, read_splits
from search.settings.saved import load_settings
from tests.blank import blank
from tests.e2e.conftest import DataSet, make_data_set

UNSEEN = ("--split", "unseen", "--trials", "2", "--epochs", "1")


@pytest.fixture(scope="module")
def run(data_set: DataSet, quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose methods were found. Tests must not change it."""
    folder = tmp_path_factory.mktemp("unseen") / "run"
    flags = [*data_set.flags, *quick, *UNSEEN, "--clusters", "4"]
    with pytest.MonkeyPatch.context() as patch:
        blank(patch.setattr)
        assert main(["run", *flags, "--out", str(folder)]) == 0
    return folder


def test_what_was_found_lies_in_the_run_folder(run: Path) -> None:
    rows = pd.read_csv(run / "split.csv", keep_default_na=False)
    assert rows.columns.tolist() == ["set", "img_name", "target", "group", "method", "split"]
    assert len(rows) == 64 + 48
    fakes = rows[rows["target"] == 1]
    assert set(fakes["method"]) == {f"cluster-{number:02d}" for number in (1, 2, 3, 4)}
    assert (rows["method"][rows["target"] == 0] == "").all()
    with Image.open(run / "split.png") as sheet:
        assert sheet.format == "PNG"
    described = yaml.safe_load((run / "data.yaml").read_text())
    division = described["division"]
    assert division["kind"] == "unseen"
    assert "4 clusters of" in division["found_by"]
    owned = [method for own in division["methods"].values() for method in own]
    assert sorted(owned) == sorted(set(fakes["method"]))
    assert all(division["methods"].values())
    assert division["left_out"] == (rows["split"] == "").sum()
    assert any("Forgeries held out by method" in note for note in described["notes"])


def test_no_split_shows_what_another_holds_out(run: Path) -> None:
    splits = read_splits(load_settings(run))
    check_data(run, splits)
    fit, select, report = (
        set(table["method"][table["target"] == 1])
        for table in (splits.fit, splits.select, splits.report)
    )
    assert select - fit
    assert report - fit
    assert not (select - fit) & (report - fit)
    scores = pd.read_csv(run / "candidates" / "0000" / "scores.csv")
    assert set(scores["img_name"]) == set(splits.select["img_name"])


def test_the_saved_division_decides(run: Path, tmp_path: Path) -> None:
    """Elsewhere the same images may be described a little differently."""
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    before = read_splits(load_settings(run)).fingerprint()
    assert main(["run", "--out", str(moved), "--trials", "2"]) == 0
    assert read_splits(load_settings(moved)).fingerprint() == before
    assert (moved / "split.csv").read_bytes() == (run / "split.csv").read_bytes()
    first, again = (
        yaml.safe_load((path / "data.yaml").read_text())["notes"] for path in (run, moved)
    )
    held_out = [note for note in first if note.startswith("Forgeries held out by method")]
    assert len(held_out) == 1
    assert [note for note in again if note in held_out] == held_out
    assert held_out[0].partition(";")[0] in unescape((moved / "report.html").read_text())


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: path.unlink(), "split.csv must say which split each image of the run is in"),
        (lambda path: path.write_text("img_name\n"), "split.csv must say which split"),
        (
            lambda path: path.write_text("".join(path.open().readlines()[:-1])),
            "every image must be in the division of the run, 1 of 48 of the val set are not",
        ),
    ],
    ids=["gone", "cut", "a-line-short"],
)
def test_a_lost_division_is_no_reason_to_make_another(
    damage: object, expected: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    damage(moved / "split.csv")  # type: ignore[operator]
    assert main(["run", "--out", str(moved)]) == 2
    assert expected in capsys.readouterr().err


def test_the_division_of_another_run_is_taken_as_it_is(
    run: Path,
    data_set: DataSet,
    quick: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As a submission's commands do elsewhere: nothing is looked for anew."""
    monkeypatch.setattr("search.validation.forgeries.finding.described_images", None)
    flags = [*data_set.flags, *quick, "--trials", "1", "--epochs", "1", "--split", "unseen"]
    out = ["--out", str(tmp_path / "again")]
    assert main(["run", *flags, "--division", str(run / "split.csv"), *out]) == 0
    assert (tmp_path / "again" / "split.csv").read_bytes() == (run / "split.csv").read_bytes()
    found, expected = (
        yaml.safe_load((path / "data.yaml").read_text()) for path in (tmp_path / "again", run)
    )
    assert found["fingerprint"] == expected["fingerprint"]
    assert found["division"] == expected["division"]
    assert main(["run", *out, "--division", str(tmp_path / "other.csv")]) == 2
    assert "leave the flag out to resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("split", "change", "expected"),
    [
        ("group", lambda rows: rows, "which methods are held out, but --split is group"),
        (
            "unseen",
            lambda rows: rows.iloc[1:],
            "it lacks 1 of 64 images of the train set, for example trainset000.png; use",
        ),
        (
            "unseen",
            lambda rows: pd.concat([rows, rows.iloc[:1]]),
            "it names trainset000.png more than once",
        ),
        ("unseen", lambda rows: rows.drop(columns="method"), "must say which split each image"),
    ],
    ids=["by-group", "a-line-short", "a-line-twice", "a-column-short"],
)
def test_a_division_of_other_images_is_refused(
    split: str,
    change: Callable[[pd.DataFrame], pd.DataFrame],
    expected: str,
    run: Path,
    data_set: DataSet,
    quick: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = tmp_path / "given.csv", tmp_path / "run"
    change(pd.read_csv(run / "split.csv", keep_default_na=False)).to_csv(path, index=False)
    flags = [*data_set.flags, *quick, "--split", split, "--division", str(path)]
    assert main(["run", *flags, "--out", str(out)]) == 2
    assert expected in capsys.readouterr().err
    assert not out.exists()


def test_methods_that_files_name_are_held_out_as_they_are(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_set = make_data_set(tmp_path / "data")
    for name in ("trainset", "valset"):
        path = data_set.folder / f"{name}_group.csv"
        header, *lines = path.read_text().splitlines()
        methods = [("real", f"swap{number // 2 % 4}")[number % 2] for number in range(len(lines))]
        named = [f"{line},{method}" for line, method in zip(lines, methods, strict=True)]
        path.write_text("\n".join([f"{header},method", *named]) + "\n")
    out = tmp_path / "run"
    assert main(["run", *data_set.flags, *quick, *UNSEEN, "--out", str(out)]) == 0
    assert "found by" not in (out / "data.yaml").read_text()
    splits = read_splits(load_settings(out))
    assert len(set(splits.fit["method"])) == 3  # two methods, and none
    # Half of the methods, and so of the training set's fakes, are held out.
    assert (splits.fit["target"] == 1).sum() == 16
    assert len(splits.select) + len(splits.report) == 48


def test_too_few_fakes_for_the_clusters_are_told_before_anything_is_written(
    data_set: DataSet, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["run", *data_set.flags, *quick, *UNSEEN, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "each of --clusters 20 needs 5 fakes" in error
    assert "found 56 fakes in 56 groups; use --clusters 11" in error
    assert not out.exists()
