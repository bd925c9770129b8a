"""The plot of a comparison: AUC on report against what an image costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from search.figure import LIGHT, Theme, add_legend, name_points, new_figure, save

ROOM_FOR_NAMES = 0.5
"""Share by which the axis of costs goes on, so that the costliest model has its name too."""


def draw_comparison(table: pd.DataFrame, path: Path, theme: Theme = LIGHT) -> Path:
    """AUC with its interval against GMACs; the recommended model stands out.

    Args:
        table: as `ensemble.compare.compare` makes it, one row a model.
        path: where the PNG goes.
        theme: of the page.
    """
    figure, (axes,) = new_figure(theme, 3.5)
    cost, auc = table["gmacs"].to_numpy(np.float64), table["auc"].to_numpy(np.float64)
    low, high = table["auc_low"].to_numpy(np.float64), table["auc_high"].to_numpy(np.float64)
    axes.vlines(cost, low, high, color=theme.grid, linewidth=1.6, zorder=1)
    recommended = table["recommended"].to_numpy(bool)
    allowed = table["allowed"].to_numpy(bool) & ~recommended
    groups = (
        (recommended, "o", theme.series[0], 8.0, "recommended"),
        (allowed, "o", theme.muted, 5.5, "may be submitted"),
        (~table["allowed"].to_numpy(bool), "x", theme.series[1], 6.5, "breaks a rule"),
    )
    for chosen, marker, colour, size, label in groups:
        if chosen.any():
            axes.plot(cost[chosen], auc[chosen], marker, color=colour, ms=size, label=label, ls="")
    axes.set_xscale("log")
    axes.margins(x=0.12)
    left, right = axes.get_xlim()
    axes.set_xlim(left, right * (right / left) ** ROOM_FOR_NAMES)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("GMACs an image")
    axes.set_ylabel("AUC on report, 95% interval")
    add_legend(figure, theme, columns=2)
    name_points(axes, theme, cost, auc, [str(name) for name in table["model"]])
    return save(figure, path)
