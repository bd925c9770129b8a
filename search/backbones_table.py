"""The table of `python -m search backbones`: what may be used, what it costs, why some may not."""

from __future__ import annotations

from typing import get_args

from rich.box import SIMPLE_HEAD
from rich.table import Table

from search.backbones import Catalogue, WeightsSource
from search.errors import UserError
from search.rules import judge
from search.strict_yaml import suggestion


def backbones_table(catalogue: Catalogue, pool: str | None, weights: str) -> Table:
    """One row for each backbone.

    Args:
        catalogue: the backbones file.
        pool: only this pool; None takes all.
        weights: hub, file or none: what the verdict on the pretraining is about.

    Raises:
        UserError: if there is no such pool, or no such source of weights.
    """
    source = _source(weights)
    backbones = catalogue.backbones if pool is None else catalogue.pool(pool)
    table = Table(
        title=f"At most {catalogue.budget / 1e6:.1f}M parameters; {catalogue.pretraining}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("backbone", overflow="fold")
    table.add_column("pool", no_wrap=True)
    for name in ("thop", "exact", "GMACs"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("sizes")
    table.add_column("pretraining")
    table.add_column("allowed", overflow="fold")
    for backbone in backbones:
        verdict = judge(backbone, backbone.image_sizes[0], catalogue.budget, weights=source)
        table.add_row(
            backbone.name,
            backbone.pool,
            f"{verdict.params_thop / 1e6:.2f}M",
            f"{verdict.params_exact / 1e6:.2f}M",
            f"{verdict.gmacs:.2f}",
            ", ".join(str(size) for size in backbone.image_sizes),
            verdict.pretraining,
            "yes" if verdict.allowed else f"no: {'; '.join(verdict.reasons)}",
            style=None if verdict.allowed else "dim",
        )
    return table


def _source(weights: str) -> WeightsSource:
    for known in get_args(WeightsSource):
        if weights == known:
            source: WeightsSource = known
            return source
    known_sources = get_args(WeightsSource)
    raise UserError(
        f"--weights must be one of {', '.join(known_sources)}, found '{weights}'"
        f"{suggestion(weights, known_sources)}"
    )
