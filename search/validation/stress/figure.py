"""The heat map of stress.csv."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import Normalize

from search.drawing.figure import DARK, LIGHT, SMALL_POINTS, Theme, new_figure, save
from search.pixels.altering import CLEAN, KINDS

PLOT, DARK_PLOT = "stress.png", "stress-dark.png"

COLOURS = colormaps["cividis"]
"""From dark to light the same to any colour vision."""

LEVELS = Normalize(0.5, 1.0, clip=True)
"""From guessing to perfect, so that the figures of two models can be laid side by side."""

ROW_INCHES = 0.46


def draw_heat_maps(rows: pd.DataFrame, folder: Path) -> None:
    """Draws `draw_heat_map` for pages of both kinds."""
    for name, theme in ((PLOT, LIGHT), (DARK_PLOT, DARK)):
        draw_heat_map(rows, folder / name, theme)


def draw_heat_map(rows: pd.DataFrame, path: Path, theme: Theme = LIGHT) -> Path:
    """The AUC under each alteration: a row a kind, mildest strength on the left.

    Args:
        rows: of stress.csv.
        path: where the PNG goes.
        theme: of the page.
    """
    kinds = [kind for kind in KINDS.values() if (rows["alteration"] == kind.name).any()]
    figure, (axes,) = new_figure(theme, ROW_INCHES * (len(kinds) + 2))
    most = max(len(kind.strengths) for kind in kinds)
    aucs = np.full((len(kinds), most), np.nan)
    for place, kind in enumerate(kinds):
        own = rows[rows["alteration"] == kind.name]["auc"].to_numpy()
        aucs[place, : len(own)] = own
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.imshow(np.ma.masked_invalid(aucs), cmap=COLOURS, norm=LEVELS, aspect="auto")
    for (row, column), auc in np.ndenumerate(aucs):
        if np.isfinite(auc):
            ink = "black" if LEVELS(auc) > 0.5 else "white"
            axes.text(
                *(column, row, f"{auc:.3f}"),
                ha="center",
                va="center",
                color=ink,
                fontsize=SMALL_POINTS,
            )
    labels = [
        f"{kind.name}\n{'  '.join(f'{strength:g}' for strength in kind.strengths)}"
        for kind in kinds
    ]
    axes.set_yticks(range(len(kinds)), labels, fontsize=SMALL_POINTS - 1.5, parse_math=False)
    axes.set_xticks([0, most - 1], ["mildest", "strongest"])
    axes.xaxis.tick_top()
    clean = rows[rows["alteration"] == CLEAN.kind]
    axes.set_xlabel(f"AUC on {clean['images'].iloc[0]:,} images; {clean['auc'].iloc[0]:.3f} clean")
    return save(figure, path)
