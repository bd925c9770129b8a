from __future__ import annotations

import csv
import io
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from ensemble.deploy import export
from ensemble.deploy.predict import find_images, run_predict, write_scores
from ensemble.settings import PredictSettings
from search.errors import UserError
from search.training.candidate import Candidate

NAMES = ["a.jpg", "b.PNG", "deep/c.tiff", "deep/er/d.webp"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images in nested folders, and files that are none."""
    folder = tmp_path / "images"
    generator = np.random.default_rng(0)
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    for name in ("notes.txt", ".hidden.jpg", ".cache/x.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    return folder


@pytest.fixture
def settings(tiny_run: Path, images: Path) -> PredictSettings:
    model = tiny_run / "candidates" / "0000"
    return PredictSettings(model=model, path=images, device="cpu", batch_size=3)


def told(settings: PredictSettings) -> str:
    text = io.StringIO()
    run_predict(settings, Console(file=text, width=200))
    return text.getvalue()


def test_a_folder_is_scored_by_relative_names(
    settings: PredictSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "scored 4 of 4 images" in told(settings)
    header, *rows = csv.reader(capsys.readouterr().out.splitlines())
    assert header == ["img_name", "y_pred"]
    assert [row[0] for row in rows] == NAMES
    assert all(0 < float(row[1]) < 1 for row in rows)


def test_all_ways_to_name_images_give_one_score(
    settings: PredictSettings, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = images / "list.txt"
    listed.write_text("img_name\ndeep/c.tiff\na.jpg\n", encoding="utf-8")
    elsewhere = shutil.copyfile(listed, images.parent / "list.csv")
    oddly_named = shutil.copyfile(images / "a.jpg", images.parent / "photo")
    scores = []
    for changes in (
        {"path": images},
        {"path": images / "a.jpg"},
        {"path": Path(oddly_named)},
        {"path": listed},
        {"path": Path(elsewhere), "images": images},
    ):
        told(replace(settings, **changes))  # type: ignore[arg-type]
        table = pd.read_csv(io.StringIO(capsys.readouterr().out))
        scores.append(table[table["img_name"].isin(["a.jpg", "photo"])]["y_pred"].item())
    assert scores == pytest.approx([scores[0]] * 5, abs=1e-6)
    assert table["img_name"].tolist() == ["deep/c.tiff", "a.jpg"]


def test_json_lines_and_csv_agree_to_the_last_bit(
    settings: PredictSettings, tmp_path: Path
) -> None:
    told(replace(settings, output=tmp_path / "new" / "scores.csv"))
    told(replace(settings, output=tmp_path / "scores.jsonl", format="jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").open(encoding="utf-8")]
    with (tmp_path / "new" / "scores.csv").open(encoding="utf-8", newline="") as file:
        expected = [
            {"img_name": row[0], "y_pred": float(row[1])} for row in list(csv.reader(file))[1:]
        ]
    assert rows == expected
    assert len(rows) == 4


def test_names_of_any_kind_are_quoted() -> None:
    table = pd.DataFrame({"img_name": ['a, "b".jpg', "\u00e9.jpg"], "y_pred": [0.5, 1e-17]})
    text = io.StringIO()
    write_scores(table, text, "csv")
    assert list(csv.reader(io.StringIO(text.getvalue()))) == [
        ["img_name", "y_pred"],
        ['a, "b".jpg', "0.5"],
        ["\u00e9.jpg", "1e-17"],
    ]


def test_flipping_averages_with_the_mirror_image(
    settings: PredictSettings, images: Path, tmp_path: Path
) -> None:
    mirrored = tmp_path / "mirrored"
    for name in NAMES:
        (mirrored / name).parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(images / name).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image.save((mirrored / name).with_suffix(".png"))
        plain = (images / name).with_suffix(".png")
        Image.open(images / name).save(plain)
    tables = {}
    for flip in (False, True):
        for folder in (images, mirrored):
            output = tmp_path / f"{folder.name}-{flip}.csv"
            told(replace(settings, path=folder, flip=flip, output=output))
            table = pd.read_csv(output, index_col=0)
            tables[folder.name, flip] = table[table.index.str.endswith(".png")]["y_pred"]
    plain, other = tables["images", False], tables["mirrored", False]
    log_odds = (np.log(plain / (1 - plain)) + np.log(other / (1 - other))) / 2
    expected = (1 / (1 + np.exp(-log_odds))).to_numpy()
    assert np.abs(plain - other).max() > 1e-4
    assert tables["images", True].to_numpy() == pytest.approx(expected, abs=1e-6)
    assert tables["mirrored", True].to_numpy() == pytest.approx(expected, abs=1e-6)


def test_broken_images_are_told_and_the_others_scored(
    settings: PredictSettings, images: Path, tmp_path: Path
) -> None:
    (images / "a.jpg").write_bytes(b"")
    output = tmp_path / "scores.csv"
    text = io.StringIO()
    with pytest.raises(UserError, match=r"1 of 4 images could not be read .*: a\.jpg"):
        run_predict(replace(settings, output=output), Console(file=text, width=300))
    assert pd.read_csv(output)["img_name"].tolist() == NAMES[1:]
    assert f"{images / 'a.jpg'}: the file is empty" in text.getvalue()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent", "found nothing there"),
        ("absent.txt", "nothing there"),
        ("images/deep/empty", "must hold images"),
        ("images/notes.txt", "header"),
    ],
)
def test_what_cannot_be_found_is_a_user_error(path: str, message: str, images: Path) -> None:
    (images / "deep" / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        find_images(images.parent / path)


def test_a_list_must_not_leave_its_folder(images: Path) -> None:
    listed = images / "deep" / "list.txt"
    listed.write_text("img_name\n../a.jpg\n", encoding="utf-8")
    with pytest.raises(UserError, match="relative to the image folder"):
        find_images(listed)


def test_there_must_be_something_to_do(settings: PredictSettings) -> None:
    with pytest.raises(UserError, match="an image, a folder or a list"):
        told(replace(settings, path=None))


def test_a_folder_without_a_model_is_a_user_error(settings: PredictSettings, images: Path) -> None:
    with pytest.raises(UserError, match="must be the folder of a model"):
        told(replace(settings, model=images))


def test_a_model_from_elsewhere_loads_nothing_but_its_weights(
    settings: PredictSettings, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(settings.model, tmp_path / "model"))
    text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    text = text.replace("model_args: {}", "model_args: {checkpoint_path: x.pth}")
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="must not load anything, found checkpoint_path"):
        told(replace(settings, model=folder))


def test_the_export_lands_in_the_current_folder(
    settings: PredictSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Program:
        def save(self, path: Path, **_: object) -> None:
            path.write_bytes(b"onnx")

    for name in export.NEEDED:
        pytest.importorskip(name)
    # What a translation takes, test_export asks.
    monkeypatch.setattr(export, "_translate", lambda *_: Program())
    monkeypatch.setattr(export, "compare", lambda *_: 0.0)
    monkeypatch.chdir(tmp_path)
    text = told(replace(settings, path=None, export="onnx"))
    assert "wrote 0000.onnx: scores under onnxruntime and torch differ by at most" in text
    assert (tmp_path / "0000.onnx").read_bytes() == b"onnx"
    assert not Candidate(settings.model).path.joinpath("0000.onnx").exists()


def test_an_output_that_fails_leaves_the_old_one(
    settings: PredictSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensemble.deploy import predict

    output = tmp_path / "scores.csv"
    output.write_text("old", encoding="utf-8")
    monkeypatch.setattr(predict, "write_scores", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        told(replace(settings, output=output))
    assert output.read_text(encoding="utf-8") == "old"
    # The scores wait for the next try.
    left = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert left == {"scores.csv", ".scores.csv.journal"}


def test_a_link_and_a_pipe_are_written_to_and_never_replaced(
    settings: PredictSettings, tmp_path: Path
) -> None:
    link, target, pipe = (tmp_path / name for name in ("link.csv", "target.csv", "pipe"))
    link.symlink_to(target)
    told(replace(settings, output=link))
    assert link.is_symlink()
    os.mkfifo(pipe)
    with ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text, encoding="utf-8")
        told(replace(settings, output=pipe))
        assert read.result(timeout=60) == target.read_text(encoding="utf-8")
    assert pipe.is_fifo()


def test_one_image_that_cannot_be_read_is_named_with_its_reason(
    settings: PredictSettings, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    with pytest.raises(UserError, match=r"empty\.jpg \(the file is empty\)"):
        told(replace(settings, path=empty))
