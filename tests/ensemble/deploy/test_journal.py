from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console

from ensemble.deploy.journal import Journal
from ensemble.deploy.scoring import Scored, score_images
from search.machine.device import Runtime
from search.training.network import Network, build_network
from search.training.recipe import Recipe
from tests.processes import Process

CPU = Runtime(torch.device("cpu"))
MADE_BY = {"model": "aa", "list": "bb", "precision": "fp32"}
BATCH = 4
IMAGES = 23


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(IMAGES)]
    for name in names:
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    paths = [str(tmp_path / name) for name in names]
    return pd.DataFrame({"img_name": names, "path": paths})


@pytest.fixture
def network() -> Network:
    recipe = Recipe(
        backbone="test_resnet.r160_in1k",
        architecture="test_resnet",
        image_size=32,
        canvas=32,
        weights="none",
    )
    return build_network(recipe)


class Dies(Network):
    """Scores some batches, then no more; remembers how large each was."""

    def __init__(self, network: Network, batches: int = 10**6) -> None:
        torch.nn.Module.__init__(self)
        self.network, self.canvas = network, network.canvas
        self.batches, self.given = batches, list[int]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(self.given) == self.batches:
            raise KeyboardInterrupt
        self.given.append(len(images))
        logits: torch.Tensor = self.network(images)
        return logits


def score(
    model: Any,
    table: pd.DataFrame,
    folder: Path,
    /,
    console: Console | None = None,
    **changes: str,
) -> Scored:
    journal = Journal(folder / "journal", MADE_BY | changes, table)
    console = console or Console(quiet=True)
    return score_images(
        model, table, runtime=CPU, console=console, batch_size=BATCH, journal=journal
    )


def begin(network: Network, table: pd.DataFrame, folder: Path, batches: int) -> Path:
    """Leaves a journal of so many batches."""
    with pytest.raises(KeyboardInterrupt):
        score(Dies(network, batches), table, folder)
    return folder / "journal"


def expected(network: Network, table: pd.DataFrame) -> pd.DataFrame:
    quiet = Console(quiet=True)
    return score_images(network, table, runtime=CPU, console=quiet, batch_size=BATCH).table


@pytest.mark.parametrize("batches", [0, 1, 3, 5])
def test_going_on_scores_the_rest_in_the_same_batches(
    batches: int, network: Network, table: pd.DataFrame, tmp_path: Path
) -> None:
    begin(network, table, tmp_path, batches)
    rest = Dies(network)
    found = score(rest, table, tmp_path)
    assert rest.given == [4, 4, 4, 4, 4, 3][batches:]
    pd.testing.assert_frame_equal(found.table, expected(network, table), check_exact=True)
    # Nothing is left to score.
    nothing = Dies(network)
    again = score(nothing, table, tmp_path)
    assert nothing.given == []
    pd.testing.assert_frame_equal(again.table, found.table, check_exact=True)


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_cut_off(
    cut: int, network: Network, table: pd.DataFrame, tmp_path: Path
) -> None:
    journal = begin(network, table, tmp_path, 3)
    content = journal.read_bytes()
    journal.write_bytes(content[:-cut])
    rest = Dies(network)
    found = score(rest, table, tmp_path)
    assert rest.given == [4, 4, 4, 3]
    pd.testing.assert_frame_equal(found.table, expected(network, table), check_exact=True)
    assert journal.read_bytes().startswith(content)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("model", "model not the same"),
        ("list", "list not the same"),
        ("precision", "precision was fp32, is other"),
    ],
)
def test_a_journal_of_something_else_is_told_and_replaced(
    changed: str,
    told: str,
    network: Network,
    table: pd.DataFrame,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    journal = begin(network, table, tmp_path, 3)
    model = Dies(network)
    score(model, table, tmp_path, console=Console(), **{changed: "other"})
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "not used" in line)
    assert line == f"journal holds scores that are not used: {told}; all images are scored anew"
    assert sum(model.given) == IMAGES
    assert json.loads(journal.read_text().splitlines()[0])[changed] == "other"


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xfe\n", b"{}\n", b'{"model": 1}\nno json\n'], ids=range(4)
)
def test_a_damaged_journal_costs_time_only(
    damage: bytes, network: Network, table: pd.DataFrame, tmp_path: Path
) -> None:
    (tmp_path / "journal").write_bytes(damage)
    found = score(network, table, tmp_path)
    pd.testing.assert_frame_equal(found.table, expected(network, table), check_exact=True)


def test_a_line_that_is_damaged_is_scored_again(
    network: Network, table: pd.DataFrame, tmp_path: Path
) -> None:
    journal = begin(network, table, tmp_path, 3)
    lines = journal.read_text().splitlines()
    lines[2] = '{"rows": [4, 5], "scores": [0.5]}'
    journal.write_text("\n".join(lines) + "\n")
    rest = Dies(network)
    found = score(rest, table, tmp_path)
    assert rest.given == [4, 4, 3, 4]
    np.testing.assert_allclose(found.table["y_pred"], expected(network, table)["y_pred"], atol=1e-6)


def test_images_that_changed_or_were_mended_are_scored_again(
    network: Network, table: pd.DataFrame, tmp_path: Path
) -> None:
    mended, broken = Path(table["path"][1]), Path(table["path"][2])
    whole = mended.read_bytes()
    for path in (mended, broken):
        path.write_bytes(b"no image")
    begin(network, table, tmp_path, 3)
    mended.write_bytes(whole)
    Image.new("RGB", (32, 32), "red").save(table["path"][5])
    found = score(network, table, tmp_path)
    assert [file.img_name for file in found.broken] == ["2.png"]
    np.testing.assert_allclose(found.table["y_pred"], expected(network, table)["y_pred"], atol=1e-6)


def test_an_image_that_is_replaced_while_it_is_scored_is_scored_again(
    network: Network, table: pd.DataFrame, tmp_path: Path
) -> None:
    class Replaces(Dies):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if not self.given:
                Image.new("RGB", (32, 32), "red").save(table["path"][1])
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        score(Replaces(network, 1), table, tmp_path)
    found = score(network, table, tmp_path)
    np.testing.assert_allclose(found.table["y_pred"], expected(network, table)["y_pred"], atol=1e-6)


def test_a_killed_predict_goes_on(tiny_run: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    # Often enough for a kill to find it at work.
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(20):
        for row, path in enumerate(table["path"]):
            (folder / f"{number:02d}-{row:02d}.png").symlink_to(path)
    names = sorted(path.name for path in folder.iterdir())
    listed.write_text("img_name\n" + "\n".join(names) + "\n")
    output = tmp_path / "out" / "scores.csv"
    journal = output.with_name(".scores.csv.journal")
    model = str(tiny_run / "candidates" / "0000")
    command = [
        *("predict", str(listed), "--images", str(folder), "--model", model),
        *("--device", "cpu", "--batch-size", "2", "--workers", "0"),
    ]
    process = Process(tmp_path / "told.txt", "ensemble", *command, "--output", str(output))
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.stat().st_size < 2000:
        assert process.is_alive, process.told
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert process.kill() == -signal.SIGKILL
    assert not output.exists()
    scored = len(journal.read_text().splitlines()) - 1
    assert 0 < scored < len(names) // 2
    going_on = Process(tmp_path / "told2.txt", "ensemble", *command, "--output", str(output))
    assert going_on.wait() == 0
    assert "were scored before: going on" in going_on.told
    assert not journal.exists()
    unbroken = tmp_path / "unbroken.csv"
    assert Process(tmp_path / "b.txt", "ensemble", *command, "--output", str(unbroken)).wait() == 0
    assert output.read_bytes() == unbroken.read_bytes()
    assert [path.name for path in output.parent.iterdir()] == ["scores.csv"]
