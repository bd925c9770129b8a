"""Seconds of one epoch of training and scoring, before images had canvases and now.

    python tests/benchmarks/pixels/bench_epoch.py --train-labels F --train-images D \\
        --val-labels F --val-images D --weights-dir W --backbones B --pool P --image-size 96 \\
        --output epoch.csv

The state before (commit 70bbfd5) is taken from this repository's history and runs in a process of
its own, with its own code. Both train the same recipe, `light` in batches of 32 in fp32, and score
select; they take turns. The cache is filled before, and what that took is a column. Without workers
views are made between two steps: `augment_seconds` are those of training that were spent so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
from cyclopts import run
from rich.console import Console

try:
    from search.settings.search import SearchSettings
except ModuleNotFoundError:  # this file runs with the code of BEFORE as well
    from search.settings import SearchSettings  # type: ignore[attr-defined, no-redef]

REPOSITORY = Path(__file__).parents[3]
BEFORE = "70bbfd5"


def main(
    settings: SearchSettings | None = None,
    *,
    output: Path | None = None,
    quick: bool = False,
    measure: str | None = None,
    folder: Path | None = None,
) -> None:
    """Measures every backbone of the pool in both states.

    Args:
        settings: of a search on these images, read by each state as its own.
        output: CSV file.
        quick: on a few images of the demo set: whether it works at all.
        measure: prints what one state takes for one backbone, as JSON ("before:NAME").
        folder: of the canvases, for `measure`.
    """
    settings = settings or SearchSettings()
    if quick:
        settings = replace(settings, limit_train=64, limit_val=64, image_size=32)
    settings = settings.resolved()
    if measure is not None:
        state, _, backbone = measure.partition(":")
        assert folder is not None
        arms = {"before": before, "after": after}
        print(json.dumps(arms[state](settings, backbone, folder)))
        return
    # Only this state's names of things: the other has its own process.
    from search.catalogue.backbones import DEFAULT_PATH, load_backbones

    pool = load_backbones(settings.backbones or DEFAULT_PATH).pool(settings.pool or "demo")
    console, rows, files = Console(), [], list[str]()
    if quick:
        # BEFORE would make a demo set of its own, and takes long over it.
        from search.data.demo import make_demo
        from search.machine.files import cache_folder

        demo = make_demo(cache_folder() / "demo")
        files += [
            "--train-labels",
            str(demo.train_labels),
            "--train-images",
            str(demo.train_images),
        ]
        files += ["--val-labels", str(demo.val_labels), "--val-images", str(demo.val_images)]
    with tempfile.TemporaryDirectory() as temporary:
        old = Path(temporary) / "before"
        old.mkdir()
        archive = subprocess.run(
            ["git", "archive", BEFORE, "search", "backbones.yaml"],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
        )
        subprocess.run(["tar", "-x", "-C", str(old)], input=archive.stdout, check=True)
        for backbone in pool[: 1 if quick else None]:
            for state, checkout in (("before", old), ("after", REPOSITORY)):
                folder = Path(temporary) / "canvases"
                if quick and state == "after":
                    # This process has imported it.
                    found = after(settings, backbone.name, folder)
                else:
                    name = f"{state}:{backbone.name}"
                    found = _in_its_process(name, checkout, folder, files)
                rows.append({"arm": state, "backbone": backbone.name, **found})
                console.print(rows[-1], highlight=False, soft_wrap=True)
    table = pd.DataFrame(rows)
    console.print(table.to_string(index=False), highlight=False, soft_wrap=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(output, index=False)


def _in_its_process(
    measure: str, checkout: Path, folder: Path, files: Sequence[str]
) -> dict[str, Any]:
    """What a state of the repository takes, by its own code, of files that are not its own demo
    set."""
    arguments = [*sys.argv[1:], *files, "--measure", measure, "--folder", str(folder)]
    told = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return found


def recipe_of(backbone: Any, settings: SearchSettings) -> dict[str, Any]:
    """The fields that recipes of both states have."""
    weights: dict[str, Any] = {"weights": "none"}
    if settings.weights_dir is not None:
        file = str(settings.weights_dir / f"{backbone.name}.safetensors")
        weights = {"weights": "file", "weights_file": file}
    size = settings.image_size or backbone.image_sizes[0]
    return {
        "backbone": backbone.name,
        "architecture": backbone.architecture,
        "model_args": backbone.create_args(size),
        "mean": backbone.mean,
        "std": backbone.std,
        "image_size": size,
        **weights,
        "epochs": 1,
        "augmentation": "light",
        "channels_last": True,
    }


def after(settings: SearchSettings, name: str, folder: Path) -> dict[str, Any]:
    """An epoch as it is trained now."""
    from search.catalogue.backbones import DEFAULT_PATH, load_backbones
    from search.data.inputs import read_splits
    from search.machine.device import Runtime, resolve_device
    from search.pixels.cache import fill_cache, open_cache
    from search.pixels.loading.batches import Batch
    from search.pixels.loading.reading import Reader
    from search.pixels.opening import choose_canvas
    from search.training.recipe import Recipe
    from search.training.train import train

    splits = read_splits(settings)
    backbone = load_backbones(settings.backbones or DEFAULT_PATH).get(name)
    side = choose_canvas(splits, [settings.image_size or backbone.image_sizes[0]])
    recipe = Recipe(**recipe_of(backbone, settings), canvas=side)
    runtime = Runtime(resolve_device("cpu"), settings.workers or 0)
    paths = [path for table in (splits.select, splits.fit) for path in table["path"]]
    cache = open_cache(str(folder), paths, side, lambda _: None)
    assert cache is not None
    started = time.perf_counter()
    fill_cache(cache, lambda _: None)
    filled = time.perf_counter() - started
    show, showing = Batch.show, 0.0

    def timed(batch: Batch, sizes: Iterable[int]) -> dict[int, Any]:
        nonlocal showing
        begun = time.perf_counter()
        views = show(batch, sizes)
        showing += time.perf_counter() - begun
        return dict(views)

    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        Reader(side, workers=settings.workers or 0, cache=cache, renders=True) as reader,
        patch.object(Batch, "show", timed),
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
        "augment_seconds": round(showing, 1),
        "score_and_wait_share": round(share, 3),
        "images_fit": len(splits.fit),
        "images_scored": metrics["images_of_a_look"],
        "cache_seconds": round(filled, 1),
    }


def before(settings: SearchSettings, name: str, _folder: Path) -> dict[str, Any]:
    """An epoch as it was trained at BEFORE, by the names that things had there."""
    from importlib import import_module

    def old(module: str, name: str) -> Any:
        return getattr(import_module(f"search.{module}"), name)

    old("memory", "keep_freed_memory")()
    splits = old("inputs", "read_splits")(settings)
    catalogue = old("backbones", "load_backbones")(
        settings.backbones or old("backbones", "DEFAULT_PATH")
    )
    recipe = old("training.recipe", "Recipe")(**recipe_of(catalogue.get(name), settings))
    runtime = old("training.runtime", "Runtime")(
        old("training.runtime", "resolve_device")("cpu"), settings.workers or 0
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
                splits.select, recipe.image_size, batch_size=64, workers=settings.workers or 0
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
