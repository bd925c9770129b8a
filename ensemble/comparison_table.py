"""A comparison on the terminal: the table, and the recommendation in words."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

SIGNIFICANCE = 0.05


def recommendation(table: pd.DataFrame, winner: Any) -> str:
    """Why the row `winner` is recommended, in one sentence."""
    row = table.loc[winner]
    reference = table[table["kind"] == "reference"].iloc[0]
    rivals = int(table["allowed"].sum())
    auc = f"({row['auc_select']:.4f}); on report {row['auc']:.4f}"
    if rivals > 1:
        text = f"highest AUC on select of the {rivals} that keep the rules {auc}"
    else:
        text = f"the only one that keeps the rules, whatever its AUC on select {auc}"
    if not math.isnan(row["difference"]):
        sign = "above" if row["difference"] >= 0 else "below"
        text += f", {abs(row['difference']):.4f} {sign} the best single"
        if row["p_value"] >= SIGNIFICANCE:
            text += ", a difference that chance can explain"
        # NaN where the test cannot say, as between two perfect scores.
        if not math.isnan(row["p_value"]):
            text += f" (paired DeLong p = {row['p_value']:.2g})"
    gap = row["auc"] - reference["auc"]
    return f"{text}; {abs(gap):.4f} {'above' if gap >= 0 else 'below'} the teacher ensemble"


def print_comparison(table: pd.DataFrame, console: Console) -> None:
    """The comparison as a table, and the recommendation."""
    shown = Table(
        title="AUC: select was chosen by, report by nothing",
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
            f"{row['auc_select']:.4f}",
            f"{row['auc']:.4f}",
            f"{row['auc_low']:.3f}-{row['auc_high']:.3f}",
            f"{row['params_exact'] / 1e6:.1f}M",
            "" if pd.isna(speed) else f"{speed:.0f}",
            "kept" if row["allowed"] else "broken",
        )
    console.print(shown)
    for row in table[~table["allowed"]].to_dict("records"):
        console.print(
            f"{row['model']} may not be submitted: {row['reason']}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    for row in table[table["recommended"]].to_dict("records"):
        console.print(f"submit {row['model']}: {row['reason']}", highlight=False, soft_wrap=True)
    if not table["recommended"].any():
        console.print("no model can be submitted: all break a rule", highlight=False)
