"""A comparison as people see it: the table, the recommendation in words, the plot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from rich.console import Console
from rich.table import Table

from search.drawing.figure import LIGHT, Theme, add_legend, name_points, new_figure, save
from search.machine.progress import tell_line
from search.settings.data import Objective
from search.training.objective import NAMES

SIGNIFICANCE = 0.05


def recommendation(table: pd.DataFrame, winner: Any, objective: Objective = "auc") -> str:
    """Why the row `winner` is recommended, in one sentence.

    Args:
        table: as `ensemble.compare.compare.compare` makes it.
        winner: the row.
        objective: what models are ranked by.
    """
    row = table.loc[winner]
    reference = table[table["kind"] == "reference"].iloc[0]
    rivals = int((table["allowed"] & table["objective"].notna()).sum())
    auc = f"({row['objective']:.4f}); AUC on report {row['auc']:.4f}"
    name = NAMES[objective]
    if rivals > 1:
        text = f"highest {name} on select of the {rivals} that keep the rules {auc}"
    else:
        others = ", beside those that were trained on select" if table["allowed"].sum() > 1 else ""
        text = f"the only one that keeps the rules{others}, whatever its {name} on select {auc}"
    if not math.isnan(row["difference"]):
        sign = "above" if row["difference"] >= 0 else "below"
        text += f", {abs(row['difference']):.4f} {sign} the best single"
        if row["p_value_holm"] >= SIGNIFICANCE:
            text += ", a difference that chance can explain"
        # NaN where the test cannot say, as between two perfect scores.
        if not math.isnan(row["p_value"]):
            text += f" (paired DeLong test over groups: p = {row['p_value']:.2g}"
            tests = int(table["p_value"].notna().sum())
            if tests > 1:
                text += f", by Holm {row['p_value_holm']:.2g} for one of {tests} comparisons"
            text += ")"
    gap = row["auc"] - reference["auc"]
    return f"{text}; {abs(gap):.4f} {'above' if gap >= 0 else 'below'} the teacher ensemble"


def print_comparison(table: pd.DataFrame, console: Console, *, groups: int) -> None:
    """The comparison as a table, and the recommendation.

    Args:
        table: as `ensemble.compare.compare.compare` makes it.
        console: where to write.
        groups: of images on report.
    """
    shown = Table(
        title="AUC: select was chosen by, report by nothing; blank where trained on",
        box=None,
        pad_edge=False,
        title_justify="left",
    )
    for name in ("model", "select", "report", "95%", "params", "images/s", "rules"):
        is_text = name == "model"
        shown.add_column(
            name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text
        )
    for row in table.to_dict("records"):
        speed = row["images_per_second_32"]
        shown.add_row(
            ("* " if row["recommended"] else "") + str(row["model"]),
            _number(row["auc_select"], ".4f"),
            _number(row["auc"], ".4f"),
            "-".join(_number(row[f"auc_{end}"], ".3f") for end in ("low", "high")).strip("-"),
            f"{row['params_exact'] / 1e6:.1f}M",
            _number(speed, ".0f"),
            "kept" if row["allowed"] else "broken",
        )
    console.print(shown)
    tell_line(console, f"95%: DeLong's interval, over the {groups:,} groups of report")
    for row in table[~table["allowed"]].to_dict("records"):
        tell_line(console, f"{row['model']} may not be submitted: {row['reason']}")
    for row in table[table["recommended"]].to_dict("records"):
        tell_line(console, f"submit {row['model']}: {row['reason']}")
    if not table["recommended"].any():
        tell_line(console, "no model can be submitted: all break a rule")


def _number(value: float, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if pd.isna(value) else f"{value:{form}}"


def print_elsewhere(models: list[str], sets: Mapping[str, pd.DataFrame], console: Console) -> None:
    """AUC with its interval on each set from elsewhere, one below the other.

    Args:
        models: M names.
        sets: by name, auc, auc_low and auc_high in the order of `models`; NaN where a model was not
            scored.
        console: where to write.
    """
    for name, figures in sets.items():
        tell_line(console, f"AUC elsewhere: {name}, nothing chosen by it")
        shown = Table(box=None, pad_edge=False)
        shown.add_column("model", overflow="fold")
        for head in ("AUC", "95%"):
            shown.add_column(head, justify="right", no_wrap=True)
        for model, row in zip(models, figures.to_dict("records"), strict=True):
            if not math.isnan(row["auc"]):
                interval = f"{row['auc_low']:.3f}-{row['auc_high']:.3f}"
                shown.add_row(model, f"{row['auc']:.4f}", interval)
        console.print(shown)


def draw_elsewhere(table: pd.DataFrame, path: Path, name: str, theme: Theme = LIGHT) -> Path:
    """AUC on a set from elsewhere with its interval, beside that on report, one line a model.

    Args:
        table: as `ensemble.compare.compare.compare_elsewhere` makes it.
        path: where the PNG goes.
        name: of the set.
        theme: of the page.
    """
    figure, (axes,) = new_figure(theme, 1.3 + 0.3 * len(table))
    places = np.arange(len(table))[::-1]
    low, high = table["auc_low"].to_numpy(np.float64), table["auc_high"].to_numpy(np.float64)
    axes.hlines(places, low, high, color=theme.series[0], linewidth=1.6, zorder=1)
    auc, report = table["auc"].to_numpy(np.float64), table["auc_report"].to_numpy(np.float64)
    axes.plot(auc, places, "o", color=theme.series[0], ms=6.0, label=name, ls="")
    axes.plot(report, places, "|", color=theme.muted, ms=9.0, mew=1.6, label="report", ls="")
    axes.set_yticks(places, [str(model) for model in table["model"]])
    axes.set_ylim(-0.6, len(table) - 0.4)
    axes.set_xlabel("AUC, 95% over groups")
    add_legend(figure, theme, columns=2)
    return save(figure, path)


ROOM_FOR_NAMES = 0.5
"""Share by which the axis of costs goes on, so that the costliest model has its name too."""


def draw_comparison(table: pd.DataFrame, path: Path, theme: Theme = LIGHT) -> Path:
    """AUC with its interval against GMACs; the recommended model stands out.

    Args:
        table: as `ensemble.compare.compare.compare` makes it, one row a model.
        path: where the PNG goes.
        theme: of the page.
    """
    figure, (axes,) = new_figure(theme, 3.5)
    table = table[table["auc"].notna()]
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
    axes.set_ylabel("AUC on report, 95% over groups")
    add_legend(figure, theme, columns=2)
    name_points(axes, theme, cost, auc, [str(name) for name in table["model"]])
    return save(figure, path)
