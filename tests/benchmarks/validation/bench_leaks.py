"""Whether `search audit` finds what is planted in a data set, and nothing in a clean one.

    python -m tests.benchmarks.validation.bench_leaks --output results/validation/leaks.csv

Small sets in which names, sizes, compression and times have nothing to do with labels, but for the
one thing that is planted; clean sets beside them. A row a set: what was planted, whether a finding
names it, the cross-validated AUC of headers and names alone, and all findings. What one change of
how files are written brings along (a PNG has other bytes, too) is a finding as well.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
from cyclopts import run
from rich.console import Console

from search.validation.audit.audit import run_audit
from tests.search.validation.audit.planted import CARRIERS, PLANTS, make_set

NOTHING = "nothing"


def main(
    *, output: Path | None = None, seeds: int = 5, clean: int = 20, quick: bool = False
) -> None:
    """Audits sets with every leak, and without any.

    Args:
        output: CSV file.
        seeds: sets with each leak.
        clean: sets without one.
        quick: few sets: whether it works at all.
    """
    plants, rows = PLANTS, list[dict[str, Any]]()
    if quick:
        plants, seeds, clean = PLANTS[:1], 1, 1
    sets = [(plant, seed) for plant in plants for seed in range(seeds)]
    sets += [(NOTHING, seed) for seed in range(clean)]
    # Most of an audit of few images is drawing.
    with patch("search.validation.audit.audit.write_page"):
        for plant, seed in sets:
            with tempfile.TemporaryDirectory() as folder:
                planted = None if plant == NOTHING else plant
                audit = run_audit(make_set(Path(folder), planted, seed), Console(quiet=True))
            kinds = sorted({finding.kind for finding in audit.findings})
            combined = audit.headers.combined
            rows.append(
                {
                    "planted": plant,
                    "seed": seed,
                    "found": planted is not None and CARRIERS.get(plant, plant) in kinds,
                    "auc_of_headers": None if combined is None else round(combined.auc, 4),
                    "findings": "; ".join(kinds),
                }
            )
    table = pd.DataFrame(rows)
    told = table.groupby("planted", sort=False).agg(
        sets=("seed", "size"),
        found=("found", "sum"),
        accused=("findings", lambda texts: int((texts != "").sum())),
        auc_of_headers=("auc_of_headers", "median"),
    )
    Console().print(told.to_string(), highlight=False, soft_wrap=True)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(output, index=False)


if __name__ == "__main__":
    run(main)
