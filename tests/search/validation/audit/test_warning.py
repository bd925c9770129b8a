from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

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
        ("compression", ["JPEG quality alone", "augmentation: [degrade, strong]"]),
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
