"""How well clusters of fakes agree with the methods that made them, by what describes the fakes.

    python tests/benchmarks/validation/bench_clusters.py --output results/validation/clusters.csv \\
        [--weights-dir W --backbones B --pool P]

The demo set, whose methods are named: the fakes of both of its parts. They are described as they
are and by what differs from the real image of their group; by frequencies, which need no weights,
and by the first maps of a backbone; beside them, what is usual: plain k-means on its top features.
The backbone has the weights of W if it is given, else those it is initialised with. Purity is the
share of the fakes that are of the commonest method in their cluster; chance is what it is for names
dealt out at random. Mutual information is adjusted: 0 is chance.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from cyclopts import run
from numpy.typing import NDArray
from rich.console import Console
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor, nn

from search.catalogue.backbones import DEFAULT_PATH, Backbone, load_backbones
from search.data.demo import make_demo
from search.data.labels import read_labels
from search.machine.device import Runtime, resolve_device
from search.machine.files import cache_folder
from search.pixels.loading.epochs import eval_batches
from search.pixels.loading.reading import Reader
from search.training.network import Network, build_network
from search.training.recipe import Recipe
from search.validation.forgeries.clusters import STARTS, cluster
from search.validation.forgeries.describing import EarlyMaps, Frequencies, Together, describe
from search.validation.forgeries.finding import changes_of

COUNTS = (6, 20)
"""Clusters: as many as there are methods, and the default of --clusters."""


class TopFeatures(nn.Module):
    """A backbone's pooled features before its classifier: what an image shows."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(N, D)."""
        return self.network.forward_with_features(images)[0]


def main(
    *,
    backbones: Path = DEFAULT_PATH,
    pool: str = "demo",
    weights_dir: Path | None = None,
    seeds: int = 3,
    output: Path | None = None,
    quick: bool = False,
) -> None:
    """Measures every description, and tells the means over the seeds.

    Args:
        backbones: see `search run`.
        pool: its first backbone is taken.
        weights_dir: the folder of its weights.
        seeds: of k-means.
        output: CSV file; rows of other backbones that it holds stay.
        quick: a few images, one seed: whether it works at all.
    """
    table = fakes_and_their_reals(60 if quick else None)
    backbone = load_backbones(backbones).pool(pool)[0]
    found = pd.DataFrame(list(rows(table, backbone, weights_dir, 1 if quick else seeds)))
    console = Console()
    columns = ["purity", "chance", "mutual_information", "largest"]
    means = found.groupby(["description", "counted_from", "clusters"], sort=False)[columns].mean()
    console.print(means.round(3).to_string(), highlight=False, soft_wrap=True)
    if output is not None:
        if output.exists():
            earlier = pd.read_csv(output)
            known = set(found["description"])
            found = pd.concat([earlier[~earlier["description"].isin(known)], found])
        output.parent.mkdir(parents=True, exist_ok=True)
        found.round(4).to_csv(output, index=False)


def fakes_and_their_reals(limit: int | None) -> pd.DataFrame:
    """The demo set's rows, both of its parts; of so many groups at most, evenly taken."""
    demo = make_demo(cache_folder() / "demo")
    train = read_labels(demo.train_labels, demo.train_images, demo.train_groups)
    val = read_labels(demo.val_labels, demo.val_images, demo.val_groups)
    table = pd.concat([train, val], ignore_index=True)
    groups = sorted(set(table["group"]))[:limit]
    return table[table["group"].isin(groups)].reset_index(drop=True)


def rows(
    table: pd.DataFrame, backbone: Backbone, weights_dir: Path | None, seeds: int
) -> Iterator[dict[str, object]]:
    """Purity for each description, number of clusters and seed."""
    side = 64
    network = build_network(
        Recipe(
            **backbone.network_fields(side),
            canvas=side,
            weights="none" if weights_dir is None else "file",
            weights_file=str(weights_dir / f"{backbone.name}.safetensors") if weights_dir else None,
        )
    )
    start = "random weights" if weights_dir is None else "ImageNet weights"
    name = f"{backbone.name}, {start}"
    maps = EarlyMaps(network, name)
    descriptions = (
        ("frequencies", Frequencies()),
        (f"first maps of {name}", maps),
        (f"frequencies and first maps of {name}", Together([Frequencies(), maps])),
        (f"top features of {name}", TopFeatures(network)),
    )
    is_fake = (table["target"] == 1).to_numpy()
    methods = table["method"][is_fake].to_numpy()
    runtime = Runtime(resolve_device("auto"))
    with Reader(side) as reader:
        for description, descriptor in descriptions:
            started = time.perf_counter()
            batches = eval_batches(reader, table, batch_size=64)
            described = describe(descriptor, batches, len(table), runtime)
            seconds = time.perf_counter() - started
            whole = described[is_fake]
            sets = {
                "the mean fake": whole - whole.mean(axis=0),
                "its real image": changes_of(described, table),
            }
            for counted_from, points in sets.items():
                for count in COUNTS:
                    for seed in range(seeds):
                        names = _clustered(points, count, seed, plain="top" in description)
                        yield {
                            "description": description,
                            "counted_from": counted_from,
                            "clusters": count,
                            "seed": seed,
                            "purity": purity(names, methods),
                            "chance": purity(
                                np.random.default_rng(seed).permutation(names), methods
                            ),
                            "mutual_information": adjusted_mutual_info_score(methods, names),
                            "largest": np.unique(names, return_counts=True)[1].max() / len(names),
                            "seconds": round(seconds, 2),
                        }


def _clustered(
    points: NDArray[np.float64], count: int, seed: int, *, plain: bool
) -> NDArray[np.str_]:
    """As `--split unseen` does it, or by plain k-means."""
    if not plain:
        return np.array(cluster(points, count, seed).names)
    numbers = KMeans(count, n_init=STARTS, random_state=seed).fit_predict(points)
    return numbers.astype(np.str_)


def purity(names: NDArray[np.str_], methods: NDArray[np.str_]) -> float:
    """Share of the fakes that are of the commonest method in their cluster."""
    return float(pd.crosstab(names, methods).max(axis=1).sum() / len(methods))


if __name__ == "__main__":
    torch.set_num_interop_threads(1)
    run(main)
