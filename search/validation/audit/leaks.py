"""How well each feature of a file's header tells its label, and whether that is more than chance.

A feature is judged by the AUC of a small model of it alone, cross-validated by groups, so that it
counts in either direction and where the middle tells most. The interval takes the images of a group
as one observation and is as wide as so many features at once demand: a set whose labels have
nothing to do with its files is not accused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.preprocessing import OneHotEncoder
from sklearn.tree import DecisionTreeClassifier

from search.validation.audit.headers import FEATURES, Feature

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FOLDS = 5

FEWEST_GROUPS = 20
"""Of each class, below which nothing is said: 20 and 20 are told apart perfectly by chance once in
7e10 times, 4 and 4 once in 35."""

MISTAKES = 0.01
"""Share of clean sets that may be accused of anything: the intervals are made for all features
together (Bonferroni)."""

SMALLEST_LEAK = 0.55
"""A leak's AUC is at least this much by its interval: less is too little to be learned instead of
forgeries."""

SMALLEST_BYTES = 0.7
"""The same for file sizes, which also follow from what an image shows: a smooth forgery takes fewer
bytes than its real image however both were written."""

MOST_CATEGORIES = 32
"""That a model tells apart in one feature, the most frequent."""


@dataclass(frozen=True)
class Signal:
    """How well something tells a fake from a real image; the interval is for all together."""

    feature: str
    label: str
    carrier: str
    auc: float
    low: float
    high: float
    is_leak: bool


@dataclass(frozen=True)
class Telling:
    """What headers tell of labels."""

    combined: Signal | None  # one model of all features; None where nothing can be said
    signals: tuple[Signal, ...]  # of each feature that is not the same everywhere, strongest first
    images: int
    note: str = ""


def telling(
    headers: pd.DataFrame,
    targets: Integers,
    groups: Integers,
    seed: int,
    *,
    features: Sequence[Feature] = FEATURES,
    with_combined: bool = True,
) -> Telling:
    """Judges every feature of a table of headers.

    Args:
        headers: (N, F), from `search.validation.audit.headers`.
        targets: (N,), 0 or 1.
        groups: (N,), images of one group never part.
        seed: of the folds and models.
        features: those to judge.
        with_combined: judge all together as well, which takes most of the time.
    """
    counts = [len(np.unique(groups[targets == target])) for target in (0, 1)]
    if min(counts) < FEWEST_GROUPS:
        note = (
            f"too few to tell: {FEWEST_GROUPS} groups of each class are needed, found {counts[0]} "
            f"with real and {counts[1]} with fake images"
        )
        return Telling(None, (), len(headers), note)
    varied = [one for one in features if headers[one.name].nunique(dropna=False) > 1]
    if not varied:
        return Telling(None, (), len(headers), "all headers are the same")
    folds = _folds(targets, groups, seed)
    quantile = float(norm.isf(MISTAKES / 2 / (len(varied) + 1)))

    def judged(features: list[Feature]) -> tuple[float, float, float]:
        scores = _scores(headers[[one.name for one in features]], targets, folds, seed)
        auc, error = clustered_auc(scores, targets, groups)
        return auc, max(0.0, auc - quantile * error), min(1.0, auc + quantile * error)

    signals = []
    for one in varied:
        auc, low, high = judged([one])
        least = SMALLEST_BYTES if one.carrier.name == "bytes" else SMALLEST_LEAK
        signals.append(
            Signal(one.name, one.label, one.carrier.name, auc, low, high, is_leak=low >= least)
        )
    signals.sort(key=lambda signal: -signal.auc)
    if not with_combined:
        return Telling(None, tuple(signals), len(headers))
    auc, low, high = judged(varied)
    combined = Signal("all", "all together", "", auc, low, high, is_leak=low >= SMALLEST_BYTES)
    return Telling(combined, tuple(signals), len(headers))


def clustered_auc(scores: Floats, targets: Integers, groups: Integers) -> tuple[float, float]:
    """AUC and its standard error where the images of a group are not independent.

    The variance is that of Obuchowski (1997), doi:10.2307/2533958, by placements as DeLong's: the
    influences of a group's images are added before they are squared.

    Args:
        scores: (N,); ties count one half.
        targets: (N,), 0 or 1, both present.
        groups: (N,).
    """
    is_fake = targets == 1
    fakes, reals = int(is_fake.sum()), int((~is_fake).sum())
    ranks = rankdata(scores)
    influence = np.empty(len(scores))
    influence[is_fake] = (ranks[is_fake] - rankdata(scores[is_fake])) / reals
    influence[~is_fake] = 1 - (ranks[~is_fake] - rankdata(scores[~is_fake])) / fakes
    auc = float(influence[is_fake].mean())
    influence = (influence - auc) / np.where(is_fake, fakes, reals)
    _, places = np.unique(groups, return_inverse=True)
    sums = np.bincount(places, weights=influence)
    return auc, float(np.sqrt((sums**2).sum() * len(sums) / max(1, len(sums) - 1)))


def _folds(
    targets: Integers, groups: Integers, seed: int
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Training and test rows; no group is on both sides."""
    names, places = np.unique(groups, return_inverse=True)
    if len(names) == len(groups):
        return list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(targets, targets))
    # Renamed at random, as `search.data.splits` does: its own shuffling loses the stratification
    # before scikit-learn 1.8.
    renamed = np.random.default_rng(seed).permutation(len(names))[places]
    return list(StratifiedGroupKFold(FOLDS).split(targets, targets, renamed))


def _scores(
    table: pd.DataFrame,
    targets: Integers,
    folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
    seed: int,
) -> Floats:
    """Scores of all rows, each by a model that has not seen its group, as ranks within its fold:
    two models' scores do not compare."""
    categories = [name for name in table if isinstance(table[name].dtype, pd.CategoricalDtype)]
    least = max(5, len(table) // 250)
    # A tree compares float32, to which two minutes of a time stamp are one number; ranks lose none.
    numbers = table.drop(columns=categories).rank(method="dense").to_numpy()
    codes = table[categories].apply(lambda column: column.cat.codes).to_numpy()
    scores = np.empty(len(table))
    for train, test in folds:
        columns = [(numbers[train], numbers[test])]
        if categories:
            # Rare categories are one: of each alone nothing could be learned.
            encoder = OneHotEncoder(
                min_frequency=least,
                max_categories=MOST_CATEGORIES,
                handle_unknown="infrequent_if_exist",
                sparse_output=False,
            ).fit(codes[train])
            columns.append((encoder.transform(codes[train]), encoder.transform(codes[test])))
        fitted, applied = (np.hstack(parts) for parts in zip(*columns, strict=True))
        model = _model(table.shape[1], least, seed).fit(fitted, targets[train])
        scores[test] = rankdata(model.predict_proba(applied)[:, 1]) / len(test)
    return scores


def _model(features: int, least: int, seed: int) -> Any:
    """A few cuts through one feature; a small boosted forest for several."""
    if features == 1:
        return DecisionTreeClassifier(max_leaf_nodes=16, min_samples_leaf=least, random_state=seed)
    return HistGradientBoostingClassifier(
        max_iter=50,
        max_leaf_nodes=8,
        min_samples_leaf=least,
        early_stopping=False,
        random_state=seed,
    )
