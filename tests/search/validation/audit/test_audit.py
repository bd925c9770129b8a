from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from pydantic import TypeAdapter
from rich.console import Console

from search.cli import main
from search.data.inputs import read_splits, write_data
from search.pixels.canvas import describe_canvas
from search.settings.saved import read_settings, write_settings
from search.settings.search import SearchSettings
from search.settings.subcommands import AuditSettings
from search.validation.audit import audit as module
from search.validation.audit.audit import AUDIT, PAGE, run_audit
from search.validation.audit.findings import Audit
from tests.search.validation.audit.planted import (
    CARRIERS,
    IN_HEADERS,
    PLANTS,
    add_samples,
    make_set,
)

BESIDE = {
    "format": {"compression", "EXIF and header entries", "bytes"},
    "dimensions": {"bytes"},
    "compression": {"bytes"},
    "camera": {"bytes"},
}
"""Findings that follow from what is planted."""


pytestmark = pytest.mark.usefixtures("blank_figures")


def audited(settings: AuditSettings) -> tuple[Audit, str]:
    """An audit, and what was printed."""
    text = io.StringIO()
    return run_audit(settings, Console(file=text, width=120)), text.getvalue()


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of an audit of few images is drawing."""
    monkeypatch.setattr(module, "write_page", lambda *_: None)


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_planted_is_found_and_named(plant: str, tmp_path: Path) -> None:
    audit, text = audited(make_set(tmp_path, plant))
    kind = CARRIERS.get(plant, plant)
    found = {finding.kind for finding in audit.findings}
    assert kind in found
    # What one change of how files are written brings along.
    assert found <= {kind} | BESIDE.get(plant, set())
    if plant in IN_HEADERS:
        assert audit.headers.combined is not None
        assert audit.headers.combined.auc > 0.85
    finding = next(one for one in audit.findings if one.kind == kind)
    assert f"  {finding.text}; {finding.remedy}" in text


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("seed", range(3))
def test_a_clean_set_is_not_accused(seed: int, tmp_path: Path) -> None:
    audit, text = audited(make_set(tmp_path, None, seed))
    assert audit.findings == ()
    assert not audit.copies["exact_sets"] + audit.copies["near_sets"] + audit.broken + audit.far
    lines = text[text.index("images: ") :].splitlines()
    assert "leaks: none found" in lines
    assert len(lines) == 10
    assert "compared 1 of 1 tiles" in text


@pytest.mark.usefixtures("no_page")
def test_equal_names_in_two_folders_are_no_group(tmp_path: Path) -> None:
    """Near copies of both labels are a conflict, not a forgery beside its real image."""
    settings = make_set(tmp_path, None)
    lines = (tmp_path / "trainset_label.txt").read_text("utf-8").split()[1:13]
    assert settings.val_labels is not None
    with settings.val_labels.open("a", encoding="utf-8") as file:
        for line in lines:
            name, target = line.split(",")
            with Image.open(tmp_path / "trainset" / name) as image:
                image.resize((48, 48)).save(tmp_path / "valset" / name, quality=80)
            file.write(f"{name},{1 - int(target)}\n")
    audit, _ = audited(settings)
    assert audit.copies["near_with_both_labels"] >= 10
    assert all(one.has_several_groups for one in audit.copy_sets)
    assert any("near copies in different groups have both labels" in f.text for f in audit.findings)
    assert not any("as it should be" in note for note in audit.notes)


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("named", [True, False])
def test_a_split_by_unseen_methods_is_audited_before_there_is_a_run(
    named: bool, tmp_path: Path
) -> None:
    """Methods that no file names are found by a search alone."""
    settings = replace(make_set(tmp_path, None), split="unseen")
    if named:
        for split in ("trainset", "valset"):
            names = (tmp_path / f"{split}_label.txt").read_text("utf-8").split()[1:]
            rows = [line.split(",") for line in names]
            groups = [
                f"{name},{name},{'abcd'[number // 2 % 4] if target == '1' else 'real'}"
                for number, (name, target) in enumerate(rows)
            ]
            (tmp_path / f"{split}_group.csv").write_text(
                "\n".join(["img_name,group,method", *groups, ""]), encoding="utf-8"
            )
        settings = replace(
            settings,
            train_groups=tmp_path / "trainset_group.csv",
            val_groups=tmp_path / "valset_group.csv",
        )
    audit, text = audited(settings)
    assert audit.findings == ()
    assert ("Forgeries held out by method, named in files" in text) == named
    assert ("divided by group, as --split group would" in text) != named
    assert (audit.images < 180) == named  # what a split must not show is left out


@pytest.mark.usefixtures("no_page")
def test_generated_samples_are_looked_at_for_copies_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_set(tmp_path, None)
    splits = add_samples(read_splits(settings), tmp_path / "samples")
    monkeypatch.setattr(module, "read_splits", lambda *_, **__: splits)
    audit, _ = audited(settings)
    assert (audit.images, audit.headers.images) == (200, 150)  # 30 are of report
    assert audit.findings == ()
    assert audit.far == 0
    assert audit.copies["exact_images"] == 2
    assert any(note.startswith("20 generated samples") for note in audit.notes)


@pytest.mark.usefixtures("no_page")
def test_nothing_tells_the_demo_sets_labels_although_its_fakes_take_fewer_bytes(
    tmp_path: Path,
) -> None:
    """Its crops overlap, as its README says: two of them are near copies across splits."""
    audit, _ = audited(AuditSettings(out=tmp_path, workers=1, limit_train=400, limit_val=200))
    assert [finding.kind for finding in audit.findings] == ["duplicates"]
    assert sum(one.is_across_splits for one in audit.copy_sets) == 1
    assert audit.copies["exact_sets"] == 0
    assert audit.headers.signals[0].carrier == "bytes"


def test_what_is_written_is_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # it is drawn
    settings = make_set(tmp_path, "conflict")
    audit, _ = audited(settings)
    text = (tmp_path / "out" / AUDIT).read_text("utf-8")
    assert TypeAdapter(Audit).validate_json(text) == audit
    assert json.loads(text)["format"] == 1
    page = (tmp_path / "out" / PAGE).read_text("utf-8")
    assert "have both labels" in page
    # Its own plots and nothing else: no image of the user's.
    assert page.count("data:image/") == page.count("data:image/png;base64") == 6
    assert "http-equiv" in page
    assert 'src="http' not in page


def test_unreadable_images_are_listed(tmp_path: Path) -> None:
    settings = make_set(tmp_path, None)
    names = sorted(path.name for path in (tmp_path / "valset").iterdir())
    whole = (tmp_path / "valset" / names[0]).read_bytes()
    (tmp_path / "valset" / names[0]).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "valset" / names[1]).write_bytes(b"")
    (tmp_path / "valset" / names[2]).write_text("no image")
    audit, text = audited(settings)
    reasons = {one.image.img_name: one.reason for one in audit.broken_files}
    assert audit.broken == 3
    assert sorted(reasons) == names[:3]
    assert "truncated" in reasons[names[0]]
    assert reasons[names[1]] == "the file is empty"
    assert reasons[names[2]].startswith("none of the formats")
    assert "broken files: 3" in text
    assert names[1] in (tmp_path / "out" / PAGE).read_text("utf-8")


def test_without_an_image_that_can_be_read_there_is_no_audit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_set(tmp_path, None)
    for path in (*(tmp_path / "trainset").iterdir(), *(tmp_path / "valset").iterdir()):
        path.write_bytes(b"")
    flags = ["--train-labels", str(settings.train_labels), "--train-images"]
    assert main(["audit", *flags, str(settings.train_images), "--out", str(tmp_path / "o")]) == 2
    assert "found 0 of 120: the file is empty" in capsys.readouterr().err


def test_an_image_far_from_the_rest_is_named(tmp_path: Path) -> None:
    settings = make_set(tmp_path, None)
    odd = min((tmp_path / "trainset").iterdir())
    Image.new("RGB", (640, 64)).save(odd)
    audit, text = audited(settings)
    assert [one.image.img_name for one in audit.far_images] == [odd.name]
    assert f"farthest {odd.name}" in text


def test_with_few_images_nothing_is_said_of_headers(tmp_path: Path) -> None:
    whole = make_set(tmp_path, "format")
    lines = (tmp_path / "trainset_label.txt").read_text("utf-8").splitlines()[:25]
    (tmp_path / "few.txt").write_text("\n".join(lines), encoding="utf-8")
    few = AuditSettings(
        train_labels=tmp_path / "few.txt", train_images=whole.train_images, out=whole.out, workers=0
    )
    audit, text = audited(few)
    assert audit.headers.combined is None
    assert audit.findings == ()
    assert "too few to tell" in text


def test_a_folder_with_an_audit_is_still_free_for_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["audit", "--limit-train", "100", "--limit-val", "40", "--workers", "1"]) == 0
    out = tmp_path / "results" / "demo"
    assert sorted(path.name for path in out.iterdir()) == [PAGE, AUDIT]
    assert "wrote results/demo/audit.json, results/demo/audit.html" in capsys.readouterr().out
    assert read_settings(out) is None


def test_a_run_is_audited_on_its_own_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = SearchSettings(out=tmp_path, limit_train=60, limit_val=40).resolved()
    write_settings(settings, tmp_path)
    write_data(tmp_path, read_splits(settings), "study", budget=1, canvas=describe_canvas(64))
    assert main(["audit", "--run", str(tmp_path), "--workers", "1"]) == 0
    audit = json.loads((tmp_path / AUDIT).read_text("utf-8"))
    assert audit["images"] == 100
    both = ["--run", str(tmp_path), "--train-labels", "a", "--train-images", "b"]
    assert main(["audit", *both]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert main(["audit", "--run", str(tmp_path / "elsewhere")]) == 2
    assert "must be the folder of a search" in capsys.readouterr().err
