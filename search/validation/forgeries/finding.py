"""Label table -> methods of its fakes, where no file names them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from search.catalogue.backbones import Backbone
from search.catalogue.weights import check_weights, locate_weights
from search.data.inputs import FindMethods
from search.data.labels import NO_METHOD
from search.data.unseen import Found
from search.errors import UserError
from search.machine.device import Runtime
from search.machine.progress import Bars, tell_line
from search.pixels.cache import cache_root
from search.pixels.canvas import choose_side, sample_sizes
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from search.pixels.quarantine import Quarantine
from search.settings.search import SearchSettings
from search.training.network import build_network
from search.training.recipe import Recipe
from search.validation.forgeries.clusters import check_enough, cluster
from search.validation.forgeries.describing import EarlyMaps, Frequencies, Together, describe
from search.validation.forgeries.kept import described_in_parts, fingerprint

LARGEST_SIDE = 224
"""In pixels, of the squares that are described."""

BATCH = 64

DESCRIPTIONS = "descriptions"
"""Folder in that of the cache."""


def finder(
    settings: SearchSettings,
    backbones: Sequence[Backbone],
    runtime: Runtime,
    console: Console,
    check: Callable[[], None] = lambda: None,
) -> FindMethods:
    """What finds the methods of a new run's fakes.

    Args:
        settings: the number of clusters, where weights come from, and the seed.
        backbones: that may be used; the first whose weights are at hand looks at the images.
        runtime: the device to compute on, and how many processes read.
        console: shows how far it is.
        check: called as bytes arrive and after every batch; what it raises ends the finding.
    """

    def find(rows: pd.DataFrame) -> Found:
        fakes = np.flatnonzero(rows["target"] == 1)
        groups = rows["group"].iloc[fakes].nunique()
        check_enough(len(fakes), groups, settings.clusters)
        with_fakes = rows["group"].isin(set(rows["group"].iloc[fakes]))
        # A real image without a fake of its group says nothing of what a forgery changed.
        looked_at = np.flatnonzero(with_fakes)
        table = rows.iloc[looked_at].reset_index(drop=True)
        side = choose_side(sample_sizes(table["path"].tolist()), LARGEST_SIDE)
        descriptor = Together(_descriptors(settings, backbones, side, console, check))
        root = cache_root(settings.cache)
        kept = None if root is None else root / DESCRIPTIONS
        described = described_images(descriptor, table, side, runtime, console, kept, check)
        changes = changes_of(described, table)
        is_whole = np.isfinite(changes).all(axis=1)
        clusters = cluster(changes[is_whole], settings.clusters, settings.seed)
        methods = np.full(len(rows), NO_METHOD, object)
        methods[looked_at[np.flatnonzero(table["target"] == 1)[is_whole]]] = clusters.names
        by = f"{settings.clusters} clusters of {descriptor.name}"
        return Found(methods.tolist(), clusters.likeness, by)

    return find


def changes_of(described: NDArray[np.float64], table: pd.DataFrame) -> NDArray[np.float64]:
    """What forging changed: the description of each fake, in the table's order, minus the mean of
    the real images of its group. Where its group has none that can be read, that of all real images
    stands for it; where there are none at all, that of all fakes.

    Args:
        described: (N, D); rows of images that cannot be read are NaN.
        table: its N rows have `target` and `group`.
    """
    columns = pd.DataFrame(described)
    is_real = (table["target"] == 0).to_numpy()
    reals = columns[is_real]
    own = reals.groupby(table["group"][is_real].to_numpy()).mean()
    before = own.reindex(table["group"][~is_real]).to_numpy()
    everywhere = (columns if reals.dropna().empty else reals).mean().to_numpy()
    before = np.where(np.isnan(before), everywhere, before)
    changes: NDArray[np.float64] = described[~is_real] - before
    return changes


def _descriptors(
    settings: SearchSettings,
    backbones: Sequence[Backbone],
    side: int,
    console: Console,
    check: Callable[[], None],
) -> list[EarlyMaps | Frequencies]:
    """Frequencies, and the first maps of the first backbone whose weights are at hand. (With random
    weights the maps made clusters less pure on a draft of the demo set than frequencies did.)"""
    for backbone in backbones if settings.weights_source != "none" else ():
        if backbone.fixed_size is not None:
            continue  # it takes no square of another side
        try:
            check_weights(
                (backbone,),
                weights=settings.weights_source,
                weights_dir=settings.weights_dir,
                console=console,
                on_progress=check,
            )
        except UserError:
            continue
        file = locate_weights(
            backbone, weights=settings.weights_source, weights_dir=settings.weights_dir
        )
        recipe = Recipe(
            **backbone.network_fields(side),
            canvas=side,
            weights=settings.weights_source,
            weights_file=None if file is None else str(file),
        )
        network = build_network(recipe)
        if hasattr(network.trunk, "forward_intermediates"):
            return [Frequencies(), EarlyMaps(network, backbone.name)]
    return [Frequencies()]


def described_images(
    descriptor: Together,
    table: pd.DataFrame,
    side: int,
    runtime: Runtime,
    console: Console,
    kept: Path | None,
    check: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """Descriptions of a table's images, (N, D); NaN for those that cannot be read.

    Args:
        descriptor: describes squares.
        table: label table.
        side: of the squares, in pixels.
        runtime: the device to compute on, and how many processes read.
        console: shows how far it is, and what cannot be read.
        kept: folder that keeps what is described, see `described_in_parts`.
        check: called after every batch; what it raises ends the describing.

    Raises:
        UserError: if too many images are broken.
    """
    # Of the whole table few images may be broken; they may all lie in one part of it.
    quarantine = Quarantine(None, limit_fraction=1.0, tell=lambda line: tell_line(console, line))
    reader = Reader(
        side, workers=runtime.workers, pin_memory=runtime.on_cuda, quarantine=quarantine
    )
    with reader, Bars(console, time_left=True, transient=True) as bars:
        bar = bars.add("describing forgeries", len(table), unit="images", plain="described")
        before = 0

        def on_batch(done: int) -> None:
            bar.update(before + done)
            check()

        def describe_part(part: pd.DataFrame) -> NDArray[np.float64]:
            batches = eval_batches(reader, part, batch_size=BATCH)
            found = describe(descriptor, batches, len(part), runtime, on_batch)
            broken = Quarantine(None)
            broken.add_all(quarantine.among(table))
            broken.check(table)
            return found

        def on_part(done: int) -> None:
            nonlocal before
            before = done
            bar.update(done)

        of = fingerprint(descriptor, side)
        return described_in_parts(table, describe_part, of, kept, on_part)
