"""A tiny finished run: five candidates of timm's test networks, trained for a moment on images that
are made here. Everything is built without Optuna, as the ensemble must work without it."""

from __future__ import annotations

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
from torch import nn

from ensemble.pool.pool import Pool, open_pool
from search.catalogue.backbones import load_backbones
from search.catalogue.rules import Counts, count_parameters
from search.data.inputs import read_splits, write_data
from search.data.splits import Splits, TrainedOn
from search.machine.device import Runtime, resolve_device
from search.machine.files import CANDIDATES, REFITS
from search.pixels.canvas import describe_canvas
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from search.pixels.opening import open_quarantine, open_reader
from search.report.leaderboard import COLUMNS, write_leaderboard
from search.settings.saved import write_settings
from search.settings.search import SearchSettings
from search.training.arithmetic import DEFAULT
from search.training.candidate import REFIT_OF, Candidate
from search.training.network import Network, build_network
from search.training.recipe import Recipe
from search.training.scoring import evaluate
from search.training.train import train


@pytest.fixture(autouse=True)
def fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No measurement decides what a test compares."""
    monkeypatch.setattr("search.training.train.choose_arithmetic", lambda *_: DEFAULT)


IMAGE_SIZE = 32
PROCESS = Path("/proc/self")
CPU = Runtime(resolve_device("cpu"))

BACKBONES = """\
budget: 200000000
pretraining: ImageNet-1K
pools:
  test:
    test_resnet.r160_in1k: {image_sizes: [32, 48]}
    test_vit.r160_in1k: {image_sizes: [32]}
    test_efficientnet.r160_in1k: {image_sizes: [32]}
"""

RESNET = Recipe(
    backbone="test_resnet.r160_in1k",
    architecture="test_resnet",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    image_size=IMAGE_SIZE,
    canvas=IMAGE_SIZE,
    weights="none",
    epochs=3,
    batch_size=8,
    schedule="constant",
    learning_rate=3e-3,
    warmup_images=32,
    average_power=7.0,
    augmentation="flip",
)
VIT = replace(
    RESNET,
    backbone="test_vit.r160_in1k",
    architecture="test_vit",
    model_args={"img_size": IMAGE_SIZE},
    learning_rate=1e-3,
)

RECIPES: dict[str, tuple[Recipe, str]] = {
    # Two of one start, for soups; then networks that differ in architecture, size, and start.
    "0000": (RESNET, "complete"),
    "0001": (replace(RESNET, learning_rate=1e-3, augmentation="light"), "complete"),
    "0002": (VIT, "complete"),
    "0003": (replace(RESNET, image_size=48), "complete"),
    "0004": (
        replace(
            RESNET, backbone="test_efficientnet.r160_in1k", architecture="test_efficientnet", seed=1
        ),
        "complete",
    ),
    "0005": (VIT, "paused"),
}
"""By the candidate's name: its recipe and its state."""

WITHOUT_REPORT = "0002"
"""The candidate that was not scored on report: opening the pool does so."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Networks this small gain nothing by threads, and lose much on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def quick_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times half a second for each speed is for those who compare models by it."""
    monkeypatch.setattr("ensemble.compare.speed.SECONDS_PER_MEASUREMENT", 0.01)
    monkeypatch.setattr("ensemble.compare.speed.ROUNDS", 1)


_COUNTS: dict[object, Counts] = {}


def _counted_once(model: nn.Module, image_size: int) -> Counts:
    """`count_parameters`, once for each structure: a compare, a submission and its verification ask
    for the same few again and again."""
    named = list(model.named_parameters(remove_duplicate=False))
    structure = (
        image_size,
        str(model),
        tuple((name, tuple(parameter.shape)) for name, parameter in named),
        len({id(parameter) for _, parameter in named}),  # a trunk that is shared is another
        tuple((m.image_size, m.canvas) for m in model.modules() if isinstance(m, Network)),
    )
    if structure not in _COUNTS:
        _COUNTS[structure] = count_parameters(model, image_size)
    return _COUNTS[structure]


@pytest.fixture(autouse=True)
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("network.model", "network.evidence", "compare.compare"):
        monkeypatch.setattr(f"ensemble.{room}.count_parameters", _counted_once)


@pytest.fixture(scope="session")
def tiny_run(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The run folder that all tests share: to be read only; `run_folder` is a copy to write in."""
    return made_once("tiny", _make_tiny) / "tiny-run"


def _make_tiny(folder: Path) -> None:
    """The run, in tiny-run/, and its images."""
    settings = SearchSettings(
        train_labels=make_images(folder, "trainset", 40, seed=0),
        train_images=folder / "trainset",
        val_labels=make_images(folder, "valset", 48, seed=1),
        val_images=folder / "valset",
        pool="test",
        weights="none",
        trials=len(RECIPES),
        epochs=3,
        batch_size=8,
        device="cpu",
        workers=0,
        out=folder / "tiny-run",
    ).resolved()
    run = settings.out
    assert run is not None
    run.mkdir()
    splits = read_splits(settings)
    write_settings(settings, run)
    write_data(run, splits, run.name, budget=200_000_000, canvas=describe_canvas(IMAGE_SIZE))
    (run / "backbones.yaml").write_text(BACKBONES, encoding="utf-8")
    load_backbones(run / "backbones.yaml")
    candidates = [_train(run, name, splits) for name in RECIPES]
    _write_leaderboard(run, candidates)


@pytest.fixture
def run_folder(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run that a test may change; its images stay where they are."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def tiny_pool(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """The opened pool of a copy of the tiny run, on the CPU: to be read only."""
    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("tiny-pool") / "run"))
    return open_pool(run, device="cpu", workers=0)


@pytest.fixture(scope="session")
def scored_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with every candidate scored on report, as opening its pool leaves it: to be read
    only."""
    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("scored") / "run"))
    open_pool(run, device="cpu", workers=0)
    return run


@pytest.fixture
def pool(scored_run: Path, tiny_pool: Pool, tmp_path: Path) -> Pool:
    """The opened pool of a run that a test may change: what `open_pool` makes of a copy of
    `scored_run`, without reading and aligning the same tables again."""
    run = Path(shutil.copytree(scored_run, tmp_path / "run"))
    quiet = Console(quiet=True)
    reader = open_reader(
        tiny_pool.splits,
        tiny_pool.reader.side,
        cache=tiny_pool.settings.cache,
        runtime=tiny_pool.runtime,
        quarantine=open_quarantine(run, quiet),
        console=quiet,
    )
    candidates = tuple(Candidate(run / CANDIDATES / name) for name in tiny_pool.names)
    return replace(tiny_pool, run=run, reader=reader, candidates=candidates)


def make_images(folder: Path, name: str, count: int, seed: int) -> Path:
    """A label file and its images in the challenge's format: fakes have a faint checkerboard."""
    generator = np.random.default_rng(seed)
    (folder / name).mkdir()
    board = (np.indices((IMAGE_SIZE, IMAGE_SIZE)).sum(axis=0) // 4 % 2 * 2 - 1)[..., None]
    rows = []
    for number in range(count):
        target = number % 2
        pixels = 128 + generator.normal(0, 50, (IMAGE_SIZE, IMAGE_SIZE, 3)) + 7 * target * board
        file = f"{seed}{number:03d}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / file)
        rows.append(f"{file},{target}")
    labels = folder / f"{name}_label.txt"
    labels.write_text("\n".join(["img_name,target", *rows, ""]), encoding="utf-8")
    return labels


def photographs(folder: Path) -> pd.DataFrame:
    """Six JPEG files that are no squares, larger than any canvas of a test; their label table."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{number}.jpg" for number in range(6)]
    for path in paths:
        coarse = Image.fromarray(generator.integers(0, 256, (12, 9, 3), np.uint8))
        coarse.resize((97, 130), Image.Resampling.BICUBIC).save(path, quality=90)
    names = [path.name for path in paths]
    return pd.DataFrame({"img_name": names, "path": map(str, paths), "target": [0, 1] * 3})


def _train(run: Path, name: str, splits: Splits) -> Candidate:
    recipe, state = RECIPES[name]
    counts = count_parameters(build_network(recipe), recipe.image_size)
    columns = ("backbone", "image_size", "epochs", "learning_rate", "weight_decay", "batch_size")
    facts = {
        **{column: getattr(recipe, column) for column in (*columns, "seed")},
        "pretraining": "none (from scratch)",
        "params_thop": counts.params_thop,
        "params_exact": counts.params_exact,
        "gmacs": counts.macs / 1e9,
        "augmentation": f"{recipe.augmentation}:{recipe.augmentation_strength:.2f}",
        "path": f"candidates/{name}",
    }
    folder = run / "candidates" / name
    if state != "complete":
        return train(recipe, splits, folder, len(splits.fit), runtime=CPU)
    candidate = train(recipe, splits, folder, runtime=CPU, facts=facts)
    if name != WITHOUT_REPORT:
        loader = eval_batches(Reader(recipe.canvas), splits.report, batch_size=64)
        found = evaluate(candidate.load(), loader, CPU)
        candidate.save_report(splits.report, found.predictions, found.metrics.to_dict())
    return candidate


def _write_leaderboard(run: Path, candidates: list[Candidate]) -> None:
    rows = []
    for candidate in candidates:
        metrics = candidate.metrics if candidate.is_complete else {}
        state = RECIPES[candidate.name][1]
        report = metrics.get("report", {}).get("auc")
        rows.append({**metrics, "candidate": candidate.name, "state": state, "auc_report": report})
    table = pd.DataFrame(rows).sort_values(["state", "auc"], ascending=[True, False])
    complete = table["state"] == "complete"
    table["rank"] = complete.cumsum().where(complete).astype("Int64")
    write_leaderboard(table.reindex(columns=list(COLUMNS)), run / "leaderboard.csv")


@pytest.fixture
def peak_gib() -> Callable[[], float]:
    """The most memory that this process has taken since the test began, beyond what it had then."""
    if not (PROCESS / "clear_refs").exists():
        return lambda: pytest.skip("only Linux tells the peak memory of a while")
    (PROCESS / "clear_refs").write_text("5", encoding="ascii")  # the peak starts from here
    before = _status_gib("VmRSS")
    return lambda: _status_gib("VmHWM") - before


def _status_gib(field: str) -> float:
    (line,) = (
        line
        for line in (PROCESS / "status").read_text(encoding="utf-8").splitlines()
        if line.startswith(field)
    )
    return int(line.split()[1]) / 2**20


def refit(pool: Pool, trained_on: TrainedOn) -> Candidate:
    """The best candidate's recipe on other splits, as `search refit` leaves it."""
    recipe = replace(pool.best.recipe, epochs=1, trained_on=trained_on)
    return train(
        recipe,
        pool.splits,
        pool.run / REFITS / f"refit-{trained_on}",
        runtime=CPU,
        facts={REFIT_OF: pool.best.name, "pretraining": "none (from scratch)"},
    )
