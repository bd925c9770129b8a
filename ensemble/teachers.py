"""Who teaches: the ensemble chosen on select, the fused network, or named candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from ensemble.network.model import TeacherOrigin, feature_size, load_model, load_spec
from ensemble.pool.eligibility import judge_origin, judge_recipe
from ensemble.pool.pool import Pool
from search.catalogue.timm_models import build_on_meta
from search.errors import UserError
from search.machine.files import MERGED, file_sha256
from search.training.candidate import WEIGHTS, Candidate
from search.training.metrics import Metrics
from search.training.objective import Yardstick, value_of
from search.training.scoring import Predictions, described, measure_predictions, with_altered

FUSED = "fused"
AUTO = "auto"


@dataclass(frozen=True)
class TeacherEntry:
    """One network of the teacher, as the manifest names it."""

    name: str
    weight: float
    sha256: str  # of its weights file


@dataclass(frozen=True)
class TeacherPlan:
    """The networks that teach, and what they learned from."""

    folders: tuple[Path, ...]
    weights: tuple[float, ...]  # of their probabilities, summing to 1
    origins: tuple[TeacherOrigin, ...]
    overrides: tuple[str, ...]  # one line for each tainted one
    description: str  # one line

    def load(self) -> list[nn.Module]:
        """The trained networks, on the CPU."""
        return [load_model(folder)[0] for folder in self.folders]

    @property
    def feature_size(self) -> int:
        """D of the features of all networks side by side, told without loading them."""
        recipes = [recipe for folder in self.folders for recipe in load_spec(folder).trunks]
        return sum(feature_size(build_on_meta(r.architecture, r.model_args)) for r in recipes)

    @cached_property
    def entries(self) -> tuple[TeacherEntry, ...]:
        """What recorded outputs must be of, hashes of the weights included."""
        return tuple(
            TeacherEntry(folder.name, weight, file_sha256(folder / WEIGHTS))
            for folder, weight in zip(self.folders, self.weights, strict=True)
        )


def plan_teachers(
    pool: Pool,
    teachers: str,
    *,
    allow_tainted: bool = False,
    check: Callable[[], None] = lambda: None,
) -> TeacherPlan:
    """The teachers that a user asked for.

    Args:
        pool: where they come from.
        teachers: "auto", "fused", or names of candidates, separated by commas.
        allow_tainted: accept a fused network of tainted trunks; candidates are the pool's affair.
        check: see `greedy_ensemble`.

    Raises:
        UserError: if one is unknown, its weights are gone, or it is tainted.
    """
    if teachers == FUSED:
        return _fused_teacher(pool, allow_tainted)
    names = None
    if teachers != AUTO:
        names = [name.strip() for name in teachers.split(",") if name.strip()]
        if not names:
            raise UserError(
                f"--teachers must be {AUTO}, {FUSED} or candidates such as 0003,0007, found "
                f"'{teachers}'"
            )
    ensemble = choose_teachers(pool, names, check=check)
    candidates = [pool.get(name) for name in ensemble.names]
    origins = tuple(_origins(pool, candidates, ensemble))
    return TeacherPlan(
        folders=tuple(candidate.path for candidate in candidates),
        weights=ensemble.weights,
        origins=origins,
        overrides=pool.overrides(ensemble.names),
        description=ensemble.describe(),
    )


def _origins(
    pool: Pool, candidates: list[Candidate], ensemble: TeacherEnsemble
) -> list[TeacherOrigin]:
    return [
        TeacherOrigin(
            name=candidate.name,
            backbone=candidate.recipe.backbone,
            weights=candidate.recipe.weights,
            pretraining=judge_origin(candidate, pool.catalogue).pretraining,
            weight=weight,
        )
        for candidate, weight in zip(candidates, ensemble.weights, strict=True)
    ]


def _fused_teacher(pool: Pool, allow_tainted: bool) -> TeacherPlan:
    folder = pool.run / MERGED / FUSED
    if not (folder / WEIGHTS).exists():
        raise UserError(
            f"--teachers {FUSED} needs a fused network, but {folder} has none; make it with "
            f"`python -m ensemble fuse --run {pool.run}`"
        )
    spec = load_spec(folder)
    judged = [(recipe, judge_recipe(recipe, pool.catalogue)) for recipe in spec.trunks]
    tainted = [
        f"teacher {FUSED} is tainted by {recipe.backbone}: {origin.reason}"
        for recipe, origin in judged
        if not origin.allowed
    ]
    tainted += [line for line in spec.overrides if line not in tainted]
    if tainted and not allow_tainted:
        raise UserError(
            f"teachers must be pretrained as the rules allow, but {tainted[0]}; choose other "
            "--teachers, or add --allow-tainted, which is recorded"
        )
    origins = tuple(
        TeacherOrigin(
            name=FUSED,
            backbone=recipe.backbone,
            weights=recipe.weights,
            pretraining=origin.pretraining,
            weight=1 / len(judged),
        )
        for recipe, origin in judged
    )
    return TeacherPlan(
        folders=(folder,),
        weights=(1.0,),
        origins=(*origins, *spec.teachers),
        overrides=tuple(tainted),
        description=f"the fused network of {', '.join(spec.merged_from)}",
    )


Floats = NDArray[np.float64]

ROUNDS = 50
"""Of the greedy selection."""


@dataclass(frozen=True, eq=False)
class TeacherEnsemble:
    """Candidates whose probabilities are averaged: the reference that merged models are held
    against, never itself submittable."""

    names: tuple[str, ...]
    weights: tuple[float, ...]  # positive, summing to 1
    select: Metrics
    objective: float  # on select, which it was chosen by

    @property
    def select_auc(self) -> float:
        """AUC on select."""
        return self.select.auc

    def scores(self, aligned: pd.DataFrame) -> Floats:
        """(N,) mean probabilities, from a table such as `Pool.report`."""
        return _mean_scores(aligned, self.names, self.weights)

    def describe(self) -> str:
        """One line for people, which says that this is no model to submit."""
        members = ", ".join(
            f"{name} x {weight:.2f}" for name, weight in zip(self.names, self.weights, strict=True)
        )
        return (
            f"teacher ensemble of {members}: AUC {self.select_auc:.4f} on select; a reference, not "
            "submittable: the rules allow one model"
        )


def choose_teachers(
    pool: Pool,
    names: Sequence[str] | None = None,
    rounds: int = ROUNDS,
    check: Callable[[], None] = lambda: None,
) -> TeacherEnsemble:
    """The ensemble that teaches.

    Args:
        pool: its candidates are chosen from, by their scores on select.
        names: these candidates instead, with equal weights.
        rounds: see `greedy_ensemble`.
        check: see there.

    Raises:
        UserError: for names that the pool does not have.
    """
    if names is not None:
        chosen = tuple(dict.fromkeys(pool.get(name).name for name in names))
        weights = (1 / len(chosen),) * len(chosen)
    else:
        found = greedy_ensemble(pool.judged_scores(pool.names), pool.yardstick, rounds, check)
        pairs = [(n, float(w)) for n, w in zip(pool.names, found, strict=True) if w > 0]
        chosen, weights = tuple(n for n, _ in pairs), tuple(w for _, w in pairs)
    table = with_altered(pool.select, pool.altered)
    scores, targets = _mean_scores(table, chosen, weights), table["target"].to_numpy(np.int64)
    predictions = Predictions(np.arange(len(table)), scores, targets)
    measured = measure_predictions(described(predictions, table))
    value = value_of(measured.to_dict(), pool.objective)
    return TeacherEnsemble(chosen, weights, measured, value)


def greedy_ensemble(
    scores: Floats,
    yardstick: Yardstick,
    rounds: int = ROUNDS,
    check: Callable[[], None] = lambda: None,
) -> Floats:
    """Greedy selection with replacement (Caruana et al. 2004, doi:10.1145/1015330.1015432).

    Every round adds the model that makes the mean of the probabilities best; the best bag of all
    rounds is returned, the smallest of equals.

    Args:
        scores: (M, N) probabilities of M models; of equally good models the first is taken.
        yardstick: says how good N scores are.
        rounds: how often a model is added, at least 1.
        check: called before each round; what it raises ends the selection.

    Returns:
        (M,) weights, not negative, summing to 1.
    """
    counts, total = np.zeros(len(scores), np.int64), np.zeros(scores.shape[1])
    best, best_counts = (-np.inf, -np.inf), counts
    for size in range(1, rounds + 1):
        check()
        reached = [yardstick.quality((total + added) / size) for added in scores]
        pick = max(range(len(scores)), key=lambda index: reached[index])
        counts = counts + (np.arange(len(scores)) == pick)
        total = total + scores[pick]
        if reached[pick] > best:
            best, best_counts = reached[pick], counts
    weights: Floats = best_counts / best_counts.sum()
    return weights


def _mean_scores(table: pd.DataFrame, names: Sequence[str], weights: Sequence[float]) -> Floats:
    mean: Floats = table[list(names)].to_numpy(np.float64) @ np.asarray(weights)
    # Weights that sum to 1 but for rounding must not lift a probability above it.
    return mean.clip(0.0, 1.0)
