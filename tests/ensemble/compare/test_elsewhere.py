"""A set from elsewhere: scored as by hand, added to the comparison, and never chosen by."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps
from rich.console import Console

from ensemble.cli import main
from ensemble.compare.compare import run_compare
from ensemble.compare.elsewhere import (
    known_images,
    open_elsewhere,
    read_elsewhere,
    score_elsewhere,
)
from ensemble.pool.pool import Pool
from ensemble.settings import CompareSettings
from ensemble.soup.soup import run_soup
from search.data.labels import read_labels
from search.errors import UserError
from search.machine.interruption import Interruption
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from search.training.metrics import delong_interval, delong_test, roc_auc
from search.training.scoring import predict
from tests.ensemble.conftest import make_images, refit

QUIET = Console(quiet=True)


@dataclass(frozen=True)
class Files:
    """A labelled set on disk."""

    labels: Path
    images: Path
    groups: Path


pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """24 images of no run, in twelve groups of a real and a fake."""
    folder = tmp_path / "data"
    folder.mkdir()
    labels = make_images(folder, "other", 24, seed=7)
    groups = folder / "other_group.csv"
    names = pd.read_csv(labels)["img_name"]
    groups.write_text(
        "img_name,group\n" + "".join(f"{name},clip {i // 2}\n" for i, name in enumerate(names)),
        encoding="utf-8",
    )
    return Files(labels, folder / "other", groups)


def told(files: Files, run: Path, name: str = "celeb", **changes: object) -> CompareSettings:
    settings = CompareSettings(
        run=run, name=name, labels=files.labels, images=files.images, groups=files.groups
    )
    return replace(settings, **changes)  # type: ignore[arg-type]


def compare(pool: Pool, settings: CompareSettings, console: Console = QUIET) -> pd.DataFrame:
    return run_compare(pool, console, source=open_elsewhere(pool, settings, console))


def score(pool: Pool, settings: CompareSettings) -> pd.DataFrame:
    """The set's scores of the best candidate alone."""
    source = open_elsewhere(pool, settings, QUIET)
    assert source is not None
    return score_elsewhere(pool, source, [pool.best, pool.best], QUIET, lambda: None)


def test_every_model_is_scored_and_nothing_is_chosen_by_it(pool: Pool, files: Files) -> None:
    run_soup(pool, "greedy")
    before = run_compare(pool, QUIET)
    table = compare(pool, told(files, pool.run))
    pd.testing.assert_frame_equal(
        table[before.columns].drop(columns=["images_per_second_1", "images_per_second_32"]),
        before.drop(columns=["images_per_second_1", "images_per_second_32"]),
    )
    own = pd.read_csv(pool.run / "elsewhere" / "celeb" / "comparison.csv").set_index("model")
    assert list(own.index) == before["model"].tolist()  # in the order of select
    for name in ("comparison.png", "comparison-dark.png"):
        assert (pool.run / "elsewhere" / "celeb" / name).exists()

    labels = read_labels(files.labels, files.images, files.groups)
    loader = eval_batches(Reader(pool.reader.side), labels, batch_size=5)
    best = predict(pool.best.load(), loader, pool.runtime).scores
    interval = delong_interval(best, labels["target"], labels["group"])
    row = own.loc["best single"]
    assert row["auc"] == pytest.approx(roc_auc(best, labels["target"]))
    assert (row["auc_low"], row["auc_high"]) == pytest.approx((interval.low, interval.high))
    assert [row["images"], row["groups"], row["images_of_the_run"]] == [24, 12, 0]
    soup = pd.read_csv(pool.run / "merged" / "soup-greedy" / "elsewhere-celeb.csv")
    test = delong_test(soup["y_pred"], best, labels["target"], labels["group"])
    assert own.loc["soup-greedy", "difference"] == pytest.approx(test.difference)

    columns = table.set_index("model")
    np.testing.assert_allclose(columns["auc@celeb"], own["auc"])
    np.testing.assert_allclose(columns["auc_low@celeb"], own["auc_low"])


def test_a_refit_is_scored_anew_with_the_others_and_costs_no_set(pool: Pool, files: Files) -> None:
    found = refit(pool, "fit+select")  # which has no figure on select
    columns = compare(pool, told(files, pool.run)).set_index("model")
    assert columns["auc@celeb"].notna().all()
    assert pd.isna(columns.loc[found.name, "auc_select"])
    before = pd.read_csv(found.path / "elsewhere-celeb.csv")
    for path in files.images.iterdir():  # of the same names, other images
        with Image.open(path) as image:
            ImageOps.invert(image.convert("RGB")).save(path)
    compare(pool, told(files, pool.run, overwrite=True))
    after = pd.read_csv(found.path / "elsewhere-celeb.csv")
    assert (before["y_pred"] != after["y_pred"]).any()


def test_models_of_one_name_are_told_apart(pool: Pool, files: Files) -> None:
    """A refit may have been called so before there was the merged model."""
    soup = run_soup(pool, "uniform", members=["0000", "0001"])
    other = refit(pool, "fit")
    same = Path(shutil.copytree(other.path, pool.run / "refits" / soup.name))
    other.path.rename(pool.run / "refits" / "target")
    table = compare(pool, told(files, pool.run)).set_index("path")
    own = pd.read_csv(pool.run / "elsewhere" / "celeb" / "comparison.csv").set_index("path")
    for path in (f"merged/{soup.name}", f"refits/{same.name}", "refits/target"):
        found = pd.read_csv(pool.run / path / "elsewhere-celeb.csv")
        assert own.loc[path, "auc"] == pytest.approx(roc_auc(found["y_pred"], found["target"]))
        assert table.loc[path, "auc@celeb"] == own.loc[path, "auc"]
    assert own.loc[f"merged/{soup.name}", "log_loss"] != own.loc["refits/target", "log_loss"]
    speeds = table["images_per_second_1"][[path for path in table.index if path]]
    assert speeds.notna().all()
    assert speeds.is_unique


def test_a_refit_that_was_made_anew_has_not_its_predecessors_figures(
    pool: Pool, files: Files
) -> None:
    """Neither has a figure on select, which told others apart."""
    found = refit(pool, "fit+select")
    table = compare(pool, told(files, pool.run))
    scores = found.path / "elsewhere-celeb.csv"
    before = scores.read_text(encoding="utf-8")

    def unknown() -> list[str]:
        known = read_elsewhere(pool.run, table)["celeb"]["auc"]
        return table["model"][known.isna()].tolist()

    assert unknown() == []
    scores.unlink()  # with its folder
    assert unknown() == [found.name]
    scores.write_text(before.replace(",0.", ",0.0"), encoding="utf-8")
    assert unknown() == [found.name]


def test_sets_stay_beside_each_other_until_a_model_is_another(
    pool: Pool, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    run_soup(pool, "uniform", members=["0000", "0001"])
    compare(pool, told(files, pool.run))
    console = Console(width=120)
    table = compare(pool, told(files, pool.run, "b.2", groups=None), console)
    first = capsys.readouterr().out
    assert "scoring soup-uniform on b.2" in first
    assert "AUC elsewhere: celeb" in first
    assert {"auc@celeb", "auc_high@celeb", "auc@b.2"} <= set(table.columns)
    # A comparison that names no set tells of those that are known.
    assert "auc@celeb" in run_compare(pool, console).columns
    assert "scoring" not in capsys.readouterr().out
    changed = table.assign(auc_select=table["auc_select"].where(table["kind"] != "soup", 0.5))
    found = read_elsewhere(pool.run, changed)["celeb"]["auc"]
    assert found.isna().tolist() == (table["kind"] == "soup").tolist()


def test_going_on_after_a_stop_scores_no_model_again(
    pool: Pool, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_elsewhere(pool, told(files, pool.run), QUIET)
    scores = pool.best.path / "elsewhere-celeb.csv"

    class StopAfterTheFirst(Interruption):
        def check(self) -> None:
            if scores.exists():
                raise KeyboardInterrupt

    run_soup(pool, "greedy")
    with pytest.raises(KeyboardInterrupt):
        run_compare(pool, QUIET, StopAfterTheFirst(), source)
    assert (pool.run / "comparison.csv").exists()
    written = scores.stat().st_mtime_ns
    compare(pool, told(files, pool.run), Console(width=120))
    assert f"scoring {pool.best.name} on" not in capsys.readouterr().out
    assert scores.stat().st_mtime_ns == written


def test_a_name_is_of_one_set(pool: Pool, files: Files) -> None:
    settings = told(files, pool.run)
    score(pool, settings)
    fewer = files.labels.with_name("fewer.txt")
    lines = files.labels.read_text(encoding="utf-8").splitlines()
    fewer.write_text("\n".join(lines[:-4]), encoding="utf-8")
    other = replace(settings, labels=fewer)
    with pytest.raises(UserError, match="--overwrite"):
        open_elsewhere(pool, other, QUIET)
    assert len(score(pool, settings)) == 24
    written = next(files.images.iterdir())  # once more, as long as it was
    os.utime(written, ns=(0, written.stat().st_mtime_ns + 1))
    with pytest.raises(UserError, match="of the same files, unchanged"):
        open_elsewhere(pool, settings, QUIET)
    assert len(score(pool, replace(other, overwrite=True))) == 20
    assert len(score(pool, other)) == 20
    shutil.rmtree(pool.run / "elsewhere")
    assert len(score(pool, settings)) == 24


def test_broken_images_are_set_aside(pool: Pool, files: Files) -> None:
    settings = told(files, pool.run)
    name = pd.read_csv(files.labels)["img_name"][3]
    (files.images / name).write_bytes(b"no image")
    assert name not in score(pool, settings)["img_name"].tolist()
    assert len(score(pool, settings)) == 23
    assert name in (pool.run / "elsewhere" / "celeb" / "quarantine.csv").read_text()
    assert not (pool.run / "quarantine.csv").exists()
    other = pd.read_csv(files.labels)["img_name"][5]
    (files.images / other).write_bytes(b"no image either")
    with pytest.raises(UserError, match="at most 5% of a set's images may be broken"):
        score(pool, replace(settings, name="two"))


def test_images_of_the_run_are_told(
    tiny_pool: Pool, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    """Byte for byte: another name hides nothing, and the same length tells nothing."""
    names = pd.read_csv(files.labels)["img_name"]
    fit, report = tiny_pool.splits.fit["path"], tiny_pool.splits.report["path"]
    for place, source in enumerate((fit[0], fit[5], report[2])):
        shutil.copy(source, files.images / names[place])
    alike = bytearray(Path(fit[1]).read_bytes())
    alike[-20] ^= 1
    (files.images / names[3]).write_bytes(bytes(alike))
    paths = [str(files.images / name) for name in names]
    assert known_images(paths, tiny_pool) == {"fit": 2, "select": 0, "report": 1}
    open_elsewhere(tiny_pool, told(files, tiny_pool.run, "known"), Console(width=120))
    lines = capsys.readouterr().out
    assert "2 of 24 images of known are in fit, too: not from elsewhere" in lines
    assert "in select" not in lines


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../up"}, "plain file name .* found '../up'"),
        ({"name": ""}, "plain file name"),
        ({"name": ".hidden"}, "plain file name"),
        ({"name": "a" * 65}, "plain file name"),
        ({"name": None}, "found no --name"),
        ({"labels": None, "images": None}, "found no --labels and no --images"),
        ({"images": Path("nowhere")}, "nowhere"),
        ({"labels": Path("nowhere.csv")}, "nowhere.csv"),
    ],
)
def test_bad_settings_are_told(
    changes: dict[str, object], message: str, tiny_pool: Pool, files: Files
) -> None:
    with pytest.raises(UserError, match=message):
        open_elsewhere(tiny_pool, told(files, tiny_pool.run, **changes), QUIET)  # type: ignore[arg-type]
    assert not list((tiny_pool.run / "elsewhere").glob("nowhere*"))


def test_labels_of_one_class_are_refused(tiny_pool: Pool, files: Files) -> None:
    text = files.labels.read_text(encoding="utf-8").replace(",1\n", ",0\n")
    files.labels.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"the set celeb must hold both .* only real"):
        open_elsewhere(tiny_pool, told(files, tiny_pool.run), QUIET)


def test_the_command_adds_a_set(
    run_folder: Path, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--run", str(run_folder), "--device", "cpu", "--workers", "0"]
    given = ["--name", "celeb", "--labels", str(files.labels), "--images", str(files.images)]
    assert main([*command, *given[:2]]) == 2
    assert "found no --labels and no --images" in capsys.readouterr().err
    left = run_folder / "elsewhere" / "celeb" / f".comparison.csv.{os.getpid()}.part"
    left.parent.mkdir(parents=True)
    left.touch()
    assert main([*command, *given]) == 0
    assert not left.exists()
    assert "AUC elsewhere: celeb, nothing chosen by it" in capsys.readouterr().out
