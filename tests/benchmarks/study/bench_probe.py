"""How far a probe of frozen features ranks backbones as training does, and what it costs.

    python tests/benchmarks/study/bench_probe.py --train-labels F --train-images D \\
        --train-groups G --val-labels F --val-images D --val-groups G --backbones B --pool P \\
        --weights-dir W --leaderboard results/published/dfdc-faces/leaderboard.csv \\
        --output probe.csv

Each backbone of the pool is probed at its first size, or at --image-size, as a search does it, and
compared with its best complete candidate in a leaderboard: Spearman's rank correlation. The
leaderboard may be of other sizes, images and lengths of training, and says so itself.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from cyclopts import run
from rich.console import Console

from search.machine.files import short_path
from search.machine.interruption import Interruption
from search.pixels.opening import fill, open_quarantine, open_reader
from search.report.probes import rank_correlation
from search.settings.search import SearchSettings
from search.study.decisions.space import BASELINE
from search.study.plan import prepare
from search.study.probing import probe_pool


def main(
    settings: SearchSettings | None = None,
    *,
    leaderboard: Path | None = None,
    output: Path | None = None,
    quick: bool = False,
) -> None:
    """Probes a pool, and tells how its order agrees with a leaderboard.

    Args:
        settings: of a search on these images; the demo set's, from scratch, by default.
        leaderboard: of a finished search of the same pool.
        output: CSV file (a row a backbone: probe and final AUC); rows of other sizes stay in it.
        quick: a few images: whether it works at all.
    """
    console = Console()
    settings = settings or SearchSettings()
    if quick:
        settings = replace(
            settings,
            limit_train=100,
            limit_val=60,
            image_size=32,
            pool="test_vit.r160_in1k,test_resnet.r160_in1k",
        )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        plan = prepare(replace(settings, out=out).resolved(), console=console)
        out.mkdir()
        with open_reader(
            plan.splits,
            plan.space.canvas,
            cache=settings.cache,
            runtime=plan.runtime,
            quarantine=open_quarantine(out, console),
            console=console,
        ) as reader:
            if not quick:
                fill(reader, console, lambda: None)
            probes = probe_pool(plan, out, reader, Interruption(), console.print)
    table = pd.DataFrame([asdict(probe) for probe in probes])
    table = table.drop(columns=["kept", "reason"]).rename(columns={"images": "probed_images"})
    if leaderboard is not None:
        rows = pd.read_csv(leaderboard)
        is_baseline = rows["augmentation"].str.startswith(BASELINE)
        complete = rows[(rows["state"] == "complete") & ~is_baseline]
        final = complete.groupby("backbone")["auc"].max()
        table["final_auc"] = table["backbone"].map(final)
        correlation = rank_correlation(
            {probe.backbone: probe.auc for probe in probes if probe.auc is not None},
            {str(name): float(auc) for name, auc in final.items()},
        )
        console.print(
            f"with the best complete candidates of {short_path(leaderboard)}: {correlation}"
        )
    if output is not None:
        if output.exists():
            table = pd.concat([pd.read_csv(output), table])
            table = table.drop_duplicates(["backbone", "image_size"], keep="last")
        table.to_csv(output, index=False)


if __name__ == "__main__":
    run(main)
