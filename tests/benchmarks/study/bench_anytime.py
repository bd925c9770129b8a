"""What a constant rate with a short fall costs against cosine of the same length, and what averages
of the weights bring: one recipe, the same images in the same order, three seeds.

    python -m tests.benchmarks.study.bench_anytime --train-labels F --train-images D \\
        --train-groups G --val-labels F --val-images D --val-groups G --backbones B --pool P \\
        --weights-dir W --limit-train 3000 --epochs 4 --image-size 96 --output anytime.csv

The first backbone of the pool is trained. Each training keeps all averages beside its weights, so
that they are scored on the same training; at the end the uniform one is scored once more with
batch-norm statistics of its own. Differences are from cosine without average at the end, means over
the seeds, with 95% intervals that resample groups. The same command goes on after a stop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from cyclopts import run
from numpy.typing import NDArray
from rich.console import Console
from timm.utils import ModelEmaV3

from ensemble.soup.averaging import refresh_batch_norm
from search.catalogue.backbones import DEFAULT_PATH, Backbone, load_backbones
from search.data.splits import Splits
from search.machine.device import Runtime, resolve_device
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from search.settings.search import SearchSettings
from search.training.loop import StepRecord, Training
from search.training.loss import classification_loss, training_batches
from search.training.metrics import roc_auc
from search.training.network import build_network
from search.training.recipe import Recipe
from search.training.scoring import evaluate
from tests.benchmarks.measured import RESAMPLINGS, resampled_groups
from tests.benchmarks.opening import opened_images

SCHEDULES: tuple[Literal["cosine", "constant"], ...] = ("cosine", "constant")
REFERENCE = "cosine"
AVERAGES = {
    "ema": {"decay": 0.998},
    # Step n of N counts for n to a power: 0 is uniform (arXiv:2110.10832), higher ones forget what
    # is old, in proportion to the length so far (arXiv:2312.02696).
    "uniform": {"decay": 1.0, "warmup_gamma": 1.0, "warmup_power": 1.0},
    "power3": {"decay": 1.0, "warmup_gamma": 4.0, "warmup_power": 1.0},
    "power7": {"decay": 1.0, "warmup_gamma": 8.0, "warmup_power": 1.0},
}
"""Averages of the weights, by the arguments of timm's ModelEmaV3."""
AVERAGED_AFTER = 1_000
"""Images, for all but the exponential one."""
IMAGES_OF_STATISTICS = 1_024


def main(
    settings: SearchSettings | None = None,
    *,
    output: Path | None = None,
    seeds: int = 3,
    quick: bool = False,
) -> None:
    """Trains every schedule with every seed, and tells the differences.

    Args:
        settings: of a search on these images; the demo set's, from scratch, by default.
        output: CSV file (arm, seed, images, seconds, auc_select, auc_report); what it holds
            already is not trained again. Beside it lie the differences, and the scores that they
            are computed from.
        seeds: of the order, the views and the start.
        quick: a few images: whether it works at all.
    """
    settings, resamplings = settings or SearchSettings(), RESAMPLINGS
    if quick:
        few = replace(settings, limit_train=64, limit_val=64, image_size=32, epochs=2)
        settings, seeds, resamplings = few, 2, 20
    settings, console = settings.resolved(), Console()
    backbone = load_backbones(settings.backbones or DEFAULT_PATH).pool(settings.pool or "demo")[0]
    size = settings.image_size or backbone.image_sizes[0]
    runtime = Runtime(resolve_device("auto"))
    rows = pd.DataFrame()
    # Without the scores there are no intervals: as if nothing were trained yet.
    if output is not None and output.exists() and _scores_of(output).exists():
        rows = pd.read_csv(output).merge(pd.read_csv(_scores_of(output)), "left")
        rows = rows.fillna(dict.fromkeys(SCORES, ""))
    with opened_images(settings, [size]) as (splits, reader):
        for seed in range(seeds):
            for schedule in SCHEDULES:
                known = (
                    not rows.empty
                    and ((rows["arm"].str.startswith(schedule)) & (rows["seed"] == seed)).any()
                )
                if known:
                    continue
                recipe = replace(
                    recipe_of(backbone, settings, size, reader.side, seed), schedule=schedule
                )
                found = pd.DataFrame(list(curve(schedule, recipe, splits, reader, runtime)))
                rows = pd.concat([rows, found], ignore_index=True)
                console.print(found.drop(columns=SCORES).to_string(index=False), highlight=False)
                if output is not None:
                    output.parent.mkdir(parents=True, exist_ok=True)
                    last = rows[rows["scores_select"] != ""]
                    last[[*KEY, *SCORES]].to_csv(_scores_of(output), index=False)
                    rows.drop(columns=SCORES).to_csv(output, index=False)
        told = differences(rows, splits, resamplings)
    console.print(told.to_string(index=False), highlight=False, soft_wrap=True)
    if output is not None:
        told.to_csv(output.with_name(f"{output.stem}_differences.csv"), index=False)


def recipe_of(
    backbone: Backbone, settings: SearchSettings, size: int, side: int, seed: int
) -> Recipe:
    """A recipe that works on faces."""
    file = None
    if settings.weights_dir is not None:
        file = str(settings.weights_dir / f"{backbone.name}.safetensors")
    return Recipe(
        **backbone.network_fields(size),
        canvas=side,
        weights="none" if file is None else "file",
        weights_file=file,
        epochs=settings.epochs or 4,
        learning_rate=9.5e-4,
        lowest_layer_scale=1.0 if file is None else 0.05,
        label_smoothing=0.05,
        augmentation="light",
        augmentation_strength=0.6,
        channels_last=True,
        seed=seed,
    )


KEY = ["arm", "seed", "images"]
SCORES = ["scores_select", "scores_report"]
"""Columns of the last look's scores, from which the intervals are computed."""


def _scores_of(output: Path) -> Path:
    return output.with_name(f"{output.stem}_scores.csv")


def curve(
    schedule: str, recipe: Recipe, splits: Splits, reader: Reader, runtime: Runtime
) -> Iterator[dict[str, object]]:
    """One training, its weights and their average scored after every epoch."""
    training = Training(
        build_network(recipe),
        training_batches(splits.fit, recipe, reader),
        classification_loss(splits.fit, recipe),
        recipe,
        runtime,
    )
    select, report = (
        eval_batches(reader, table, batch_size=64) for table in (splits.select, splits.report)
    )
    averages = {
        name: ModelEmaV3(
            training.network,
            use_warmup=True,
            update_after_step=0 if name == "ema" else AVERAGED_AFTER // recipe.batch_size,
            **options,  # type: ignore[arg-type]
        )
        for name, options in AVERAGES.items()
    }

    def average(_record: StepRecord) -> None:
        for one in averages.values():
            one.update(training.network, step=training.done)

    started, scoring = time.perf_counter(), 0.0
    while training.looked < training.end:
        training.run(training.next_look, average)
        began = time.perf_counter()
        is_last = training.done == training.end
        arms = [(schedule, training.network)]
        arms += [(f"{schedule}+{name}", one.module) for name, one in averages.items()]
        if is_last:
            # Last: it changes what is scored before.
            arms.append((f"{schedule}+uniform+statistics", averages["uniform"].module))
        record: dict[str, object] = {
            "seed": recipe.seed,
            "images": training.done * recipe.batch_size,
            "seconds": round(began - started - scoring, 1),
        }
        evaluation = None
        for arm, network in arms:
            if arm.endswith("statistics"):
                fit = eval_batches(reader, splits.fit, batch_size=64)
                refresh_batch_norm(network, fit, runtime, IMAGES_OF_STATISTICS)
            evaluation = evaluate(network, select, runtime)
            row = {"arm": arm, **record, "auc_select": evaluation.metrics.auc}
            packed = dict.fromkeys(SCORES, "")
            if is_last:
                on_report = evaluate(network, report, runtime)
                row["auc_report"] = on_report.metrics.auc
                packed["scores_select"] = _packed(evaluation.predictions.scores)
                packed["scores_report"] = _packed(on_report.predictions.scores)
            yield {**row, **packed}
        assert evaluation is not None
        training.look(evaluation)
        scoring += time.perf_counter() - began


def differences(rows: pd.DataFrame, splits: Splits, resamplings: int) -> pd.DataFrame:
    """Each arm's AUC at the end, the mean over the seeds, and its difference from REFERENCE with an
    interval."""
    last = rows[rows["images"] == rows["images"].max()]
    arms = {
        arm: {split: np.stack([_unpacked(t) for t in own[f"scores_{split}"]]) for split in _SPLITS}
        for arm, own in last.groupby("arm", sort=False)
    }
    told = []
    for arm, scores in arms.items():
        row: dict[str, object] = {"arm": arm, "seeds": len(scores["report"])}
        for split in _SPLITS:
            table = getattr(splits, split)
            targets = table["target"].to_numpy()
            mine, reference = scores[split], arms[REFERENCE][split]
            row[f"auc_{split}"] = _mean_auc(mine, targets)
            row[f"difference_{split}"] = _mean_auc(mine, targets) - _mean_auc(reference, targets)
            if arm == REFERENCE:
                continue
            drawn = [
                _mean_auc(mine[:, index], targets[index])
                - _mean_auc(reference[:, index], targets[index])
                for index in resampled_groups(table, resamplings)
            ]
            row[f"low_{split}"], row[f"high_{split}"] = np.quantile(drawn, (0.025, 0.975))
        told.append(row)
    return pd.DataFrame(told)


_SPLITS = ("select", "report")


def _mean_auc(scores: NDArray[np.float64], targets: NDArray[np.int64]) -> float:
    """Over the seeds (S, N)."""
    return float(np.mean([roc_auc(own, targets) for own in scores]))


def _packed(scores: NDArray[np.float64]) -> str:
    return " ".join(f"{score:.5f}" for score in scores)


def _unpacked(text: str) -> NDArray[np.float64]:
    return np.array(text.split(), np.float64)


if __name__ == "__main__":
    torch.set_num_interop_threads(1)
    run(main)
