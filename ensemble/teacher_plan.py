"""Who teaches: the ensemble chosen on select, the fused network, or named candidates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import nn

from ensemble.manifest import file_sha256
from ensemble.model import TeacherOrigin, load_model, load_spec
from ensemble.origin import judge_origin, judge_recipe
from ensemble.pool import Pool
from ensemble.selection import TeacherEnsemble, choose_teachers
from ensemble.views import TeacherEntry
from search.candidate import WEIGHTS, Candidate
from search.errors import UserError

FUSED = "fused"
AUTO = "auto"


@dataclass(frozen=True)
class TeacherPlan:
    """The networks that teach, and what they learned from."""

    folders: tuple[Path, ...]
    weights: tuple[float, ...]  # of their probabilities, summing to 1
    origins: tuple[TeacherOrigin, ...]
    overrides: tuple[str, ...]  # one line for each tainted one
    description: str  # one line

    @property
    def image_size(self) -> int:
        """Side in pixels at which no teacher needs enlarged images."""
        trunks = [recipe for folder in self.folders for recipe in load_spec(folder).trunks]
        return max(recipe.image_size for recipe in trunks)

    def load(self) -> list[nn.Module]:
        """The trained networks, on the CPU."""
        return [load_model(folder)[0] for folder in self.folders]

    @cached_property
    def entries(self) -> tuple[TeacherEntry, ...]:
        """What recorded outputs must be of, hashes of the weights included."""
        return tuple(
            TeacherEntry(folder.name, weight, file_sha256(folder / WEIGHTS))
            for folder, weight in zip(self.folders, self.weights, strict=True)
        )


def plan_teachers(pool: Pool, teachers: str, *, allow_tainted: bool = False) -> TeacherPlan:
    """The teachers that a user asked for.

    Args:
        pool: where they come from.
        teachers: "auto", "fused", or names of candidates, separated by commas.
        allow_tainted: accept a fused network of tainted trunks; candidates are the pool's affair.

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
    ensemble = choose_teachers(pool, names)
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
    folder = pool.run / "merged" / FUSED
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
