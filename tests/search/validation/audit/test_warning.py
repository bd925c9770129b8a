from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from search.cli import main
from search.data.inputs import DATA, read_splits
from search.run import search as module
from search.settings.search import SearchSettings
from search.validation.audit import warning
from search.validation.audit.warning import LEAK, leak_warnings
from tests.e2e.conftest import BACKBONES
from tests.search.validation.audit.planted import add_samples, make_set


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        ("format", ["file format alone tells fakes at AUC 1.00", "degrade"]),
        ("compression", ["JPEG quality alone", "space: {compression_quality: 80}"]),
        ("dimensions", ["alone tells fakes", "crop or resize both classes alike"]),
        ("duplicates", ["equal files lie in several splits", "search audit"]),
        ("time", []),  # no network sees it
        ("name", []),
        ("conflict", []),
        (None, []),
    ],
)
def test_a_search_is_told_of_what_its_networks_would_learn(
    plant: str | None, expected: list[str], tmp_path: Path
) -> None:
    found = leak_warnings(read_splits(make_set(tmp_path, plant)), 0)
    assert bool(found) == bool(expected)
    assert all(line.startswith(LEAK) for line in found)
    for text in expected:
        assert text in " ".join(found)


@pytest.mark.parametrize(
    ("limits", "is_told"),
    [
        ({"MOST_OF_A_CLASS": 20, "MOST_SECONDS": 0.0}, True),  # whatever headers are read
        ({"MOST_BYTES": 0}, False),
        ({"MOST_SECONDS_OF_FILES": -1.0, "STEP": 1}, False),
        ({"MOST_SECONDS_OF_SIZES": -1.0, "STEP": 1}, False),
    ],
)
def test_every_file_is_compared_as_far_as_the_limits_go(
    limits: dict[str, float], is_told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = read_splits(make_set(tmp_path, "duplicates"))
    for name, value in limits.items():
        monkeypatch.setattr(warning, name, value)
    found = " ".join(leak_warnings(splits, 0))
    assert ("20 among" in found) == is_told


def test_rare_sizes_are_read_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a large set most sizes are some other file's as well."""
    splits = read_splits(make_set(tmp_path, None))
    fit, select = splits.fit["path"], splits.select["path"]
    for number, path in enumerate([*fit[:9], *select[:9]]):
        Path(path).write_bytes(bytes([number]) * 2_000)
    for path in (fit[9], select[9]):
        Path(path).write_bytes(bytes(3_000))
    asked: list[str] = []
    plain = warning.checksum

    def counted(path: str) -> bytes:
        asked.append(path)
        return plain(path)

    monkeypatch.setattr(warning, "checksum", counted)
    (found,) = warning._equal_files(warning.listing(splits))
    assert "(1 among" in found
    places = [asked.index(path) for path in (fit[9], select[9], fit[0], select[8])]
    assert max(places[:2]) < min(places[2:])


@pytest.mark.parametrize(
    ("groups", "split", "expected"),
    [
        ("pairs", "random", "--split random parts 24 of 60 groups, for example 'p"),
        ("pairs", "group", None),
        (None, "random", None),  # each image is its own
    ],
)
def test_groups_that_a_random_split_parts_are_told(
    groups: str | None, split: Any, expected: str | None, tmp_path: Path
) -> None:
    settings = replace(make_set(tmp_path, None), split=split, val_labels=None, val_images=None)
    if groups is not None:
        path = tmp_path / "groups.csv"
        names = sorted(one.name for one in (tmp_path / "trainset").iterdir())
        lines = [f"{name},p{number // 2}" for number, name in enumerate(names)]
        path.write_text("\n".join(["img_name,group", *lines, ""]), encoding="utf-8")
        settings = replace(settings, train_groups=path)
    found = leak_warnings(read_splits(settings), 0)
    if expected is None:
        assert found == ()
    else:
        assert expected in found[0]
        assert found[0].startswith(LEAK)


def test_generated_samples_are_not_the_sets_affair(tmp_path: Path) -> None:
    splits = read_splits(make_set(tmp_path, None))
    assert leak_warnings(add_samples(splits, tmp_path / "samples", 60), 0) == ()


def test_a_slow_drive_is_asked_for_a_few_headers_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warning, "MOST_SECONDS", 0.0)
    splits = read_splits(make_set(tmp_path, "format"))
    read: list[int] = []
    plain = warning.read_headers

    def counted(paths: list[str], names: list[str]) -> object:
        read.append(len(paths))
        return plain(paths, names)

    monkeypatch.setattr(warning, "read_headers", counted)
    leak_warnings(splits, 0)
    assert read == [warning.STEP]


FLAGS = [
    *("--pool", "test_resnet.r160_in1k", "--weights", "none", "--image-size", "32"),
    *("--epochs", "1", "--device", "cpu", "--precision", "fp32", "--workers", "0"),
    *("--cache", "off"),
]


@pytest.mark.usefixtures("blank_figures")
def test_a_run_tells_of_a_leak_once_and_keeps_it_in_its_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = make_set(tmp_path, "format"), tmp_path / "run"
    # Without a ResNet-18, which the baseline would be.
    catalogue = tmp_path / "backbones.yaml"
    catalogue.write_text(BACKBONES)
    flags = [*FLAGS, "--backbones", str(catalogue)]
    images = ["--train-labels", str(data.train_labels), "--train-images", str(data.train_images)]
    assert main(["run", *images, *flags, "--trials", "1", "--out", str(run)]) == 0
    told = capsys.readouterr().out
    assert told.count(f"{LEAK}file format alone") == 1
    assert told.index(LEAK) < told.index("trial 0000")
    assert main(["run", "--out", str(run), "--trials", "1"]) == 0
    assert LEAK not in capsys.readouterr().out
    notes = yaml.safe_load((run / DATA).read_text("utf-8"))["notes"]
    assert sum(note.startswith(f"{LEAK}file format") for note in notes) == 1


def test_a_look_that_fails_costs_a_line_and_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no such drive")

    monkeypatch.setattr(module, "leak_warnings", fail)
    plan, text = SimpleNamespace(splits=None, settings=SearchSettings()), io.StringIO()
    assert module._warn_of_leaks(plan, Console(file=text)) == ()  # type: ignore[arg-type]
    assert "not looked at for leaks: OSError: no such drive" in text.getvalue()
