"""`search stress`: how a trained network does on altered images; stress.csv and its heat map."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import timm
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

from search.data.inputs import check_data, read_splits
from search.data.labels import check_two_classes, read_labels
from search.data.splits import draw_part
from search.errors import UserError
from search.machine.device import Runtime, default_workers, resolve_device
from search.machine.files import check_writable, short_path, write_atomically
from search.machine.progress import Bars, tell_line
from search.pixels.altering import ALTERATIONS, CLEAN, KINDS, SUBSET
from search.pixels.opening import open_quarantine
from search.pixels.quarantine import Quarantine
from search.settings.saved import SETTINGS, load_settings
from search.settings.subcommands import StressSettings
from search.training.candidate import RECIPE, Candidate
from search.training.metrics import measure
from search.training.recipe import Recipe
from search.validation.stress.figure import PLOT, draw_heat_maps
from search.validation.stress.scoring import score_altered

STRESS = "stress.csv"

COLUMNS = ("alteration", "strength", "auc", "auc_low", "auc_high", "auc_minus_clean", "images")

DRAW_SEED = 0
"""Of the images that a limit leaves: the same ones for every model."""

Load = Callable[[Path], nn.Module]
"""The trained network of a folder, on the CPU, which has the side of its canvases as `canvas`."""


def load_candidate(folder: Path) -> nn.Module:
    """The network of a candidate, or of a merged model that is a single network.

    Raises:
        UserError: if the folder holds none, or its weights are gone or do not fit.
    """
    if not (folder / RECIPE).exists():
        raise UserError(
            f"--model must be the folder of a candidate, as candidates/0007 of a run, but "
            f"{folder} has no {RECIPE}; choose one that has"
        )
    architecture = Recipe.load(folder / RECIPE).architecture
    if not timm.is_model(architecture):
        raise UserError(
            f"--model must be a single network, found '{architecture}' in {folder}; use `python "
            f"-m ensemble stress --model {folder}`"
        )
    return Candidate(folder).load()


def run_stress(
    settings: StressSettings, console: Console, load: Load = load_candidate
) -> pd.DataFrame:
    """Scores a model on images under every alteration, writes stress.csv and the heat map beside
    the model, and tells the worst case.

    Args:
        settings: see there.
        console: where progress, the table and broken images are told.
        load: opens the model's folder.

    Returns:
        The rows of stress.csv, see `stress_table`.

    Raises:
        UserError: for bad input.
    """
    folder = settings.out or settings.model
    device = resolve_device(settings.device)
    workers = default_workers(device) if settings.workers is None else settings.workers
    network = load(settings.model)
    table, quarantine = _images(settings, console)
    _check_folder(folder)
    alterations = (CLEAN, *ALTERATIONS)
    with Bars(console, time_left=True, transient=True) as bars:
        bar = bars.add("altering and scoring", len(table), unit="images", plain="scored")
        scores = score_altered(
            network,
            table,
            alterations,
            Runtime(device, workers),
            quarantine=quarantine,
            on_image=bar.update,
        )
    rows = stress_table(scores, table["target"].to_numpy(), table["group"].to_numpy())
    write_atomically(folder / STRESS, lambda path: rows.to_csv(path, index=False))
    draw_heat_maps(rows, folder)
    console.print(_printed(rows))
    tell_line(console, worst_case(rows))
    tell_line(console, f"wrote {short_path(folder / STRESS)} and {PLOT}")
    return rows


def stress_table(
    scores: NDArray[np.float64], targets: NDArray[np.int64], groups: NDArray[np.object_]
) -> pd.DataFrame:
    """The rows of stress.csv: first the images as they are, then a row for each alteration.

    Args:
        scores: of CLEAN and ALTERATIONS, (K, N), as `score_altered` gives them.
        targets: (N,), 1 = fake.
        groups: (N,), of the images: intervals take those of one group together.

    Raises:
        UserError: if a class is absent among the images that could be read.
    """
    is_read = ~np.isnan(scores[0])
    targets, groups = targets[is_read], groups[is_read]
    check_two_classes(pd.DataFrame({"target": targets}), "the images that can be read")
    rows: list[tuple[object, ...]] = []
    clean = measure(scores[0][is_read], targets, groups)
    for alteration, own in zip((CLEAN, *ALTERATIONS), scores, strict=True):
        found = measure(own[is_read], targets, groups)
        figures = (found.auc, found.auc_low, found.auc_high, found.auc - clean.auc, found.n)
        rows.append((alteration.kind, alteration.strength, *figures))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def mean_of_subset(rows: pd.DataFrame) -> float:
    """Mean AUC under the alterations that `auc_stress` is of, from the rows of stress.csv; that is
    of at most `search.pixels.altered.ALTERED_IMAGES` of select, this of all images in them."""
    names = {(alteration.kind, alteration.strength) for alteration in SUBSET}
    pairs = zip(rows["alteration"], rows["strength"], strict=True)
    return float(rows["auc"][[pair in names for pair in pairs]].mean())


def worst_case(rows: pd.DataFrame) -> str:
    """The alteration that costs most, in one line, with what is lost on average."""
    altered = rows[rows["alteration"] != CLEAN.kind]
    worst = altered.sort_values("auc", kind="stable").iloc[0]
    kind = KINDS[worst["alteration"]]
    return (
        f"worst: {kind.name} {worst['strength']:g} ({kind.unit}): AUC {worst['auc']:.4f} "
        f"[{worst['auc_low']:.4f}, {worst['auc_high']:.4f}], {worst['auc_minus_clean']:+.4f} "
        f"against {rows['auc'].iloc[0]:.4f} clean; mean over {', '.join(map(str, SUBSET))}: "
        f"{mean_of_subset(rows):.4f}, {rows['images'].iloc[0]:,} images"
    )


def _images(settings: StressSettings, console: Console) -> tuple[pd.DataFrame, Quarantine]:
    """The label table, and what sets its broken images aside."""
    tell = partial(tell_line, console)
    if settings.labels is not None and settings.images is not None:
        table = read_labels(settings.labels, settings.images, settings.groups, tell=tell)
        quarantine = Quarantine(None, tell=tell)
    else:
        run = settings.model.resolve().parent.parent
        if not (run / SETTINGS).exists():
            raise UserError(
                f"a model that lies in no run has no select split, found no {SETTINGS} in {run}; "
                "give --images and --labels"
            )
        if (settings.model / RECIPE).exists() and Candidate(settings.model).has_seen("select"):
            raise UserError(
                f"a model must be tried on images that it was not trained on, but {settings.model} "
                "was trained on select; give --images and --labels"
            )
        splits = read_splits(load_settings(run), tell)
        check_data(run, splits)
        table, quarantine = splits.select, open_quarantine(run, console)
    check_two_classes(table, "what a model is tried on")
    if settings.limit is not None:
        table = draw_part(table, settings.limit, DRAW_SEED).reset_index(drop=True)
        check_two_classes(table, f"what --limit {settings.limit} draws")
    return table, quarantine


def _check_folder(folder: Path) -> None:
    """Before anything is computed that could not be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{STRESS} must lie in a folder that can be made, found: {error}; give another --out"
        ) from None
    check_writable(folder)


def _printed(rows: pd.DataFrame) -> Table:
    """A line a kind: its strengths with their AUC."""
    table = Table(box=None, pad_edge=False)
    for column in ("alteration", "strength: AUC, mildest first"):
        table.add_column(column)
    for kind, own in rows.groupby("alteration", sort=False):
        if kind == CLEAN.kind:
            table.add_row(CLEAN.kind, f"{own['auc'].iloc[0]:.4f}")
            continue
        cells = (f"{s:g}: {auc:.4f}" for s, auc in zip(own["strength"], own["auc"], strict=True))
        table.add_row(str(kind), "   ".join(f"{cell:<12}" for cell in cells))
    return table
