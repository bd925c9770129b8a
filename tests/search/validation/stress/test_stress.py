from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from search.cli import main
from search.data.inputs import read_splits, write_data
from search.errors import UserError
from search.pixels.altering import ALTERATIONS, CLEAN
from search.pixels.canvas import describe_canvas
from search.settings.saved import write_settings
from search.settings.search import SearchSettings
from search.settings.subcommands import StressSettings
from search.training.candidate import save_candidate
from search.training.metrics import delong_interval
from search.training.network import build_network
from search.training.recipe import Recipe
from search.validation.stress.figure import DARK_PLOT, PLOT
from search.validation.stress.stress import (
    COLUMNS,
    STRESS,
    load_candidate,
    mean_of_subset,
    run_stress,
    stress_table,
    worst_case,
)

RECIPE = Recipe(
    backbone="test_resnet.r160_in1k",
    architecture="test_resnet",
    canvas=40,
    image_size=32,
    weights="none",
)


class Guess(nn.Module):
    canvas = 16

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a few images, with one candidate, untrained."""
    folder, data = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("data")
    paths: dict[str, Path] = {}
    for split, count in (("train", 8), ("val", 24)):
        (data / split).mkdir()
        labels, images = labelled(data / split, count, prefix=split)
        paths |= {f"{split}_labels": labels, f"{split}_images": images}
    settings = SearchSettings(out=folder, **paths).resolved()  # type: ignore[arg-type]
    write_settings(settings, folder)
    write_data(folder, read_splits(settings), "study", budget=1, canvas=describe_canvas(40))
    save_candidate(
        folder / "candidates" / "0000",
        recipe=RECIPE,
        metrics={},
        history=[],
        scores=pd.DataFrame(),
        weights=build_network(RECIPE).state_dict(),
    )
    return folder


def labelled(
    folder: Path, count: int = 12, *, broken: int = 0, prefix: str = ""
) -> tuple[Path, Path]:
    """Label file and folder of some noisy images, the first of which are broken."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    lines = ["img_name,target"]
    for number in range(count):
        path = folder / "images" / f"{prefix}{number}.png"
        levels = generator.integers(0, 256, (60, 50, 3), dtype=np.uint8)
        Image.fromarray(levels).save(path)
        if number < broken:
            path.write_bytes(b"")
        lines.append(f"{path.name},{number % 2}")
    labels = folder / "labels.txt"
    labels.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return labels, folder / "images"


def flags(folder: Path, broken: int = 0) -> list[str]:
    """--labels and --images of such images."""
    labels, images = labelled(folder, broken=broken)
    return ["--labels", str(labels), "--images", str(images)]


def test_a_candidate_of_a_run_is_tried_on_its_select_split(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["stress", "--model", str(run / "candidates" / "0000"), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "new" / STRESS)
    assert tuple(rows.columns) == COLUMNS
    expected = [(each.kind, each.strength) for each in (CLEAN, *ALTERATIONS)]
    assert list(zip(rows["alteration"], rows["strength"], strict=True)) == expected
    assert (rows["images"] == 12).all()  # half of 24: select, and never report
    assert (rows["auc_low"] <= rows["auc"]).all()
    assert (rows["auc"] <= rows["auc_high"]).all()
    assert np.allclose(rows["auc_minus_clean"], rows["auc"] - rows["auc"][0])
    assert {path.name for path in (tmp_path / "new").iterdir()} == {STRESS, PLOT, DARK_PLOT}
    assert worst_case(rows) in out
    # Again, and the bytes are the same.
    before = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert main([*command, "--workers", "1", "--out", str(tmp_path / "new")]) == 0
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}


def test_without_out_it_lies_beside_the_model(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "0000"
    copy.mkdir()
    labels, images = labelled(tmp_path)
    settings = StressSettings(model=copy, labels=labels, images=images, device="cpu", limit=6)
    text = io.StringIO()
    rows = run_stress(settings, Console(file=text, width=120), lambda _: Guess())
    assert (rows["auc"] == 0.5).all()
    assert (rows["images"] == 6).all()
    assert {path.name for path in copy.iterdir()} == {STRESS, PLOT, DARK_PLOT}
    # The leaderboard has another figure of that name, of at most 500 images.
    assert "auc_stress" not in text.getvalue()
    assert re.search(r"mean over jpeg .*: 0\.5000, \d+ images", " ".join(text.getvalue().split()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda run, own: [], "--model"),
        (lambda run, own: ["--model", str(run)], "has no recipe.yaml"),
        (
            lambda run, own: ["--model", str(run / "candidates" / "0000"), *own[:2]],
            "add --images",
        ),
        (lambda run, own: ["--model", str(run / "fused"), *own], "python -m ensemble stress"),
        (
            lambda run, own: ["--model", str(run / "alone"), *own],
            "must be complete, but its training is not",
        ),
        (
            lambda run, own: ["--model", str(run.parent / "lonely" / "x"), "--limit", "4"],
            "a model that lies in no run has no select split",
        ),
        (
            lambda run, own: ["--model", str(run / "candidates" / "0000"), *own, "--limit", "1"],
            "--limit",
        ),
        (
            lambda run, own: [
                *("--model", str(run / "candidates" / "0000"), *own),
                *("--out", own[1] + "/below-a-file"),
            ],
            "must lie in a folder that can be made",
        ),
    ],
)
def test_bad_input_is_told_in_a_line(
    arguments: Callable[[Path, list[str]], list[str]],
    message: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, architecture in (("fused", "fused"), ("alone", "test_resnet")):
        (run / name).mkdir(exist_ok=True)
        Recipe(backbone="x", architecture=architecture, canvas=40).save(run / name / "recipe.yaml")
    lonely = run.parent / "lonely" / "x"
    if not lonely.exists():
        lonely.mkdir(parents=True)
        RECIPE.save(lonely / "recipe.yaml")
        weights = run / "candidates" / "0000" / "model.safetensors"
        (lonely / weights.name).write_bytes(weights.read_bytes())
    assert main(["stress", *arguments(run, flags(tmp_path))]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_broken_images_are_set_aside_up_to_a_limit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = flags(tmp_path, broken=1)
    command = ["stress", "--model", str(run / "candidates" / "0000"), "--out", str(tmp_path)]
    assert main([*command, *own, "--device", "cpu"]) == 2
    told = capsys.readouterr()
    assert "set aside 0.png: the file is empty" in told.out
    assert "at most 5% of a set's images may be broken, found 1 of 12" in told.err
    assert not (tmp_path / STRESS).exists()


def test_figures_are_of_what_could_be_read() -> None:
    generator = np.random.default_rng(0)
    targets = np.array([0, 1] * 20)
    scores = 0.3 * generator.random((len(ALTERATIONS) + 1, 40)) + 0.5 * targets
    scores[5, targets == 1] = 0.0
    scores[:, 7] = np.nan
    rows = stress_table(scores, targets, np.arange(40))
    assert (rows["images"] == 39).all()
    assert rows["auc"][0] == 1.0
    assert rows["auc"][5] == 0.0
    worst = ALTERATIONS[4]
    assert worst_case(rows).startswith(f"worst: {worst} (")
    assert "-1.0000 against 1.0000 clean" in worst_case(rows)
    assert mean_of_subset(rows) == 1.0


def test_intervals_take_images_of_one_group_together() -> None:
    generator = np.random.default_rng(1)
    targets, groups = np.array([0, 1] * 80), np.repeat(np.arange(40), 4)
    clips = generator.normal(size=40)[groups] + targets
    scores = np.tile(1 / (1 + np.exp(-clips)), (len(ALTERATIONS) + 1, 1))
    row = stress_table(scores, targets, groups).iloc[1]
    found = (row["auc_low"], row["auc_high"])
    together, alone = (delong_interval(scores[0], targets, own) for own in (groups, None))
    assert found == pytest.approx((together.low, together.high))
    assert found != pytest.approx((alone.low, alone.high), abs=1e-3)


def test_what_was_trained_on_select_is_not_tried_on_it(run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    folder = run / "refits" / "refit-0000"
    shutil.copytree(run / "candidates" / "0000", folder)
    replace(RECIPE, trained_on="fit+select").save(folder / "recipe.yaml")
    settings = StressSettings(model=folder, device="cpu", out=tmp_path)
    with pytest.raises(UserError, match=r"was trained on select; give --images and --labels"):
        run_stress(settings, Console(quiet=True))


def test_a_loaded_candidate_is_its_network(run: Path) -> None:
    network = load_candidate(run / "candidates" / "0000")
    assert network.canvas == 40
    expected = build_network(RECIPE).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
