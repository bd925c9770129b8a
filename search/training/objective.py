"""What a search, its looks and the merging of its candidates go by: AUC on select, on its fakes of
methods that fit does not show, on altered images, or the mean of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from search.data.splits import Splits
from search.errors import UserError
from search.settings.data import Objective
from search.training.metrics import mean_auc_of_alterations, roc_auc, split_by_novelty

PARTS: Mapping[Objective, tuple[str, ...]] = {
    "auc": ("auc",),
    "auc_unseen": ("auc_unseen",),
    "auc_stress": ("auc_stress",),
    "mean": ("auc", "auc_unseen", "auc_stress"),
}
"""The figures that an objective is the mean of, as far as the split measures them."""

NAMES: Mapping[Objective, str] = {
    "auc": "AUC",
    "auc_unseen": "AUC on unseen methods",
    "auc_stress": "AUC under stress",
    "mean": "mean AUC",
}
"""For people."""


def needs_altered(objective: Objective) -> bool:
    """Whether it looks at altered images."""
    return "auc_stress" in PARTS[objective]


def needs_unseen(objective: Objective) -> bool:
    """Whether it looks at fakes of unseen methods by themselves."""
    return "auc_unseen" in PARTS[objective]


def parts_told(objective: Objective, splits: Splits) -> str | None:
    """Which figures an objective is the mean of on these images, in a line; None of one figure."""
    parts = PARTS[objective]
    if len(parts) == 1:
        return None
    if _has_unseen(splits.select):
        return f"--objective {objective} is the mean of {', '.join(parts)}."
    found = ", ".join(part for part in parts if part != "auc_unseen")
    return (
        f"--objective {objective} is the mean of {found}, without auc_unseen: select has no fakes "
        "of methods that fit lacks, see --split unseen."
    )


def _has_unseen(table: pd.DataFrame) -> bool:
    return "unseen" in table and bool(table["unseen"].any())


def value_of(figures: Mapping[str, Any], objective: Objective) -> float:
    """How good a network is by an objective.

    Args:
        figures: such as metrics.json holds, on select.
        objective: see `PARTS`.

    Raises:
        UserError: if the figures lack what the objective is.
    """
    found = [figures[name] for name in PARTS[objective] if figures.get(name) is not None]
    if not found:
        raise UserError(
            f"candidates must be measured by --objective {objective}, but figures on select lack it"
        )
    return float(np.mean(found))


def check_objective(objective: Objective, splits: Splits, look: pd.DataFrame) -> None:
    """
    Raises:
        UserError: if the images of a look cannot tell what the objective is.
    """
    if not needs_unseen(objective):
        return
    has_unseen, shows_unseen = _has_unseen(splits.select), _has_unseen(look)
    if not has_unseen and objective == "auc_unseen":
        raise UserError(
            "--objective auc_unseen needs fakes in select whose method fit lacks, found none; use "
            "--split unseen, or --objective auc"
        )
    if has_unseen and not shows_unseen:
        raise UserError(
            f"--objective {objective} needs fakes of methods that fit lacks at every look, found "
            f"none among {len(look):,} of {len(splits.select):,} images; use a larger "
            "--select-limit, or all"
        )


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What scores of the images of select, altered ones after them, are worth by an objective."""

    objective: Objective
    targets: NDArray[np.int64]  # (N,) 1 = fake
    unseen: NDArray[np.bool_] | None = None  # (N,) fakes of methods that fit lacks
    alterations: NDArray[np.int64] | None = None  # (N,) which one; -1: the image as it is

    def value(self, scores: NDArray[np.float64]) -> float:
        """The objective of (N,) scores."""
        wanted = PARTS[self.objective]
        is_clean = self._is_clean
        clean, targets = scores[is_clean], self.targets[is_clean]
        figures: dict[str, float | None] = {}
        if "auc" in wanted:
            figures["auc"] = roc_auc(clean, targets)
        if "auc_unseen" in wanted and self.unseen is not None:
            _, figures["auc_unseen"] = split_by_novelty(clean, targets, self.unseen[is_clean])
        if "auc_stress" in wanted and self.alterations is not None:
            figures["auc_stress"] = mean_auc_of_alterations(scores, self.targets, self.alterations)
        return value_of(figures, self.objective)

    def quality(self, scores: NDArray[np.float64]) -> tuple[float, float]:
        """What ensembles are chosen by: the objective, and between equal ones, as on a split that
        is solved, the lower log loss; higher is better for both numbers."""
        likelihood = np.where(self.targets == 1, scores, 1 - scores)
        return self.value(scores), float(np.log(likelihood.clip(1e-15)).mean())

    def of(self, rows: NDArray[np.int64]) -> Yardstick:
        """The same of some of the images."""
        return Yardstick(
            self.objective,
            self.targets[rows],
            None if self.unseen is None else self.unseen[rows],
            None if self.alterations is None else self.alterations[rows],
        )

    @staticmethod
    def for_table(table: pd.DataFrame, objective: Objective) -> Yardstick:
        """For scores of all images of a table; what its columns do not tell is not measured."""
        return Yardstick(
            objective,
            table["target"].to_numpy(np.int64),
            table["unseen"].to_numpy(np.bool_) if "unseen" in table else None,
            table["alteration"].to_numpy(np.int64) if "alteration" in table else None,
        )

    @property
    def _is_clean(self) -> NDArray[np.bool_]:
        if self.alterations is None:
            return np.ones(len(self.targets), np.bool_)
        return self.alterations < 0
