"""Seconds of one epoch of training and scoring, before images had canvases and now.

    python tests/benchmarks/bench_epoch.py --train-labels F --train-images D --val-labels F \\
        --val-images D --weights-dir W --backbones B --pool P --output epoch.csv

The state before (commit 70bbfd5) is taken from this repository's history and runs in a process of
its own, with its own code. Both train the same recipe, `light` in batches of 32 in fp32, and score
select; they take turns. The cache is filled before, and what that took is a column.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from cyclopts import Parameter, run
from rich.console import Console

REPOSITORY = Path(__file__).parents[2]
BEFORE = "70bbfd5"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Data:
    """What is trained, on which images; see `search run`."""

    train_labels: Path | None = None
    train_images: Path | None = None
    val_labels: Path | None = None
    val_images: Path | None = None
    train_groups: Path | None = None
    val_groups: Path | None = None
    limit_train: int | None = None
    weights_dir: Path | None = None
    backbones: Path | None = None
    pool: str = "demo"
    image_size: int = 96
    workers: int = 0

    def settings(self) -> dict[str, Any]:
        """As the settings of a search, in both states."""
        names = ("train_labels", "train_images", "val_labels", "val_images", "train_groups")
        return {name: getattr(self, name) for name in (*names, "val_groups", "limit_train")}


def main(
    data: Data | None = None,
    *,
    output: Path | None = None,
    repetitions: int = 1,
    quick: bool = False,
    measure: str | None = None,
    cache: Path | None = None,
) -> None:
    """Measures every backbone of the pool in both states.

    Args:
        data: what is trained.
        output: CSV file.
        repetitions: of each measurement.
        quick: on a few images of the demo set: whether it works at all.
        measure: prints what one state takes for one backbone, as JSON ("before:NAME").
        cache: folder of the canvases.
    """
    data = data or Data()
    if quick:
        data = Data(limit_train=64, image_size=32)
    if measure is not None:
        state, _, backbone = measure.partition(":")
        assert cache is not None
        arms = {"before": before, "after": after}
        print(json.dumps(arms[state](data, backbone, cache)))
        return
    # Only this state's names of things: the other has its own process.
    from search.catalogue.backbones import DEFAULT_PATH, load_backbones

    pool = load_backbones(data.backbones or DEFAULT_PATH).pool(data.pool)[: 1 if quick else None]
    console, rows = Console(), []
    with tempfile.TemporaryDirectory() as temporary:
        old = Path(temporary) / "before"
        old.mkdir()
        archive = subprocess.run(
            ["git", "archive", BEFORE], cwd=REPOSITORY, check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", str(old)], input=archive.stdout, check=True)
        for _ in range(repetitions):
            for backbone in pool:
                for state, checkout in (("before", old), ("after", REPOSITORY)):
                    found = _measured(
                        state, backbone.name, checkout, data, Path(temporary) / "cache", quick=quick
                    )
                    rows.append({"arm": state, "backbone": backbone.name, **found})
                    console.print(rows[-1], highlight=False, soft_wrap=True)
    table = pd.DataFrame(rows)
    console.print(table.to_string(index=False), highlight=False, soft_wrap=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(output, index=False)


def _measured(
    state: str, backbone: str, checkout: Path, data: Data, cache: Path, *, quick: bool
) -> dict[str, Any]:
    arguments = ["--measure", f"{state}:{backbone}", "--cache", str(cache)]
    if quick:
        arguments.append("--quick")
    else:
        for name, value in asdict(data).items():
            if value is not None:
                arguments += [
                    f"--{name.replace('_', '-')}",
                    str(value.resolve() if isinstance(value, Path) else value),
                ]
    told = subprocess.run(
        [sys.executable, __file__, *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def recipe_of(backbone: Any, data: Data) -> dict[str, Any]:
    """The fields that recipes of both states have."""
    weights: dict[str, Any] = {"weights": "none"}
    if data.weights_dir is not None:
        file = str(data.weights_dir / f"{backbone.name}.safetensors")
        weights = {"weights": "file", "weights_file": file}
    return {
        "backbone": backbone.name,
        "architecture": backbone.architecture,
        "model_args": backbone.create_args(data.image_size),
        "mean": backbone.mean,
        "std": backbone.std,
        "image_size": data.image_size,
        **weights,
        "epochs": 1,
        "augmentation": "light",
        "channels_last": True,
    }


def after(data: Data, name: str, cache_folder: Path) -> dict[str, Any]:
    """An epoch as it is trained now."""
    from search.catalogue.backbones import DEFAULT_PATH, load_backbones
    from search.data.inputs import read_splits
    from search.machine.device import Runtime, resolve_device
    from search.pixels.cache import fill_cache, open_cache
    from search.pixels.opening import choose_canvas
    from search.pixels.reading import Reader
    from search.settings import SearchSettings
    from search.training.recipe import Recipe
    from search.training.train import train

    splits = read_splits(SearchSettings(**data.settings()))
    backbone = load_backbones(data.backbones or DEFAULT_PATH).get(name)
    side = choose_canvas(splits, [data.image_size])
    recipe = Recipe(**recipe_of(backbone, data), canvas=side)
    runtime = Runtime(resolve_device("cpu"), data.workers)
    paths = [path for table in (splits.select, splits.fit) for path in table["path"]]
    cache = open_cache(str(cache_folder), paths, side, lambda _: None)
    assert cache is not None
    started = time.perf_counter()
    fill_cache(cache, lambda _: None)
    filled = time.perf_counter() - started
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        Reader(side, workers=data.workers, cache=cache, renders=True) as reader,
    ):
        candidate = train(recipe, splits, Path(folder), runtime=runtime, reader=reader)
        seconds = time.perf_counter() - started
        names = ("train", "score", "save", "wait")
        metrics = candidate.metrics
        parts = {part: metrics[f"{part}_seconds"] for part in names}
    share = (parts["score"] + parts["wait"]) / sum(parts.values())
    return {
        "seconds": round(seconds, 1),
        **{f"{part}_seconds": round(value, 1) for part, value in parts.items()},
        "score_and_wait_share": round(share, 3),
        "images_fit": len(splits.fit),
        "images_scored": metrics["images_of_a_look"],
        "cache_seconds": round(filled, 1),
    }


def before(data: Data, name: str, _cache: Path) -> dict[str, Any]:
    """An epoch as it was trained at BEFORE, by the names that things had there."""
    from importlib import import_module

    def old(module: str, name: str) -> Any:
        return getattr(import_module(f"search.{module}"), name)

    old("memory", "keep_freed_memory")()
    splits = old("inputs", "read_splits")(old("settings", "SearchSettings")(**data.settings()))
    catalogue = old("backbones", "load_backbones")(
        data.backbones or old("backbones", "DEFAULT_PATH")
    )
    recipe = old("training.recipe", "Recipe")(**recipe_of(catalogue.get(name), data))
    runtime = old("training.runtime", "Runtime")(
        old("training.runtime", "resolve_device")("cpu"), data.workers
    )
    supervision = "training.supervision"
    started = time.perf_counter()
    network = old("training.network", "build_network")(recipe)
    result = old("training.loop", "fit")(
        network,
        old(supervision, "training_batches")(splits.fit, recipe, runtime, None),
        old(supervision, "classification_loss")(splits.fit, recipe),
        recipe,
        evaluate=lambda module: old("training.evaluate", "evaluate")(
            module,
            old("data.loaders", "eval_loader")(
                splits.select, recipe.image_size, batch_size=64, workers=data.workers
            ),
            runtime,
        ),
        runtime=runtime,
    )
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 1),
        # Images were decoded and augmented in between: that was not told apart.
        "train_seconds": round(result.train_seconds, 1),
        "score_seconds": round(seconds - result.train_seconds, 1),
        "images_fit": len(splits.fit),
        "images_scored": len(splits.select),
    }


if __name__ == "__main__":
    run(main)
