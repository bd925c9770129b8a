"""What it cost that a student's images were shrunk twice: students of the same teachers, taught on
views that are resampled once from the canvas, and on views that are first made at the canvas's side
and then shrunk to the student's, as they were before there were canvases.

    python -m tests.benchmarks.pixels.bench_shrinking --run results/NAME --image-size 96 \\
        --views 2 --epochs 4 --output shrinking.csv

The run is copied, never changed; students of both kinds start from ImageNet, see the same views of
the same images in the same order, and are scored on images that are shrunk once. Differences are
means over the seeds, with 95% intervals that resample groups. The same command goes on after a
stop.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cyclopts import run as run_command
from rich.console import Console
from torch import Tensor

from ensemble.distill.distill import run_distill
from ensemble.pool.pool import open_pool
from ensemble.settings import DistillSettings
from search.data.splits import Splits
from search.machine.interruption import Interruption
from search.pixels.augmentation.augment import render
from search.pixels.augmentation.geometry import resize
from search.pixels.loading.batches import Batch
from search.pixels.loading.epochs import eval_batches
from search.run.search import run_search
from search.settings.search import SearchSettings
from search.training.metrics import roc_auc
from search.training.scoring import SCORING_BATCH, predict
from tests.benchmarks.measured import RESAMPLINGS, resampled_groups
from tests.blank import blank

ARMS = ("once", "twice")
SPLITS = ("select", "report")


def show_twice(batch: Batch, sizes: Iterable[int]) -> dict[int, Tensor]:
    """`Batch.show` with a stop at the canvas's side."""
    side = batch.canvases.shape[-1]
    first = render(batch.canvases, batch.seeds, batch.augmentation, side)
    return {size: resize(first, size) for size in sizes}


@contextmanager
def shrinking(arm: str) -> Iterator[None]:
    """Views of this kind inside."""
    once = Batch.show
    if arm == "twice":
        Batch.show = show_twice  # type: ignore[method-assign]
    try:
        yield
    finally:
        Batch.show = once  # type: ignore[method-assign]


def main(
    *,
    run: Path | None = None,
    image_size: int = 96,
    student: str | None = None,
    views: int = 2,
    epochs: int = 4,
    seeds: int = 3,
    output: Path | None = None,
    quick: bool = False,
) -> None:
    """Teaches a student of each kind with each seed.

    Args:
        run: of `search run`; its candidates are the teachers.
        image_size: of the students, smaller than the canvas.
        student: backbone; default: the best candidate's.
        views: recorded of each image.
        epochs: of a student.
        seeds: of the views and the training.
        output: CSV file (arm, seed, auc_select, auc_report and the scores behind them).
        quick: a few images, and a run of its own: whether it works at all.
    """
    if quick:
        with tempfile.TemporaryDirectory() as temporary:
            made = _quick_run(Path(temporary) / "run")
            _measure(made, 32, student, 1, 1, 1, output, resamplings=20)
        return
    if run is None:
        raise SystemExit("--run must be the folder of a search, whose candidates teach; add it")
    _measure(run, image_size, student, views, epochs, seeds, output)


def _quick_run(out: Path) -> Path:
    """A search of small networks on canvases that are larger than what they see."""
    settings = SearchSettings(
        pool="test_resnet.r160_in1k",
        weights="none",
        limit_train=64,
        limit_val=60,
        image_size=32,
        canvas=48,
        trials=2,
        epochs=1,
        batch_size=16,
        device="cpu",
        workers=0,
        precision="fp32",
        out=out,
    )
    with pytest.MonkeyPatch.context() as patch:
        blank(patch.setattr)  # figures take longer than all else
        return run_search(settings, Console(quiet=True))


def _measure(
    run: Path,
    image_size: int,
    student: str | None,
    views: int,
    epochs: int,
    seeds: int,
    output: Path | None,
    *,
    resamplings: int = RESAMPLINGS,
) -> None:
    """What `main` does; arguments as there."""
    console = Console()
    rows = [] if output is None or not output.exists() else pd.read_csv(output).to_dict("records")
    known = {(row["arm"], row["seed"]) for row in rows}
    splits: Splits | None = None
    for seed in range(seeds):
        for arm in ARMS:
            if (arm, seed) in known and splits is not None:
                continue
            with tempfile.TemporaryDirectory() as temporary:
                copied = Path(temporary) / "run"
                shutil.copytree(run, copied)
                # Workers would make the views out of this process's reach.
                pool = open_pool(copied, workers=0)
                splits = pool.splits
                if (arm, seed) in known:
                    continue
                settings = DistillSettings(
                    run=copied,
                    student=student,
                    start="imagenet",
                    image_size=image_size,
                    views=views,
                    epochs=epochs,
                    seed=seed,
                    precision="fp32",
                )
                with shrinking(arm):
                    candidate = run_distill(pool, settings, Console(quiet=True), Interruption())
                row: dict[str, object] = {"arm": arm, "seed": seed}
                for split in SPLITS:
                    table = getattr(splits, split)
                    loader = eval_batches(pool.reader, table, batch_size=SCORING_BATCH)
                    scores = predict(candidate.load(), loader, pool.runtime).scores
                    row[f"auc_{split}"] = roc_auc(scores, table["target"])
                    row[f"scores_{split}"] = " ".join(f"{score:.5f}" for score in scores)
                rows.append(row)
                console.print({k: v for k, v in row.items() if "scores" not in k}, highlight=False)
            if output is not None:
                output.parent.mkdir(parents=True, exist_ok=True)
                pd.DataFrame(rows).to_csv(output, index=False)
    assert splits is not None
    for split in SPLITS:
        line = compared(pd.DataFrame(rows), splits, split, resamplings)
        console.print(f"{split}: {line}", highlight=False, soft_wrap=True)


def compared(rows: pd.DataFrame, splits: Splits, split: str, resamplings: int = RESAMPLINGS) -> str:
    """Both arms on a split, and what the second shrinking costs."""
    table = getattr(splits, split)
    targets = table["target"].to_numpy()
    scores = {
        arm: np.stack([np.array(text.split(), float) for text in own[f"scores_{split}"]])
        for arm, own in rows.groupby("arm")
    }

    def cost(index: Collection[int]) -> float:
        once, twice = (
            np.mean([roc_auc(own[index], targets[index]) for own in scores[arm]]) for arm in ARMS
        )
        return float(once - twice)

    everything = np.arange(len(targets))
    drawn = [cost(index) for index in resampled_groups(table, resamplings)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    means = {arm: rows.loc[rows["arm"] == arm, f"auc_{split}"].mean() for arm in ARMS}
    return (
        f"once {means['once']:.4f}, twice {means['twice']:.4f}: the second shrinking costs "
        f"{cost(everything):+.4f} [{low:+.4f}, {high:+.4f}], {len(scores['once'])} seeds"
    )


if __name__ == "__main__":
    run_command(main)
