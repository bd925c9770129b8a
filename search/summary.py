"""A search in a few lines: what it works on, and the best that it found."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from search.inputs import tables
from search.plan import Plan, versions

TOP_ROWS = 10


def describe_run(plan: Plan) -> dict[str, str]:
    """Facts that every report states."""
    settings = plan.settings
    facts = {
        f"{name} images": f"{len(table):,} ({int(table['target'].sum()):,} fake)"
        for name, table in tables(plan.splits).items()
    }
    weights = {
        "hub": "timm's hub, pinned ImageNet-1K tags",
        "file": "local files, pinned ImageNet-1K tags",
        "none": "none: trained from scratch",
    }[settings.weights_source]
    device = plan.runtime.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    facts |= {
        "pool": str(settings.pool),
        "starting weights": weights,
        "budget": f"{plan.catalogue.budget / 1e6:.0f}M parameters, by thop and exactly",
        "epochs of a trial": str(settings.epochs),
        "seed": str(settings.seed),
        "device": f"{name}, {plan.space.precision}",
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    if plan.notes:
        facts["notes"] = " ".join(plan.notes)
    return facts


def print_top(leaderboard: pd.DataFrame, console: Console) -> None:
    """The best ten complete trials as a table."""
    complete = leaderboard[leaderboard["state"] == "complete"]
    if complete.empty:
        console.print("no candidate is complete yet")
        return
    # Without a box and with short heads, the longest names of timm fit into 80 columns.
    table = Table(title="Best candidates: AUC", box=None, pad_edge=False, title_justify="left")
    columns = ("", "trial", "backbone", "params", "select", "95%", "report")
    for column in columns:
        is_text = column == "backbone"
        table.add_column(
            column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text
        )
    for row in complete.head(TOP_ROWS).to_dict("records"):
        report = row["auc_report"]
        table.add_row(
            f"{row['rank']:.0f}",
            str(row["candidate"]),
            str(row["backbone"]),
            f"{row['params_exact'] / 1e6:.1f}M",
            f"{row['auc']:.4f}",
            f"{row['auc_low']:.3f}-{row['auc_high']:.3f}",
            "" if pd.isna(report) else f"{report:.4f}",
        )
    console.print(table)


def introduce(plan: Plan, run: Path, console: Console) -> None:
    """Tells what is about to be searched, and what could not be."""
    sizes = ", ".join(f"{name} {len(table):,}" for name, table in tables(plan.splits).items())
    baseline = ""
    if plan.space.baseline is not None:
        recipe = plan.space.baseline_recipe()
        baseline = (
            f", beside the challenge's baseline ({recipe.backbone} at {recipe.image_size} px, "
            f"always {recipe.epochs} epochs)"
        )
    lines = [
        f"{short_path(run)}: {sizes} images; {len(plan.space.backbones)} backbones of pool "
        f"'{plan.settings.pool}'{baseline}, on {plan.runtime.device} in {plan.space.precision}",
        *(f"rejected {one.name}: {'; '.join(verdict.reasons)}" for one, verdict in plan.rejected),
        *plan.notes,
    ]
    first = len(plan.space.backbones) + (plan.space.baseline is not None)
    if plan.settings.trials is not None and plan.settings.trials <= first:
        lines.append(
            f"The baseline and the default of each backbone are tried first, {first} trials: "
            f"--trials {plan.settings.trials} ends before anything is searched; more trials, or "
            "fewer backbones (--pool), search further"
        )
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def short_path(path: Path) -> str:
    """The path as seen from the working folder, where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
