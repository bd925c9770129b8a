"""`search profile`: images/s of each stage of a training alone and of the whole; the bottleneck."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from search.catalogue.backbones import DEFAULT_PATH, load_backbones
from search.data.inputs import canvas_of, read_splits
from search.errors import UserError
from search.machine.device import (
    Runtime,
    check_training_precision,
    default_workers,
    fast_float32,
    resolve_device,
)
from search.machine.files import BACKBONES
from search.machine.progress import tell_line
from search.pixels.augmentation.augment import Augmentation, render
from search.pixels.cache import OFF, CanvasCache, fill_cache, open_cache
from search.pixels.canvas import choose_side, sample_sizes, to_canvas
from search.pixels.images import BrokenImage, read_image
from search.pixels.loading.batches import Batch
from search.pixels.loading.epochs import Loader
from search.pixels.loading.reading import Reader
from search.settings.saved import load_settings
from search.settings.search import SearchSettings
from search.settings.subcommands import ProfileSettings
from search.training.arithmetic import choose_arithmetic, random_batch
from search.training.loop import Training
from search.training.loss import classification_loss, training_batches
from search.training.network import build_network
from search.training.recipe import Recipe
from search.training.scoring import predict_batches, to_device
from search.training.train import evaluation_batch

MOST_IMAGES = 512
"""Of the data set, that a stage is measured on."""

DATA_STAGES = ("read", "decode", "canvas", "gather", "compress")
"""What worker processes do beside the training; on a CPU they augment as well."""

MAKING_CANVASES = ("read", "decode", "canvas")
"""What a cache does once for all; `gather` takes its place."""

NO_PART = ("score",)
"""Stages that an image of a training does not pass."""


@dataclass(frozen=True)
class Stage:
    """How fast one stage is."""

    name: str
    images_per_second: float  # of one process that does nothing else
    seconds: float | None  # of the training's time, for an image; None: it does not pass here


@dataclass(frozen=True)
class Profile:
    """What was measured."""

    stages: tuple[Stage, ...]
    whole: float  # images/s of a training
    bottleneck: str


def run_profile(settings: ProfileSettings, console: Console) -> Profile:
    """Measures each stage and the whole, and prints a table.

    Args:
        settings: see there.
        console: where it goes.

    Raises:
        UserError: for bad input, or if no image can be read.
    """
    search, catalogue_path = _search_settings(settings)
    device = resolve_device(search.device)
    workers = default_workers(device) if search.workers is None else search.workers
    runtime = Runtime(device, workers)
    recipe = _recipe(settings, search, catalogue_path, device)
    table = _readable(read_splits(search).fit, recipe.seed)
    recipe = replace(recipe, batch_size=min(recipe.batch_size, len(table)))
    if settings.out is None:
        side = choose_side(sample_sizes(table["path"].tolist()), recipe.image_size)
        recipe = replace(recipe, canvas=search.canvas or side)
    if recipe.precision == "auto":
        network = build_network(recipe, pretrained=False)
        recipe = choose_arithmetic(network, recipe, runtime, console.print).applied(recipe)
    cached = search.cache != OFF
    with tempfile.TemporaryDirectory() as folder:
        cache = _cache(Path(folder), table, recipe.canvas, console) if cached else None
        speeds = dict(_measured(table, recipe, runtime, cache, settings.seconds))
    whole = speeds.pop("whole")
    stages = tuple(
        Stage(name, speed, _cost(name, speed, runtime, cached=cached))
        for name, speed in speeds.items()
    )
    slowest = max(stages, key=lambda stage: stage.seconds or 0.0)
    profile = Profile(stages, whole, slowest.name)
    _show(profile, recipe, runtime, console)
    return profile


def _cost(name: str, speed: float, runtime: Runtime, *, cached: bool) -> float | None:
    """Seconds that an image costs a training; workers share what they do."""
    if name in NO_PART or (cached and name in MAKING_CANVASES):
        return None
    in_workers = name in DATA_STAGES or (name == "augment" and runtime.device.type == "cpu")
    return 1 / speed / (max(1, runtime.workers) if in_workers else 1)


def _cache(folder: Path, table: pd.DataFrame, side: int, console: Console) -> CanvasCache | None:
    """A cache of these few images, as a search has one of all."""

    def tell(line: str) -> None:
        tell_line(console, line)

    cache = open_cache(str(folder), table["path"].tolist(), side, tell)
    if cache is not None:
        fill_cache(cache, lambda _: None)
    return cache


def _search_settings(settings: ProfileSettings) -> tuple[SearchSettings, Path]:
    """The run's settings, or those of a search of the data set, with what the user gave."""
    if settings.out is not None:
        base, catalogue = load_settings(settings.out), settings.out / BACKBONES
    else:
        base = SearchSettings(
            train_labels=settings.train_labels, train_images=settings.train_images
        ).resolved()
        catalogue = DEFAULT_PATH
    names = (
        *("limit_train", "device", "workers", "batch_size", "image_size", "precision"),
        *("canvas", "cache"),
    )
    given = {name: getattr(settings, name) for name in names}
    if settings.out is not None:
        # The run's images and their canvas stay its own; few of them are looked at anyway.
        given.pop("limit_train")
        given["canvas"] = canvas_of(settings.out)
    return replace(base, **{k: v for k, v in given.items() if v is not None}), catalogue


def _recipe(
    settings: ProfileSettings, search: SearchSettings, catalogue_path: Path, device: torch.device
) -> Recipe:
    """A trial's recipe, of the backbone that is asked for or the first of the pool; with random
    weights, which are as fast as any."""
    catalogue = load_backbones(catalogue_path)
    assert search.pool is not None
    pool = catalogue.pool(search.pool)
    backbone = pool[0] if settings.backbone is None else catalogue.get(settings.backbone)
    size = search.image_size or backbone.image_sizes[0]
    return Recipe(
        **backbone.network_fields(size),
        canvas=search.canvas or size,
        weights="none",
        batch_size=search.batch_size or Recipe.batch_size,
        micro_batch_size=search.micro_batch_size,
        augmentation=settings.augmentation,
        precision=check_training_precision(search.precision, device),
        channels_last=True,
        compile=search.compile,
        seed=search.seed,
    )


def _readable(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Some images that can be read, drawn from all: those of one folder may be alike."""
    drawn = table.sample(min(len(table), MOST_IMAGES), random_state=seed)
    kept = [_is_readable(path) for path in drawn["path"]]
    if sum(kept) < 2:
        raise UserError(
            f"profile needs two images that can be read, found {sum(kept)} of {len(drawn)}"
        )
    return drawn[kept].reset_index(drop=True)


def _is_readable(path: str) -> bool:
    try:
        read_image(path)
    except BrokenImage:
        return False
    return True


def _measured(
    table: pd.DataFrame,
    recipe: Recipe,
    runtime: Runtime,
    cache: CanvasCache | None,
    seconds: float,
) -> Iterator[tuple[str, float]]:
    """images/s of each stage, then of the whole."""
    yield from _data_stages(table["path"].tolist(), recipe, runtime, cache, seconds)
    # At the network's own size: to bring canvases to it is part of augmenting.
    batch = random_batch(recipe.batch_size, recipe.image_size)
    wait = partial(_wait, runtime)

    def counted(work: Callable[[], Any]) -> Callable[[], int]:
        def step() -> int:
            work()
            return len(batch.targets)

        return step

    pinned = batch.pin_memory() if runtime.on_cuda else batch
    yield "copy", _speed(counted(lambda: to_device(pinned, runtime)), seconds, wait)
    network = build_network(recipe, pretrained=False)
    reader = Reader.on(runtime, recipe.canvas, cache=cache)
    loader = training_batches(table, recipe, reader)
    training = Training(network, loader, classification_loss(table, recipe), recipe, runtime)
    ready = batch.to(runtime.device)
    with fast_float32(runtime.device):
        training.network.train()
        yield "train", _speed(counted(lambda: training.step(ready)), seconds, wait)
    # As looks do: whole canvases, in the precision of the training.
    canvases = random_batch(evaluation_batch(recipe), recipe.canvas).to(runtime.device)

    def score() -> int:
        batches = predict_batches(training.network, [canvases], runtime, training.step.precision)
        return sum(len(found.scores) for found in batches)

    yield "score", _speed(score, seconds)
    training.network.train()
    with reader, fast_float32(runtime.device):
        batches = _endless(loader, recipe.image_size)
        next(batches)  # Workers start.

        def step() -> int:
            found = next(batches)
            training.step(found)
            return len(found.targets)

        yield "whole", _speed(step, seconds, wait)


def _data_stages(
    paths: Sequence[str],
    recipe: Recipe,
    runtime: Runtime,
    cache: CanvasCache | None,
    seconds: float,
) -> Iterator[tuple[str, float]]:
    """What happens to an image before it is in a batch, each stage on what the one before made."""
    augmentation = Augmentation(recipe.augmentation, recipe.augmentation_strength)
    images = [read_image(path) for path in paths[:64]]
    read = _speed_of(paths, lambda path: Path(path).read_bytes(), seconds)
    both = _speed_of(paths, read_image, seconds)
    yield "read", read
    yield "decode", 1 / max(1 / both - 1 / read, 1e-9)

    yield "canvas", _speed_of(images, lambda image: to_canvas(image, recipe.canvas), seconds)
    canvases = torch.stack([to_canvas(image, recipe.canvas) for image in images])
    if cache is not None:
        into, rows = torch.empty_like(canvases[0]).numpy(), cache.rows
        yield "gather", _speed_of(paths, lambda path: cache.copy(rows[path], path, into), seconds)
        cache.close()
    seeds = itertools.count()

    def prepare(canvas: torch.Tensor) -> None:
        augmentation.prepare(canvas, next(seeds))

    yield "compress", _speed_of(list(canvases), prepare, seconds)
    batch = canvases[: recipe.batch_size].to(runtime.device)

    def augment() -> int:
        numbers = torch.tensor([next(seeds) for _ in batch])
        render(batch, numbers, augmentation, recipe.image_size)
        return len(batch)

    yield "augment", _speed(augment, seconds, partial(_wait, runtime))


def _speed_of(items: Sequence[Any], work: Callable[[Any], Any], seconds: float) -> float:
    """Items/s, over and over."""
    endless = itertools.cycle(items)

    def step() -> int:
        work(next(endless))
        return 1

    return _speed(step, seconds)


def _speed(
    step: Callable[[], int], seconds: float, wait: Callable[[], None] = lambda: None
) -> float:
    """Images/s of a step that returns how many it worked on, after one that warms up. It is waited
    for at the end alone, as a training does not wait for each of its steps either."""
    step()
    wait()
    images, started = 0, time.perf_counter()
    while not images or time.perf_counter() - started < seconds:
        images += step()
    wait()
    return images / max(time.perf_counter() - started, 1e-9)


def _wait(runtime: Runtime) -> None:
    """Until a GPU has done all that it was given."""
    if runtime.on_cuda:
        torch.cuda.synchronize(runtime.device)
    elif runtime.device.type == "mps":
        torch.mps.synchronize()


def _endless(loader: Loader, size: int) -> Iterator[Batch]:
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        yield from (batch for _, batch in loader.numbered(sizes=(size,)))


def _show(profile: Profile, recipe: Recipe, runtime: Runtime, console: Console) -> None:
    layout = " channels_last" if recipe.channels_last else ""
    # A line of its own: a title would be broken to the width of the table.
    tell_line(
        console,
        f"{recipe.backbone} at {recipe.image_size} px from canvases of {recipe.canvas} px, "
        f"{recipe.augmentation}, batches of {recipe.batch_size}, {recipe.precision}{layout}, on "
        f"{runtime.device} with {runtime.workers} workers",
    )
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "images/s alone", "ms an image", ""):
        table.add_column(column, justify="left" if column in ("stage", "") else "right")
    for stage in profile.stages:
        cost = "" if stage.seconds is None else f"{1000 * stage.seconds:.2f}"
        mark = "bottleneck" if stage.name == profile.bottleneck else ""
        table.add_row(stage.name, f"{stage.images_per_second:,.0f}", cost, mark)
    table.add_row("whole", f"{profile.whole:,.1f}", f"{1000 / profile.whole:.2f}", "")
    console.print(table)
    parallel = f"shared by {runtime.workers} workers" if runtime.workers else "in the same process"
    last = "augmenting" if runtime.device.type == "cpu" else "compressing"
    tell_line(console, f"bottleneck: {profile.bottleneck} (all up to {last} is {parallel})")
