"""The images that a benchmark trains on, and the space that it draws from, by the settings of a
search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rich.console import Console

from search.catalogue.backbones import DEFAULT_PATH, load_backbones
from search.catalogue.dimensions import DIMENSIONS
from search.data.inputs import read_splits
from search.data.splits import Splits
from search.machine.device import Runtime, resolve_device
from search.pixels.cache import fill_cache, open_cache
from search.pixels.loading.reading import Reader
from search.pixels.opening import choose_canvas
from search.settings.search import SearchSettings
from search.study.decisions.space import Space
from search.validation.forgeries.finding import finder


@contextmanager
def opened_images(
    settings: SearchSettings, image_sizes: Sequence[int]
) -> Iterator[tuple[Splits, Reader]]:
    """The splits and their reader, all canvases in the cache.

    Args:
        settings: resolved.
        image_sizes: of the networks, in pixels: they decide the side of the canvas.
    """
    pool = load_backbones(settings.backbones or DEFAULT_PATH).pool(settings.pool or "")
    runtime, console = Runtime(resolve_device("cpu")), Console(quiet=True)
    # Whose methods are not named, as a search divides them.
    splits = read_splits(settings, find=finder(settings, pool, runtime, console))
    side = choose_canvas(splits, image_sizes)
    tables = (splits.select, splits.report, splits.fit)
    paths = [path for table in tables for path in table["path"]]
    cache = open_cache("auto", paths, side, lambda _: None, among=splits.images)
    if cache is not None:
        fill_cache(cache, lambda _: None)
    with Reader(side, cache=cache) as reader:
        yield splits, reader


def space_of(settings: SearchSettings, image_size: int, canvas: int) -> Space:
    """The space of a search with these settings, resolved, at one image size; dimensions are those
    that a search has by default."""
    assert settings.pool is not None
    pool = load_backbones(settings.backbones or DEFAULT_PATH).pool(settings.pool)
    return Space(
        backbones=tuple(replace(backbone, image_sizes=(image_size,)) for backbone in pool),
        baseline=None,
        dimensions=DIMENSIONS,
        weights=settings.weights_source,
        weights_dir=settings.weights_dir,
        epochs=None,
        schedule="constant",
        canvas=canvas,
        batch_size=settings.batch_size or 32,
        micro_batch_size=None,
        select_limit="all",
        objective="auc",
        precision="fp32",
        channels_last=True,
        compile=False,
        seed=settings.seed,
    )
