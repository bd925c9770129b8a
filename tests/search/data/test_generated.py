"""Generated samples join fit only where their sources are there as they were."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from search.data.generated import MANIFEST, join, keep_record, read_manifest
from search.data.inputs import check_data, describe_data, read_splits, write_data
from search.errors import UserError
from search.expand.expand import run_expand
from search.settings.search import SearchSettings
from tests.search.expand.conftest import make_images


@pytest.fixture
def settings(tmp_path: Path) -> SearchSettings:
    """A search on small images and the samples that were made of its fit."""
    given = make_images(tmp_path)
    run_expand(given, Console(quiet=True))
    return replace(given.images_settings(), generated=given.out)


def test_samples_join_fit_alone_and_change_the_fingerprint(settings: SearchSettings) -> None:
    plain = read_splits(replace(settings, generated=None))
    splits = read_splits(settings)
    assert splits.fit[: len(plain.fit)].equals(plain.fit)
    added = splits.fit[len(plain.fit) :]
    assert len(added) == 12
    assert added["img_name"].str.startswith("generated/").all()
    assert all(Path(path).is_file() for path in added["path"])
    assert set(added["group"]) <= set(plain.fit["group"])
    assert splits.select.equals(plain.select)
    assert splits.report.equals(plain.report)
    assert splits.fingerprint() != plain.fingerprint()
    described = describe_data(splits)["generated"]
    assert described["samples"] == 12
    assert described["kinds"] == {"self-blended": 4, "mixed": 4, "recompressed": 4}
    assert "generated" not in describe_data(plain)


def test_the_bytes_are_part_of_the_fingerprint(settings: SearchSettings, tmp_path: Path) -> None:
    one = read_splits(settings)
    moved = Path(shutil.copytree(str(settings.generated), tmp_path / "moved"))
    assert read_splits(replace(settings, generated=moved)).fingerprint() == one.fingerprint()
    write_data(tmp_path, one, "study", budget=1, canvas={"side": 64})
    text = (moved / MANIFEST).read_text("utf-8")
    (moved / MANIFEST).write_text(text + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="a search on another data set"):
        check_data(tmp_path, read_splits(replace(settings, generated=moved)))


def test_samples_of_select_and_report_are_left_out(settings: SearchSettings) -> None:
    """Made with another seed of the splits: some sources are held out now."""
    lines: list[str] = []
    every = read_splits(settings).images
    assert len(every) == len(set(every)) >= 12
    for seed in range(1, 9):
        splits = read_splits(replace(settings, seed=seed), lines.append)
        assert splits.generated is not None
        assert splits.images == every
        assert set(splits.fit["path"]) <= set(every)
        held_out = {*splits.select["group"], *splits.report["group"]}
        assert not held_out & set(splits.fit["group"])
        assert splits.generated.samples + splits.generated.left_out == 12
        names = {
            f"generated/{one.img_name}"
            for one in read_manifest(Path(str(settings.generated)) / MANIFEST).samples
        }
        assert len(names & set(splits.fit["img_name"])) == splits.generated.samples
    assert any(
        "generated samples are left out: made of images that are not in fit" in line
        for line in lines
    )


def test_samples_of_changed_and_relabelled_sources_are_left_out(settings: SearchSettings) -> None:
    assert settings.generated is not None
    fit = read_splits(replace(settings, generated=None)).fit
    samples = read_manifest(settings.generated / MANIFEST).samples
    source = samples[0].sources[0].img_name
    concerned = sum(source in {one.img_name for one in sample.sources} for sample in samples)
    lines: list[str] = []
    relabelled = fit.assign(target=fit["target"].mask(fit["img_name"] == source, 1))
    table, generated = join(relabelled, settings.generated, lines.append)
    assert (generated.left_out, len(table)) == (concerned, len(fit) + 12 - concerned)
    Image.new("RGB", (64, 64)).save(fit.set_index("img_name")["path"][source])
    _, generated = join(fit, settings.generated, lines.append)
    assert generated.left_out == concerned
    assert [line.partition("left out: ")[2][:27] for line in lines] == [
        "made of images that are not",
        "made of images that have ch",
    ]


def test_methods_follow_where_fit_has_them(settings: SearchSettings) -> None:
    assert settings.generated is not None
    fit = read_splits(replace(settings, generated=None)).fit
    fit["method"] = fit["target"].map({0: "", 1: "swap"})
    table, _ = join(fit, settings.generated)
    kinds = {
        f"generated/{one.img_name}": one
        for one in read_manifest(settings.generated / MANIFEST).samples
    }
    for row in table[len(fit) :].itertuples():
        same = "swap" if row.target else ""
        kind = kinds[str(row.img_name)].kind
        assert row.method == (same if kind == "recompressed" else kind)


@pytest.mark.parametrize("damage", ["changed", "absent"])
def test_a_sample_that_is_not_what_the_manifest_says_is_an_error(
    damage: str, settings: SearchSettings
) -> None:
    assert settings.generated is not None
    path = next((settings.generated / "images").iterdir())
    path.write_bytes(b"") if damage == "changed" else path.unlink()
    with pytest.raises(UserError, match=f"1 of 12 are not: {path.name} is {damage}; make them"):
        read_splits(settings)


def test_a_set_of_other_images_is_an_error(settings: SearchSettings) -> None:
    assert settings.generated is not None
    fit = read_splits(replace(settings, generated=None)).fit
    with pytest.raises(UserError, match="none of its 12 was"):
        join(fit.assign(img_name="other/" + fit["img_name"]), settings.generated)
    shutil.rmtree(settings.generated / "tool")
    with pytest.raises(UserError, match=r"kinds\.py is absent"):
        join(fit, settings.generated)


def test_a_run_keeps_the_manifest_and_the_tool(settings: SearchSettings, tmp_path: Path) -> None:
    assert settings.generated is not None
    run = tmp_path / "run"
    keep_record(settings.generated, run)
    kept = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert kept == {
        "generated/manifest.json",
        "generated/tool/kinds.py",
        "generated/tool/images.py",
    }
    assert (run / "generated" / MANIFEST).read_bytes() == (
        settings.generated / MANIFEST
    ).read_bytes()


def test_the_groups_of_the_set_are_those_of_the_sources(settings: SearchSettings) -> None:
    assert settings.generated is not None
    groups = pd.read_csv(settings.generated / "groups.csv")
    assert groups.columns.tolist() == ["img_name", "group"]
