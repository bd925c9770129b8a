"""The images that a benchmark trains on, from the settings of a search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from search.data.inputs import read_splits
from search.data.splits import Splits
from search.pixels.cache import fill_cache, open_cache
from search.pixels.loading.reading import Reader
from search.pixels.opening import choose_canvas
from search.settings.search import SearchSettings


@contextmanager
def opened_images(
    settings: SearchSettings, image_sizes: Sequence[int]
) -> Iterator[tuple[Splits, Reader]]:
    """The splits and their reader, all canvases in the cache.

    Args:
        settings: resolved.
        image_sizes: of the networks, in pixels: they decide the side of the canvas.
    """
    splits = read_splits(settings)
    side = choose_canvas(splits, image_sizes)
    tables = (splits.select, splits.report, splits.fit)
    paths = [path for table in tables for path in table["path"]]
    cache = open_cache("auto", paths, side, lambda _: None, among=splits.images)
    if cache is not None:
        fill_cache(cache, lambda _: None)
    with Reader(side, cache=cache) as reader:
        yield splits, reader
